"""Checkpoints of MMT and of MMT + EMCL with the names that their authors gave the weights, to ours and back.

Every key has its place: it is a weight of the model under another name, or one of the few that hold nothing, which are
listed here. Of what is too much, too little or of another shape, one error says the names. Whole experts may differ:
HowTo100M's weights know two of MSR-VTT's seven.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import torch
from torch import Tensor

from emcl_train.errors import UserError
from emcl_train.weights.keys import require_keys
from emcl_train.weights.training_files import read_training_file

POSITIONS = "vid_bert.embeddings.position_embeddings.weight"
THEIR_LAYER, OUR_LAYER = "vid_bert.encoder.layer.", "video.layers."

# Ours, theirs; of what each expert has, and of each layer of the video transformer, the part that is the same in all.
NAMES = {
    "bert.": "txt_bert.",
    "video.position_embedding.": "vid_bert.embeddings.position_embeddings.",
    "video.type_embedding.": "vid_bert.embeddings.token_type_embeddings.",
    "video.norm.": "vid_bert.embeddings.layer_norm.",
    "video.pooler.": "vid_bert.pooler.dense.",
}
IN_A_LAYER = {
    "query.": "attention.self.query.",
    "key.": "attention.self.key.",
    "value.": "attention.self.value.",
    "attended.": "attention.output.dense.",
    "attention_norm.": "attention.output.layer_norm.",
    "widen.": "intermediate.dense.",
    "narrow.": "output.dense.",
    "norm.": "output.layer_norm.",
}
IN_A_GATE = {"embed.": "fc.", "gate.": "cg.fc.", "gate_norm.": "cg.batch_norm."}
OF_EXPERTS: dict[str, tuple[str, dict[str, str]]] = {
    "reduce.": ("video_dim_reduce.", {"": "fc."}),
    "text_gates.": ("text_GU.", IN_A_GATE),
    "video_gates.": ("video_GU.", IN_A_GATE),
    "expert_weights.": ("moe_fc_txt.", {"": ""}),
}

OLD_SPELLINGS = {"text_gu.": "text_GU.", "video_gu.": "video_GU."}
"""Beginnings of keys in checkpoints from before their authors renamed them; the second is inferred from the first."""
NO_WEIGHTS = re.compile(r"txt_bert\.embeddings\.(position_ids|token_type_ids)")
"""Counted numbers that older versions of transformers saved as well."""
MAY_BE_MISSING = re.compile(r"(txt_bert|vid_bert)\.pooler\.dense\.(weight|bias)")
"""What nothing reads: without it, the model's own stays."""

HINTS = (
    ("video_GU", "Gated embeddings of the videos are part of MMT + EMCL: see --emcl.mode."),
    ("vid_bert.embeddings.position_embeddings", "A model may have more positions than its checkpoint, not fewer."),
    (
        "vid_bert.embeddings.token_type_embeddings",
        "Token types are 19 on MSR-VTT and HowTo100M, and 10 on LSMDC and ActivityNet: pass --experts.token-types with "
        "those of the file.",
    ),
    ("video_dim_reduce", "The experts, and their widths, are those of another data set."),
    ("text_GU", "The experts are those of another data set."),
    ("txt_bert", "The text side is a BERT of another size, or no BERT."),
)


class MMTCheckpoint(NamedTuple):
    """What a checkpoint gives to a model."""

    weights: dict[str, Tensor]
    """Under our names, all that the model has."""
    dropped: list[str]
    """Their names of what is left out: numbers that hold nothing, and experts that the model has not."""
    not_there: list[str]
    """Experts that the checkpoint has not: their weights are the model's own."""


def read_mmt(path: Path, model: Mapping[str, Tensor]) -> MMTCheckpoint:
    """A checkpoint as a state_dict of our model. Objects of the authors' classes in it are not built.

    Args:
        path: `{arch, epoch, state_dict, monitor_best, config, …}`, or a state_dict alone, with their names or ours.
        model: state_dict of our model, which says what to expect.

    Raises:
        UserError: the file cannot be read; or weights are missing, unknown or of another shape, and they are named.
    """
    return mmt_from_authors(read_training_file(path), model, source=str(path))


def mmt_from_authors(found: Mapping[str, Tensor], model: Mapping[str, Tensor], *, source: str) -> MMTCheckpoint:
    """Weights by the authors' names as a state_dict of our model; see `read_mmt`.

    Positions that the checkpoint lacks are zeros, as the authors fill them.
    """
    if any(name.startswith(("reduce.", OUR_LAYER)) for name in found):
        require_keys(found, {name: value.shape for name, value in model.items()}, source=source)
        return MMTCheckpoint(dict(found), [], [])
    if not any(name.startswith(("video_dim_reduce.", "vid_bert.")) for name in found):
        raise UserError(
            f"{source} is no checkpoint of MMT: it begins with {next(iter(found), 'nothing')}; expected names that "
            f"begin with vid_bert. and video_dim_reduce. (its authors) or video. and reduce. (our own)"
        )

    ours = {mmt_name(name): name for name in model}
    kept = _present_names(found, source)

    # With an expert in common, others may be on one side alone, as where the authors go on from HowTo100M.
    there, asked = ({expert_of(name) for name in names} - {None} for names in (kept, ours))
    not_there = asked - there if there & asked else set()
    too_many = there - asked if there & asked else set()
    dropped = sorted(name for name in kept if NO_WEIGHTS.fullmatch(name) or expert_of(name) in too_many)
    for name in dropped:
        del kept[name]
    for name, our in ours.items():
        if MAY_BE_MISSING.fullmatch(name) or expert_of(name) in not_there:
            kept.setdefault(name, model[our])
    if POSITIONS in kept:
        kept[POSITIONS] = _with_zero_rows(kept[POSITIONS], model[ours[POSITIONS]])

    expected = {name: model[our].shape for name, our in ours.items()}
    require_keys(kept, expected, source=source, hints=HINTS)
    weights = {our: kept[name] for name, our in ours.items()}
    return MMTCheckpoint(weights, dropped, sorted(unquote(name) for name in not_there if name is not None))


def mmt_to_authors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our model's state_dict by the authors' names.

    Args:
        state: the state_dict.
    """
    return {mmt_name(name): value for name, value in state.items()}


def mmt_name(name: str) -> str:
    """What the authors call a weight of ours.

    Raises:
        KeyError: it is none of MMT's.

    Examples:
        >>> mmt_name("text_gates.s3d.gate.weight")
        'text_GU.s3d.cg.fc.weight'
    """
    if name.startswith(OUR_LAYER):
        number, _, inside = name.removeprefix(OUR_LAYER).partition(".")
        return f"{THEIR_LAYER}{number}.{_renamed(inside, IN_A_LAYER.items())}"
    for prefix, (theirs, parts) in OF_EXPERTS.items():
        if name.startswith(prefix):
            expert, _, inside = name.removeprefix(prefix).partition(".")
            return f"{theirs}{expert}.{_renamed(inside, parts.items())}"
    return _renamed(name, NAMES.items())


def expert_of(name: str) -> str | None:
    """The expert that a weight of the authors' names belongs to, or None if it is of no single one."""
    prefix = next((theirs for theirs, _ in OF_EXPERTS.values() if name.startswith(theirs)), None)
    return None if prefix is None else name.removeprefix(prefix).partition(".")[0]


def _renamed(name: str, prefixes: Iterable[tuple[str, str]]) -> str:
    for ours, theirs in prefixes:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise KeyError(name)


def _present_names(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The weights under the names that their authors use now; a UserError where one is there under both."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        old = next((old for old in OLD_SPELLINGS if name.startswith(old)), None)
        present = name if old is None else OLD_SPELLINGS[old] + name.removeprefix(old)
        if present in found:
            raise UserError(
                f"{source} holds {present} twice, in its old spelling as well; which of them is meant is not guessed: "
                f"save one of them alone"
            )
        found[present] = value
    return found


def _with_zero_rows(positions: Tensor, ours: Tensor) -> Tensor:
    """As many rows as our table has; one that is too long, or of another width, is left for the error to name."""
    if positions.dim() != 2 or positions.shape[1] != ours.shape[1] or len(positions) >= len(ours):
        return positions
    return torch.cat([positions, positions.new_zeros(len(ours) - len(positions), ours.shape[1])])
