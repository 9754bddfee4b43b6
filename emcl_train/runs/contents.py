"""What a run folder holds: the names of its files, its configuration, and whether a run may start there.

Nothing here needs torch.
"""

import copy
import os
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from emcl_train.config import BEFORE, DEFAULTS_BEFORE, RECIPES_BEFORE, RunConfig, differing_settings, flattened
from emcl_train.errors import UserError
from emcl_train.recipes import RECIPES
from emcl_train.runs.files import JOURNAL, PARTIAL, json_if_whole, read_json, write_json_atomic
from emcl_train.runs.likeness import like_of, unlike
from emcl_train.runs.lock import RECORD, require_quiet, settle
from emcl_train.runs.places import SEED_FOLDER, STATE_FOLDER

CONFIG, ENVIRONMENT, METRICS = "config.json", "environment.json", "metrics.jsonl"
CLIP_CONFIG = "clip_config.json"
"""Of the towers, in transformers' format: a run is evaluated without the checkpoint that it started from."""
BERT_CONFIG = "bert_config.json"
"""Of MMT's text side, likewise."""
TOKENIZER = "tokenizer.json"
WEIGHTS, STATE = "model.safetensors", f"{STATE_FOLDER}/latest.pt"
FEATURES = "features.json"
"""What a folder of features is known by, and what made them."""
RESULTS, QUERIES, EMBEDDINGS, REPORT = "results.json", "queries.json", "embeddings.safetensors", "report.html"
ANSWERS = "answers.json"
"""Of a run that answers questions: each with its right answer, and those that the model gave."""
FINISHED = "finished.json"
"""Written when a run's training has ended and its figures are there."""
SEEDS = "seeds.json"
"""In a folder of runs with different seeds, how many there are to be, and which is the first."""
EVALUATION = "evaluation.json"
"""In each folder of an evaluation with other settings, the file that names the run."""

WRITTEN_BEFORE_TRAINING = {CONFIG, ENVIRONMENT, CLIP_CONFIG, BERT_CONFIG, TOKENIZER}
"""A folder with these alone is of a run that ended before its first step, for want of a clip or a checkpoint. It is
nothing to protect."""
OF_TRAINING = (CONFIG, ENVIRONMENT, METRICS)
"""Records of a training that a report reads; an evaluation in a folder of its own has copies of them."""
OF_EVALUATION = (RESULTS, QUERIES, EMBEDDINGS)
"""What an evaluation writes and a report reads."""
OF_ANSWERING = (RESULTS, ANSWERS)
"""The same of a run that answers questions."""


OF_A_RUN = (CONFIG, ENVIRONMENT, METRICS, CLIP_CONFIG, TOKENIZER, WEIGHTS, STATE, *OF_EVALUATION, REPORT)
"""Files that earlier versions wrote under a name that could be known, `.NAME.partial`, before they were whole."""


def remove_partial_files(run_dir: Path) -> None:
    """What a killed training of an earlier version was about to write; `writing` removes what this one was."""
    for name in OF_A_RUN:
        path = run_dir / name
        partial = path.with_name(f".{path.name}.partial")
        if partial.is_file() and not partial.is_symlink():
            partial.unlink(missing_ok=True)


def save_config(run_dir: Path, config: RunConfig) -> None:
    write_json_atomic(run_dir / CONFIG, asdict(config))


def seed_folders(path: Path) -> list[Path]:
    """The run folders in a folder of seeds, by seed; none where `path` is no such folder."""
    found = [entry for entry in path.iterdir() if SEED_FOLDER.fullmatch(entry.name)] if path.is_dir() else []
    return sorted(found, key=lambda entry: int(entry.name.removeprefix("seed-")))


def planned_seeds(path: Path) -> tuple[int, int]:
    """The first seed of a folder of seeds, and how many there are to be; of an older folder, those that are there."""
    there = [int(folder.name.removeprefix("seed-")) for folder in seed_folders(path)]
    first, seeds = there[0], there[-1] - there[0] + 1
    record = json_if_whole(path / SEEDS)
    planned = record if isinstance(record, dict) else {}
    if type(planned.get("first")) is int and type(planned.get("seeds")) is int and 1 <= planned["seeds"] <= 10**6:
        first, seeds = planned["first"], planned["seeds"]
    return first, seeds


def require_run(run_dir: Path) -> None:
    """Raise a UserError unless a folder holds one run; of a folder of runs it names these."""
    way_out = "pass the --out folder of `emcl-train train`"
    if not run_dir.is_dir():
        what = "it is a file" if run_dir.exists() else "no such folder"
        raise UserError(f"{run_dir} is not a run folder: {what}; {way_out}")
    if (run_dir / CONFIG).is_file():
        return
    if runs := seed_folders(run_dir):
        named = ", ".join(map(str, runs[:5])) + (f" and {len(runs) - 5} more" if len(runs) > 5 else "")
        raise UserError(f"{run_dir} holds {len(runs)} runs with different seeds; pass one of them: {named}")
    raise UserError(f"{run_dir} is not a run folder: it has no {CONFIG}; {way_out}")


def is_config_of_run(path: Path) -> bool:
    """Whether a file is the configuration of a run; that of a model in transformers' layout has the same name."""
    content = json_if_whole(path)
    return isinstance(content, dict) and "model_type" not in content and content.keys() >= {"recipe", "data", "model"}


def check_run_folder(config: RunConfig) -> None:
    """Raise a UserError where a run would be overwritten, there is none to go on with, or it has other settings.

    Another process that writes there is named before anything else is said.
    """
    out = config.out
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, expected a folder for the run; choose another one with --out")
    require_quiet(out, here=True)

    if not config.resume:
        if not may_begin(out):
            raise UserError(f"{out} already holds files; go on with that run by --resume, or choose another --out")
        return
    if not out.is_dir():
        raise UserError(f"there is no run to resume in {out}; leave out --resume to start one there")
    if not (out / CONFIG).exists():
        if names := _names_in(out):
            raise UserError(
                f"{out} holds {', '.join(sorted(names)[:5])} and no {CONFIG}, which says what the run there was "
                f"started with; copy it back, or start a new run with another --out"
            )
        return
    if different := differing_settings(load_config(out), as_started(config)):
        raise UserError(
            f"the run in {out} was started with other settings: {'; '.join(different)}; "
            f"resume with the same ones, or start a new run with another --out"
        )


def may_begin(out: Path) -> bool:
    """Whether a run may begin in a folder, which need not be there: nothing would be lost."""
    return _names_in(out) <= WRITTEN_BEFORE_TRAINING


def _names_in(out: Path) -> set[str]:
    """What a folder holds, besides what writers leave there for each other."""
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    return {name for name in names if name not in (RECORD, JOURNAL) and not PARTIAL.fullmatch(name)}


def load_config(run_dir: Path) -> RunConfig:
    """The configuration that a run was started with.

    Raises:
        UserError: the folder holds no run, or one that this version cannot read.
    """
    require_run(run_dir)
    settle(run_dir)
    path = run_dir / CONFIG
    what = "the configuration of a run"
    way_out = "train again"
    value = read_json(path, way_out, what=what)
    try:
        config: RunConfig = _from_json(RunConfig, value)
    except (TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as {what}: {error}; {way_out}") from error
    if wrong := unlike(value, like_of(RunConfig)):
        raise UserError(f"{path} cannot be read as {what}: {wrong}; {way_out}")

    return with_settings(config, _settings_before(value))


def as_started(config: RunConfig) -> RunConfig:
    """The configuration with which the run in `config.out` goes on.

    Settings that are younger than the run stay as they were when it was started, where the recipe's own value is asked
    for; one that was asked for by name stays, and is then found to differ. A run that begins keeps what was asked.
    """
    path = config.out / CONFIG
    if not (config.resume and path.is_file()):
        return config

    settings = flattened(asdict(config))
    usual = flattened(asdict(RECIPES[config.recipe]())) if config.recipe in RECIPES else {}
    saved = json_if_whole(path)
    before = _settings_before(saved)
    there = flattened(saved) if isinstance(saved, dict) else {}
    if before:
        changed = RECIPES_BEFORE.get(config.recipe, {})
        before |= {name: value for name, value in changed.items() if there.get(name) == value}
    before |= {name: value for name, value in DEFAULTS_BEFORE.items() if there.get(name) == value}
    return with_settings(config, {name: old for name, old in before.items() if settings[name] == usual.get(name)})


def kept_from_before(run_dir: Path) -> list[str]:
    """Settings that are younger than a run, whose old values it keeps in place of its recipe's, in words."""
    config = load_config(run_dir)
    if config.recipe not in RECIPES:
        return []
    usual = RECIPES[config.recipe]()
    before = _settings_before(json_if_whole(run_dir / CONFIG))
    return differing_settings(with_settings(usual, before), usual)


def _settings_before(saved: Any) -> dict[str, Any]:
    """The values of `BEFORE` for the settings that a config.json does not have."""
    there = flattened(saved) if isinstance(saved, dict) else {}
    return {name: value for name, value in BEFORE.items() if name not in there}


def with_settings(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """A configuration with other values for some settings, by their dotted names."""
    changed = copy.deepcopy(config)
    for name, value in settings.items():
        *sections, last = name.split(".")
        section: Any = changed
        for part in sections:
            section = getattr(section, part)
        setattr(section, last, value)
    return changed


def load_environment(run_dir: Path) -> dict[str, Any]:
    """What a run was started on; {} if that was not recorded.

    Raises:
        UserError: the file is damaged.
    """
    path = run_dir / ENVIRONMENT
    return dict(read_json(path, "copy it again, or train anew", keys=())) if os.path.lexists(path) else {}


def run_of(folder: Path) -> str | None:
    """The run that a folder of results is an evaluation of; None if it is no such folder."""
    record = json_if_whole(folder / EVALUATION)
    return str(record["run"]) if isinstance(record, dict) and "run" in record else None


def _from_json(kind: Any, value: Any) -> Any:
    """Nested dataclasses, paths and tuples back from plain JSON values."""
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        unknown = value.keys() - {field.name for field in fields(kind)}
        if unknown:
            raise TypeError(f"{kind.__name__} has no field {sorted(unknown)[0]!r}")
        return kind(**{name: _from_json(hints[name], entry) for name, entry in value.items()})
    if kind is Path or (value is not None and Path in get_args(kind)):
        return Path(value)
    return tuple(value) if isinstance(value, list) else value
