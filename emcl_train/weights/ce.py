"""Collaborative Experts' checkpoints: the authors' names of weights beside ours.

Experts stand in the order of their sorted names in both. Theirs go by number, except for NetVLAD, where they have the
expert's name; ours go by number everywhere.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from emcl_train.weights.keys import require_keys
from emcl_train.weights.training_files import read_training_file

NAMES = (
    (r"weights\.", "ce.moe_fc."),
    (r"reduction\.(\d+)\.", r"ce.video_dim_reduce.\1.fc."),
    (r"gating\.pair\.first\.", "ce.g_reason_1."),
    (r"gating\.pair\.second_norm\.", "ce.g_reason_shared.0."),
    (r"gating\.pair\.second\.", "ce.g_reason_shared.2."),
    (r"gating\.pair\.third_norm\.", "ce.g_reason_shared.3."),
    (r"gating\.pair\.third\.", "ce.g_reason_shared.5."),
    (r"gating\.gates\.(\d+)\.own\.", r"ce.video_GU.\1.cg.fc."),
    (r"gating\.gates\.(\d+)\.mean_norm\.", r"ce.video_GU.\1.cg.batch_norm."),
    (r"gating\.gates\.(\d+)\.own_norm\.", r"ce.video_GU.\1.cg.batch_norm2."),
    (r"text_embeddings\.(\d+)\.embed\.", r"ce.text_GU.\1.fc."),
    (r"text_embeddings\.(\d+)\.gate\.", r"ce.text_GU.\1.cg.fc."),
    (r"text_embeddings\.(\d+)\.gate_norm\.", r"ce.text_GU.\1.cg.batch_norm."),
)
"""Beginnings of names: ours as a pattern, theirs. Those of NetVLAD follow below."""
OF_NETVLAD = (("assignment_norm.", "batch_norm."), ("assignment", "clusters"), ("centres", "clusters2"))
"""Inside a NetVLAD: ours, theirs. Their centres `clusters2` are `[1, D, K]`."""
DROPPED = ("ce.moe_fc_bottleneck1.", "ce.moe_cg.", "ce.moe_fc_proj.")
"""Beginnings of weights that old checkpoints have besides, which the specification says to drop."""


def read_ce(path: Path, model: Mapping[str, Tensor], experts: Sequence[str]) -> tuple[dict[str, Tensor], list[str]]:
    """A checkpoint of the authors as a state_dict of our model. Objects of their classes in it are not built.

    Args:
        path: `{arch, epoch, state_dict, monitor_best, config, optimizer}`, or a state_dict alone.
        model: state_dict of our model, which says what to expect.
        experts: names of the model's experts, sorted.

    Returns:
        The weights under our names; the names of what old checkpoints have too much, which was dropped.

    Raises:
        UserError: the file cannot be read; or weights are missing, unknown or of another shape, and they are named.
    """
    return ce_from_authors(read_training_file(path), model, experts, source=str(path))


def ce_from_authors(
    found: Mapping[str, Tensor], model: Mapping[str, Tensor], experts: Sequence[str], *, source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights by the authors' names as a state_dict of our model; see `read_ce`."""
    dropped = sorted(name for name in found if name.startswith(DROPPED))
    kept = {name: value for name, value in found.items() if not name.startswith(DROPPED)}

    expected = ce_to_authors(model, experts)
    require_keys(
        kept,
        {name: value.shape for name, value in expected.items()},
        source=source,
        way_out="Use a checkpoint of Collaborative Experts that was trained on these experts, at these sizes",
    )
    names = _names(model, experts)
    return {ours: kept[theirs].reshape(model[ours].shape) for ours, theirs in names.items()}, dropped


def ce_to_authors(state: Mapping[str, Tensor], experts: Sequence[str]) -> dict[str, Tensor]:
    """Our model's state_dict by the authors' names.

    Args:
        state: the state_dict.
        experts: names of the model's experts, sorted.
    """
    names = _names(state, experts)
    return {
        theirs: state[ours].unsqueeze(0) if theirs.endswith(".clusters2") else state[ours]
        for ours, theirs in names.items()
    }


def _names(ours: Iterable[str], experts: Sequence[str]) -> dict[str, str]:
    """The authors' name of each of our weights."""
    return {name: _name(name, experts) for name in ours}


def _name(ours: str, experts: Sequence[str]) -> str:
    if pooling := re.match(r"(?:pooling\.(\d+)|text_pooling)\.", ours):
        expert = pooling[1]
        start = "text_pooling." if expert is None else f"pooling.{experts[int(expert)]}."
        inside = ours[pooling.end() :]
        for of_ours, of_theirs in OF_NETVLAD:
            if inside.startswith(of_ours):
                return start + of_theirs + inside.removeprefix(of_ours)

    for pattern, theirs in NAMES:
        if fits := re.match(pattern, ours):
            return fits.expand(theirs) + ours[fits.end() :]
    raise KeyError(f"{ours} has no name in the authors' layout; give it one in NAMES")
