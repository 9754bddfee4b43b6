"""What runs were started with that is not the same in all of them, of settings that matter and of where they ran."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emcl_train.config import flattened
from emcl_train.report.groups import Group
from emcl_train.report.settings import matters
from emcl_train.runs.folder import Run

OF_THE_MACHINE = {
    "packages.emcl": "emcl",
    "commit": "commit",
    "packages.torch": "torch",
    "device": "device",
    "processor": "processor",
    "processes": "processes",
    "threads": "threads",
}
"""What environment.json has of where a run was trained, and what a table calls it."""
ABSENT = "—"
SEED = "train.seed"


@dataclass(frozen=True)
class Differing:
    """A setting with its value in each run."""

    name: str
    values: tuple[str, ...]


def differing_settings_of(groups: Sequence[Group]) -> list[Differing]:
    """Settings that are not the same in all, if they change anything in one of them.

    Args:
        groups: runs, or runs of several seeds each, of which the seeds are one value.
    """
    runs = [group.curves[0] for group in groups]
    settings = [_settings(run) for run in runs]
    for group, own in zip(groups, settings, strict=True):
        own[SEED] = ", ".join(dict.fromkeys(str(run.config.train.seed) for run in group.curves))
    names = dict.fromkeys(name for own in settings for name in own)
    found = []
    for name in names:
        values = tuple(_shown(own.get(name), there=name in own) for own in settings)
        if len(set(values)) > 1 and any(matters(name, run.config) for run in runs):
            found.append(Differing(name, values))
    return found


def differing_machines(groups: Sequence[Group]) -> list[Differing]:
    """Where runs were trained on another machine or by other code, as far as their records say."""
    records = [flattened(group.curves[0].environment) for group in groups]
    found = []
    for key, name in OF_THE_MACHINE.items():
        values = tuple(_shown(record.get(key), there=key in record) for record in records)
        if len(set(values)) > 1:
            found.append(Differing(name, values))
    return found


def names_of(groups: Sequence[Group]) -> list[str]:
    """Short names of runs, which differ from each other: the last part of their paths, or as much as is needed."""
    paths = [group.path.resolve() for group in groups]
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = [str(Path(*path.parts[-parts:])) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{path.name} ({number})" for number, path in enumerate(paths, start=1)]


def _settings(run: Run) -> dict[str, Any]:
    """The settings of a run, and under "evaluated with" those of EMCL if it was measured with others."""
    settings = flattened(asdict(run.config))
    measured = run.results.get("emcl") or {}
    own = flattened({"emcl": asdict(run.config.emcl)})
    for name, value in flattened({"emcl": measured}).items():
        if name in own and str(own[name]) != str(value):
            settings[f"{name} (evaluated with)"] = value
    return settings


def _shown(value: Any, *, there: bool) -> str:
    return str(value) if there and value is not None else ABSENT
