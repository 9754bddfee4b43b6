"""Settings of a run as a file: what `--print-config` prints, and what `--config` takes.

YAML is read by its rules of 1.2: `off` and `no` are texts, as `emcl.mode` has them, and `1e-3` is a number. Anchors,
and values that make Python objects, are refused.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from emcl_train.config import RunConfig, but_for_its_cache, flattened
from emcl_train.errors import UserError
from emcl_train.reading.plain_files import parse_json, read_regular
from emcl_train.recipes import in_mode, load_recipe
from emcl_train.runs.contents import CONFIG, load_config, with_settings
from emcl_train.runs.files import as_json
from emcl_train.runs.likeness import like_of, unlike

LARGEST = 256 * 1024
"""Bytes of a file of settings; all settings with their values have about 4 000."""
WAY_OUT = "`emcl-train train RECIPE --print-config` prints a whole file"
OF_A_MODE = ("emcl.", "train.loss", "train.top_k", "train.max_steps", "experts.gated_video", "eval.em_block")
"""Beginnings of the names of settings that `emcl.mode` brings along."""
NULL = ("", "~", "null", "Null", "NULL", "None")
NUMBER = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)
INT = re.compile(r"[-+]?[0-9]+$")
BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)$")


class _Loader(yaml.SafeLoader):
    """Safe, by the rules of YAML 1.2, without anchors, and with each name once."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (as the base class has it)

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.YAMLError("it has an anchor (& or *), which settings do not need")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        for name in names:
            if names.count(name) > 1:
                raise yaml.YAMLError(f"{name!r} stands there twice")
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what readers of either version of YAML would take for something else than a text."""


for _tag, _pattern, _first in (
    ("bool", BOOL, "tTfF"),
    ("int", INT, "-+0123456789"),
    ("float", NUMBER, "-+.0123456789"),
    ("null", re.compile("(?:" + "|".join(map(re.escape, NULL)) + ")$"), ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, list(_first))  # type: ignore[no-untyped-call]
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, list(_first))  # type: ignore[no-untyped-call]


def as_yaml(config: RunConfig) -> str:
    """All settings as a file for `--config`."""
    return dumped(asdict(config))


def dumped(tree: dict[str, Any]) -> str:
    """Settings by their names as YAML."""
    text: str = yaml.dump(as_json(tree), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return text


def read_tree(path: Path, way_out: str = WAY_OUT) -> dict[Any, Any]:
    """What a file of settings holds, YAML or JSON.

    Raises:
        UserError: it cannot be read, or holds something else than names with values.
    """
    try:
        text = read_regular(path, LARGEST).decode("utf-8")
        tree = parse_json(text) if path.suffix == ".json" else yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as settings: {reason}; {way_out}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold settings by their names, got {_named(tree)}; {way_out}")
    return tree


def recipe_in(path: Path) -> str:
    """The recipe that a file of settings is of.

    Raises:
        UserError: it names none.
    """
    if run := run_of_settings(path):
        return load_config(run).recipe
    recipe = read_settings(path).get("recipe")
    if recipe is None:
        raise UserError(f"{path} names no recipe; add a line such as `recipe: jsonl`, or pass one before --config")
    return str(recipe)


def with_file(path: Path, base: RunConfig) -> RunConfig:
    """A configuration with the settings of a file in place of its own.

    Args:
        path: YAML or JSON; or a run's folder or config.json, of which everything is taken but its place for a cache,
            which a stranger may have named, and `out`, which is where the run lies.
        base: for settings that the file does not have.

    Raises:
        UserError: the file cannot be read, or has a setting that there is not, or a value of another kind.
    """
    if run := run_of_settings(path):
        return replace(but_for_its_cache(load_config(run)), out=run, resume=False)

    settings = read_settings(path)
    return with_settings(in_mode(base, settings.get("emcl.mode", base.emcl.mode)), settings)


def but_for_the_mode(path: Path, recipe: str) -> dict[str, Any]:
    """The settings in a file by their dotted names, but for `emcl.mode` and what it brings along.

    Of a run these are none: `in_mode` knows what of its settings was chosen.

    Args:
        path: as of `with_file`.
        recipe: whose settings they are.
    """
    if run_of_settings(path) is not None:
        return {}

    # Where the file names a mode, values that the recipe gives in it are not said for another one.
    found = read_settings(path)
    mode = found.pop("emcl.mode", None)
    brought: dict[str, Any] = {}
    if mode is not None:
        of_mode = flattened(asdict(in_mode(load_recipe(recipe), mode)))
        brought = {name: of_mode[name] for name in of_mode if name.startswith(OF_A_MODE)}
    return {name: value for name, value in found.items() if name not in brought or brought[name] != value}


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a file by their dotted names, each of the kind that it is in a configuration."""
    tree = read_tree(path)
    kinds = _kinds(RunConfig)
    found = _flattened(tree, kinds, path)
    for name, value in found.items():
        if wrong := unlike(value, like_of(kinds[name]), name):
            raise UserError(f"{path}: {wrong}; {WAY_OUT}")
        try:
            found[name] = _of_kind(kinds[name], value)
        except UserError as error:
            raise UserError(f"{path}: {name}: {error}; {WAY_OUT}") from None
    if "recipe" in found:
        load_recipe(found["recipe"])
    return found


def run_of_settings(path: Path) -> Path | None:
    """The run's folder, if a path is that or its configuration."""
    folder = path.parent if path.name == CONFIG else path
    return folder if (folder / CONFIG).is_file() else None


def _kinds(kind: Any, prefix: str = "") -> dict[str, Any]:
    """Every setting's type by its dotted name."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        found |= _kinds(hint, f"{prefix}{name}.") if is_dataclass(hint) else {f"{prefix}{name}": hint}
    return found


def _flattened(tree: Mapping[Any, Any], kinds: Mapping[str, Any], path: Path, prefix: str = "") -> dict[str, Any]:
    """Values by dotted names. A file may nest them or write `train.lr: 1e-3`."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}".replace("-", "_")
        is_section = any(known.startswith(f"{name}.") for known in kinds)
        if name not in kinds and not is_section:
            raise UserError(f"{path} has a setting {name!r}, which there is not{_closest(name, kinds)}; {WAY_OUT}")
        if is_section and not isinstance(value, dict):
            raise UserError(f"{path}: {name} is {_named(value)}, expected settings by their names; {WAY_OUT}")
        more = _flattened(value, kinds, path, f"{name}.") if is_section else {name: value}
        if twice := sorted(found.keys() & more.keys()):
            raise UserError(f"{path} has {twice[0]} twice; leave one of them")
        found |= more
    return found


def _closest(name: str, known: Mapping[str, Any]) -> str:
    """The name that may have been meant, as the end of a sentence; "" if none is near."""
    near = difflib.get_close_matches(name, known, n=1)
    last = name.rpartition(".")[2]
    near = near or [one for one in known if one.rpartition(".")[2] == last][:1]
    near = near or difflib.get_close_matches(last, [one.rpartition(".")[2] for one in known], n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _of_kind(kind: Any, value: Any) -> Any:
    """A value of a file as a configuration has it: paths, tuples and numbers with a point are not JSON's own."""
    if value is None:
        return None
    kinds = get_args(kind) or (kind,)
    if kind is Path or Path in kinds:
        return Path(value)
    if isinstance(value, list) and str in get_args(next((one for one in kinds if get_args(one)), None)):
        return tuple(value)
    if isinstance(value, list):
        if len(value) != len(kinds):
            raise UserError(f"expected {len(kinds)} numbers, got {len(value)}")
        return tuple(map(float, value))
    return float(value) if float in kinds and not isinstance(value, bool) else value


def _named(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
