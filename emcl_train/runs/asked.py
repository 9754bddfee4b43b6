"""An evaluation of a run folder: which weights it is of, and where its figures go without replacing others."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from emcl_train.config import RunConfig
from emcl_train.errors import UserError
from emcl_train.runs.checksums import TRIES, identity_of
from emcl_train.runs.contents import RESULTS, WEIGHTS
from emcl_train.runs.evaluations import Figures, place_for, set_aside, what_differs
from emcl_train.runs.files import require_free
from emcl_train.runs.finished import epoch_of_weights, is_finished, weights_so_far
from emcl_train.runs.lock import making, writing
from emcl_train.runs.origin import origin_of_run
from emcl_train.runs.records import selection_of
from emcl_train.runs.state import read_weights
from emcl_train.terminal import escaped, say


@dataclass(frozen=True)
class Selected:
    """The weights of a run, and what its records say of them."""

    weights: dict[str, Tensor]
    selection: str
    unfinished: str
    """Which weights they are if the training has not ended, else ""."""
    origin: dict[str, Any]
    """Fingerprint and step of the weights, and the code that measures them."""

    @property
    def notes(self) -> list[str]:
        """What figures of them say of a run that is not finished."""
        return [f"The run was not finished: its weights were those of {self.unfinished}."] if self.unfinished else []


@dataclass(frozen=True)
class Asked:
    """An evaluation of a run folder: the run's own settings, and those that are asked for."""

    run_dir: Path
    own: RunConfig
    config: RunConfig
    selected: Selected
    split: Literal["val", "test"]
    from_features: Path | None = None


def selected_weights(run_dir: Path, *, ends_training: bool) -> Selected:
    """The weights and what belongs to them: a training that goes on meanwhile may replace them in between.

    Args:
        run_dir: the run's folder.
        ends_training: whether its training asks, which ends with these figures.

    Raises:
        UserError: the weights are not there, damaged, or replaced again and again.
    """
    path = run_dir / WEIGHTS
    for _ in range(TRIES):
        before = identity_of(path) if path.is_file() else None
        weights = read_weights(run_dir)
        selection = selection_of(run_dir, up_to=epoch_of_weights(run_dir))
        unfinished = "" if ends_training or is_finished(run_dir) else weights_so_far(run_dir)
        origin = origin_of_run(run_dir, weights)
        if identity_of(path) == before:
            return Selected(weights, selection, unfinished, origin)
    raise UserError(f"the weights of {run_dir} are replaced again and again; wait until its training has ended")


def locked(run_dir: Path, out: Path | None, *, ends_training: bool) -> AbstractContextManager[Any]:
    """Keep others out of the folder that an evaluation writes. A training that ends has it already."""
    if out is not None:
        return making(out)
    return nullcontext() if ends_training else writing(run_dir, deep=True)


def keep(asked: Asked, figures: Figures, *, out: Path | None, ends_training: bool) -> Path:
    """Write figures where they replace no others.

    Args:
        asked: what was evaluated.
        figures: what came of it.
        out: the folder, which must not exist; None: that of the run, or one inside it.
        ends_training: the run's folder is for these figures; what lies there moves aside.

    Returns:
        The folder that they lie in.
    """
    if out is not None:
        require_free(out)  # again: another program may have been quicker
        folder = out
    elif ends_training:
        folder = _clear(asked.run_dir, figures)
    else:
        folder = _place(asked, figures)
    figures.write(asked.run_dir, folder, asked.config, new=out is not None)
    return folder


def say_if_of_no_end(asked: Asked, folder: Path) -> None:
    """Say whose figures they are where a run is not finished."""
    if asked.selected.unfinished:
        say(
            f"{escaped(asked.run_dir)} is not finished: these are figures of {asked.selected.unfinished}, and lie in "
            f"{escaped(folder)}; its own will be in its folder when its training has ended"
        )


def _clear(run_dir: Path, figures: Figures) -> Path:
    """The run's folder, from which other figures have moved aside."""
    if (moved := set_aside(run_dir, figures.results)) is not None:
        say(f"figures of an earlier evaluation are now in {escaped(moved)}")
    return run_dir


def _place(asked: Asked, figures: Figures) -> Path:
    """The folder for figures that replace no others."""
    again = "again" if asked.from_features is None else f"from-features-{asked.from_features.resolve().name}"
    different = what_differs(asked.own, asked.config, asked.split)
    if asked.selected.unfinished:
        weights = f"unfinished-{asked.selected.unfinished.partition(' of ')[0].replace(' ', '-')}"
        different = "_".join(filter(None, [weights, different]))
    folder, other = place_for(figures.results, asked.run_dir, different, again)
    if other is not None:
        say(
            f"[yellow]warning:[/yellow] the figures are not those in {escaped(other / RESULTS)}, which stays "
            f"as it is; these are in {escaped(folder)}"
        )
    return folder
