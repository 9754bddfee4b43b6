"""The model of a run on experts, from the sizes that its settings and its files give."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from emcl_train.config import RunConfig
from emcl_train.errors import UserError
from emcl_train.experts.ce import CESizes
from emcl_train.experts.choosing import em_sizes_of
from emcl_train.experts.jsfusion import JSFusionSizes
from emcl_train.experts.mmt import SMALL_BERT, MMTSizes
from emcl_train.flags import flag
from emcl_train.models.experts.bert import bert_of_config, build_bert, load_bert
from emcl_train.models.experts.ce import CollaborativeExperts
from emcl_train.models.experts.em import ExpertEM
from emcl_train.models.experts.jsfusion import JSFusion
from emcl_train.models.experts.mmt import MultiModalTransformer
from emcl_train.models.experts.retrieval import JSFusionModel, MixtureModel
from emcl_train.models.interface import PairModel
from emcl_train.models.retrieval import require_bases
from emcl_train.runs.clip_config import numbers_in
from emcl_train.runs.contents import BERT_CONFIG, WEIGHTS
from emcl_train.runs.files import read_json, write_json_atomic
from emcl_train.terminal import tell
from emcl_train.weights.ce import read_ce
from emcl_train.weights.files import read_state
from emcl_train.weights.jsfusion import read_jsfusion
from emcl_train.weights.keys import SHOWN, require_keys
from emcl_train.weights.mmt import read_mmt

OURS = "system."
"""Beginning of the names of a run's weights, beside EM's start."""
BASES = "emcl.bases"


@runtime_checkable
class Texts(Protocol):
    """What a model has to know of a run's files: sizes that fit them, and what texts are made of."""

    sizes: CESizes | MMTSizes | JSFusionSizes
    vocabulary: int
    """Numbers that a token of MMT may have; 0 for systems that read no tokens."""
    word_vectors: Tensor | None
    """What JSFusion's word embeddings start from."""


def build_expert_model(config: RunConfig, texts: Texts, *, of_run: Path | None = None) -> MixtureModel | JSFusionModel:
    """The model of a run, its random parts drawn from torch's global generator.

    Args:
        config: of the run.
        texts: of its files.
        of_run: the folder of the run whose weights will be put into it; None: it is one that begins, or goes on.

    Raises:
        UserError: the BERT cannot be had, or `model.init_from` does not fit.
    """
    model = _model(config, texts, of_run or (config.out if config.resume else None))
    if config.model.init_from is not None and of_run is None:
        start_from(model, config.model.init_from)
    return model


def _model(config: RunConfig, texts: Texts, recorded: Path | None) -> MixtureModel | JSFusionModel:
    sizes = texts.sizes
    if isinstance(sizes, JSFusionSizes):
        system = JSFusion(sizes)
        if texts.word_vectors is not None:
            with torch.no_grad():
                system.text_encoder.embedding.weight.copy_(texts.word_vectors)
        return JSFusionModel(system)

    if isinstance(sizes, CESizes):
        return _mixture(CollaborativeExperts(sizes), config, experts=len(sizes.names), width=sizes.width)

    # A seed drawn before the BERT is loaded makes all else start the same, however many numbers loading draws.
    seed = int(torch.randint(2**31, ()))
    bert = _bert(config, texts, recorded)
    _require_texts(bert, config, texts)
    torch.manual_seed(seed)
    mmt = MultiModalTransformer(sizes, bert, gated_video=config.experts.gated_video)
    return _mixture(mmt, config, experts=len(sizes.names), width=sizes.width)


def _mixture(
    system: CollaborativeExperts | MultiModalTransformer, config: RunConfig, *, experts: int, width: int
) -> MixtureModel:
    require_bases(config.emcl, width=width)
    model = MixtureModel(system, ExpertEM(experts, em_sizes_of(config)))
    model.rows_of_batch = config.rows_of_em
    return model


def _bert(config: RunConfig, texts: Texts, recorded: Path | None) -> Any:
    """The text side of MMT: as a run recorded it, whose weights follow, or as the settings have it."""
    if recorded is not None and (recorded / BERT_CONFIG).is_file():
        path = recorded / BERT_CONFIG
        content = read_json(path, "copy it again from the run, or train anew", keys=())
        return bert_of_config(content, str(path), weights=numbers_in(recorded / WEIGHTS))
    if config.experts.text == "random":
        words = config.data.max_words
        return build_bert(
            replace(SMALL_BERT, vocab_size=texts.vocabulary, max_positions=max(SMALL_BERT.max_positions, words))
        )
    return load_bert(config.experts.text)


def _require_texts(bert: Any, config: RunConfig, texts: Texts) -> None:
    """Raise a UserError where BERT knows fewer tokens, or fewer places, than captions have."""
    sizes = bert.config
    if config.data.max_words > sizes.max_position_embeddings:
        raise UserError(
            f"data.max_words is {config.data.max_words}, and the BERT of experts.text, {config.experts.text}, reads "
            f"{sizes.max_position_embeddings} tokens at most; pass {flag('data.max_words')} "
            f"{sizes.max_position_embeddings} or less, or another {flag('experts.text')}"
        )
    if texts.vocabulary > sizes.vocab_size:
        raise UserError(
            f"the tokenizer has {texts.vocabulary} tokens, and the BERT of experts.text, {config.experts.text}, knows "
            f"{sizes.vocab_size}; pass {flag('experts.text')} a BERT with its own vocabulary beside it"
        )


def keep_bert_config(run_dir: Path, model: PairModel) -> None:
    """Write the configuration of a run's BERT, if it has one, so that it is evaluated without what it started from."""
    system = getattr(model, "system", None)
    if isinstance(system, MultiModalTransformer) and not (run_dir / BERT_CONFIG).is_file():
        write_json_atomic(run_dir / BERT_CONFIG, dict(system.bert.config.to_dict()))


def start_from(model: MixtureModel | JSFusionModel, path: Path) -> None:
    """Put the weights that `model.init_from` names into a model: those of a run of ours, or of the authors.

    A run's start of EM comes along where it has the same experts and bases; the authors' checkpoints have none.

    Args:
        model: built for the files of the run.
        path: a file of weights.

    Raises:
        UserError: the file cannot be read, or does not fit.
    """
    path = path.expanduser()
    own = read_state(path) if path.suffix == ".safetensors" else {}
    if any(name.startswith(OURS) for name in own):
        bases = own.pop(BASES, None)
        expected = model.state_dict()
        if BASES in expected:
            fits = bases is not None and bases.shape == expected[BASES].shape
            own[BASES] = bases if bases is not None and fits else expected[BASES]
        require_keys(own, {name: value.shape for name, value in expected.items()}, source=str(path))
        model.load_state_dict(own)
        return

    system = model.system
    expected = system.state_dict()
    not_there: list[str] = []
    if isinstance(system, CollaborativeExperts):
        found, left_out = read_ce(path, expected, system.sizes.names)
    elif isinstance(system, JSFusion):
        found, left_out = read_jsfusion(path, expected)
    else:
        found, left_out, not_there = read_mmt(path, expected)
    system.load_state_dict(found)

    if left_out:
        more = f" and {len(left_out) - SHOWN} more" if len(left_out) > SHOWN else ""
        tell(f"{path}: the model has no place for {', '.join(left_out[:SHOWN])}{more}, which is left out")
    if not_there:
        tell(f"{path} has nothing of the experts {', '.join(not_there)}, which start from random weights")
