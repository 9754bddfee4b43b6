"""BERT for MMT: from sizes, a folder or the hub; known settings alone, and every weight there."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertForPreTraining, BertModel

from emcl_train.config import DataConfig, ModelConfig, RunConfig
from emcl_train.errors import UserError
from emcl_train.experts.mmt import SMALL_BERT, mmt_sizes
from emcl_train.models.experts.bert import bert_of_config, build_bert, load_bert
from emcl_train.models.experts.build import build_expert_model

pytestmark = pytest.mark.usefixtures("one_thread")
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    build_bert(SMALL_BERT).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def said_at_cls(bert):
    ids = torch.arange(1, 8)[None]
    with torch.no_grad():
        return bert.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[:, 0]


def with_config(folder, **changes):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | changes))


def with_weights(folder, change):
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def test_a_folder_is_read_as_transformers_reads_it(folder):
    found = load_bert(str(folder))
    assert torch.equal(said_at_cls(found), said_at_cls(BertModel.from_pretrained(folder)))
    assert found.config.hidden_dropout_prob == 0.1


def test_heads_of_its_pretraining_are_left_out(tmp_path):
    """bert-base-cased has them."""
    torch.manual_seed(1)
    whole = BertForPreTraining(build_bert(SMALL_BERT).config)
    whole.save_pretrained(tmp_path)
    assert any(name.startswith("cls.") for name in load_file(tmp_path / WEIGHTS))
    torch.testing.assert_close(said_at_cls(load_bert(str(tmp_path))), said_at_cls(whole.bert))


def test_the_pooler_may_be_missing(folder):
    with_weights(folder, lambda state: [state.pop(name) for name in list(state) if name.startswith("pooler.")])
    assert torch.equal(said_at_cls(load_bert(str(folder))), said_at_cls(BertModel.from_pretrained(folder)))


def test_an_earlier_download_serves_without_a_network(folder, tmp_path, monkeypatch):
    """In the cache of the hub, under the name of the real one."""
    model = tmp_path / "cache" / "models--nobody--bert-small"
    place = model / "snapshots" / ("0" * 40)
    place.parent.mkdir(parents=True)
    folder.rename(place)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0" * 40)
    for name in ("huggingface_hub.constants.HF_HUB_CACHE", "transformers.utils.hub.constants.HF_HUB_CACHE"):
        monkeypatch.setattr(name, str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    assert torch.equal(said_at_cls(load_bert("nobody/bert-small")), said_at_cls(BertModel.from_pretrained(place)))


def test_a_recorded_configuration_builds_the_same(folder):
    config = json.loads((folder / "config.json").read_text())
    found = bert_of_config(config | {"_attn_implementation": "a/kernel"}, "config.json")
    assert {name: value.shape for name, value in found.state_dict().items()} == {
        name: value.shape for name, value in build_bert(SMALL_BERT).state_dict().items()
    }
    assert found.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "roberta"}, "a checkpoint of type 'roberta' instead of 'bert'"),
        ({"hidden_size": "wide"}, "does not describe a BERT: hidden_size is 'wide', expected a whole number"),
        ({"pad_token_id": 200}, "pad_token_id is 200, expected less than vocab_size, 200"),
        ({"hidden_act": "a/kernel"}, "hidden_act is 'a/kernel', expected one of"),
        ({"num_attention_heads": 3}, "hidden_size is 32, which num_attention_heads = 3 does not divide"),
        ({"num_hidden_layers": 1000, "hidden_size": 4096}, "describes a BERT of .* weights, and its files"),
        ({"num_hidden_layers": 3}, r"lacks 16 of BERT's weights, .* \(first: encoder\.layer\.2"),
        ({"num_hidden_layers": 1}, r"has 16 weights that BERT has not \(first: encoder\.layer\.1"),
        ({"vocab_size": 300}, r"lacks 1 of BERT's weights, .*word_embeddings"),
    ],
)
def test_a_folder_that_does_not_fit(folder, change, message):
    with_config(folder, **change)
    with pytest.raises(UserError, match=message):
        load_bert(str(folder))


@pytest.mark.parametrize(
    ("change", "words", "vocabulary", "message"),
    [
        ({}, 41, 200, r"data\.max_words is 41, .* reads 40 tokens at most; pass --data\.max-words 40 or less"),
        ({}, 40, 201, r"the tokenizer has 201 tokens, .* knows 200; pass --experts\.text"),
        ({"num_hidden_layers": 200}, 40, 200, r"bert_config\.json describes a BERT of .* hold at most"),
    ],
)
def test_the_bert_of_a_run_fits_its_captions_and_its_weights(tmp_path, change, words, vocabulary, message):
    config = build_bert(SMALL_BERT).config.to_dict() | {"intermediate_size": 1024} | change
    (tmp_path / "bert_config.json").write_text(json.dumps(config))
    (tmp_path / WEIGHTS).write_bytes(bytes(10))
    texts = SimpleNamespace(sizes=mmt_sizes("activitynet"), vocabulary=vocabulary, word_vectors=None)
    settings = RunConfig(model=ModelConfig(system="mmt"), data=DataConfig(max_words=words))
    with pytest.raises(UserError, match=message):
        build_expert_model(settings, texts, of_run=tmp_path)


def test_no_folder():
    with pytest.raises(UserError, match=r"experts\.text is \./none, which is neither a file nor a folder"):
        load_bert("./none")


def test_adapters_are_refused(folder):
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"experts\.text is .*adapters, which name the model that they belong to"):
        load_bert(str(folder))


def test_damaged_weights(folder):
    (folder / WEIGHTS).write_bytes(b"none")
    with pytest.raises(UserError, match=r"experts\.text is .*, which could not be loaded"):
        load_bert(str(folder))
