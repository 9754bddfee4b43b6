"""What training programs put around weights: dicts beside other things, and beginnings of names.

A checkpoint is taken apart only where there is one answer. Of several sets of weights, such as a model and its moving
average, none is chosen, since each would give other figures.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from emcl_train.errors import UserError
from emcl_train.reading.pickles import Visits

BEFORE_ALL_NAMES = ("module.", "model.")
"""What DataParallel, DeepSpeed and Lightning put before names. Models have such names too, so all must share it."""
INSIDE_NAMES = re.compile(
    r"(?:(?<=\.)|^)(?:_orig_mod|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
"""What torch.compile, Lightning, FSDP and recomputed layers put into names, wherever they wrap; no model has these."""
NO_WEIGHTS = re.compile(r"(?i).*(optim|sched|scaler).*|opt|rng.*")
"""Keys of what a program keeps to go on with training: it may hold tensors under the weights' names."""
COUNTERS = ("n_averaged", "epoch", "step", "global_step", "iteration")
"""Tensors of one number that programs put among the weights: they count, and are of no layer."""
CHOSEN_BEFORE = ("state_dict", "model_state_dict", "model")
"""Keys that earlier versions took, in this order, whatever stood beside them."""
DEEPEST = 8


def unwrapped(content: Any, path: Path, *, goes_on: bool = False) -> dict[str, Tensor]:
    """The weights in what a file holds, without what was put around them and before their names.

    Args:
        content: of the file.
        path: named in errors.
        goes_on: whether a run goes on, which has chosen among several weights as earlier versions did.

    Raises:
        UserError: it holds no named tensors, or several models' weights.
        ValueError: its dicts refer to each other more often than the file has bytes.
    """
    visits = Visits(path.stat().st_size)
    found = dict(_weights_in(content, (), visits))
    if len(found) > 1 and goes_on:
        content = _chosen_before(content)
        found = dict(_weights_in(content, (), visits))

    if len(found) > 1:
        keys = ", ".join(".".join(place) or "its own top" for place in found)
        raise UserError(
            f"{path} holds weights {len(found)} times, under {keys}; which of them is meant is not guessed: save one "
            f"of them alone, by torch.save or as safetensors, and pass that file"
        )

    # Tensors without dots in their names are no model's, but the error that says so can name them.
    state = next(iter(found.values())) if found else _tensors(content)
    if not state:
        raise UserError(
            f"{path} holds no named tensors; pass a state_dict, saved by torch.save or as safetensors, or an archive"
        )
    weights = {name: value for name, value in state.items() if name not in COUNTERS or value.numel() != 1}
    return _plain_names(weights, path)


def _weights_in(
    content: Any, place: tuple[str, ...], visits: Visits
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Each dict that looks like a model's weights, by the keys that lead to it."""
    if not isinstance(content, dict) or len(place) > DEEPEST:
        return

    tensors = _tensors(content)
    if any("." in name for name in tensors):
        yield place, tensors
    for name, value in visits.each(iter(content.items())):
        # A checkpoint may hold itself, which would have no end.
        if (
            isinstance(name, str)
            and isinstance(value, dict)
            and value is not content
            and not NO_WEIGHTS.fullmatch(name)
        ):
            yield from _weights_in(value, (*place, name), visits)


def _tensors(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, dict):
        return {}
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _chosen_before(content: Any) -> Any:
    """What earlier versions took, where that was weights and nothing else; otherwise the content as it is."""
    chosen = content
    for name in CHOSEN_BEFORE:
        if isinstance(chosen, dict) and isinstance(chosen.get(name), dict):
            chosen = chosen[name]
    return chosen if chosen and all(isinstance(value, Tensor) for value in chosen.values()) else content


def _plain_names(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Weights without what wrappers put into their names, in any order and number."""
    names = {name: INSIDE_NAMES.sub("", name) for name in state}
    while prefix := next((prefix for prefix in BEFORE_ALL_NAMES if _all_begin(names, prefix)), None):
        names = {name: plain.removeprefix(prefix) for name, plain in names.items()}

    plain: dict[str, Tensor] = {}
    for name, value in state.items():
        if names[name] in plain:
            both = [one for one in names if names[one] == names[name]]
            raise UserError(
                f"{path} holds {names[name]} twice, as {' and '.join(both)}; which of them is meant is not guessed: "
                f"save the state_dict of the model without its wrapper, and pass that file"
            )
        plain[names[name]] = value
    return plain


def _all_begin(names: Mapping[str, str], prefix: str) -> bool:
    """Whether all names begin so, and none would be left without a name."""
    return bool(names) and all(plain.startswith(prefix) and plain != prefix for plain in names.values())
