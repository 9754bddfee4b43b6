"""`--config FILE` and `--print-config` of the commands that are no training: a command's options as a file.

The file has the names of the command's own flags, nested or dotted, as YAML or JSON. Flags that are typed win.
(`train` has settings of a run in its file: settings_file.py.)
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any

from emcl_train.commands.entry import Option, named, no_form, options_of
from emcl_train.commands.everywhere import CONFIG, PRINT_CONFIG
from emcl_train.errors import UserError
from emcl_train.runs.machine import is_first_process

OF_THE_RECIPE = "recipe"
"""In a file that `train --print-config` printed, which `embed` takes too: the word behind the command."""


def with_file(command: str, targets: Sequence[Any], arguments: list[str]) -> list[str]:
    """The arguments of a command with the options of the file behind `--config` in its place.

    Args:
        command: its words.
        targets: what its options are made of.
        arguments: what follows the command's words.

    Raises:
        UserError: there is no such file, or it has an option that there is not.
    """
    rest, path = _apart(arguments)
    if path is None:
        return arguments

    from emcl_train.commands.settings_file import read_tree

    options: dict[str, Option] = {}
    for target in targets:
        options |= options_of(target)
    flags = {".".join(option.place[1:]): flag for flag, option in options.items() if len(option.place) > 1}
    flags |= {_name(flag): flag for flag in options}
    found = _flattened(read_tree(path, way_out(command)))
    if command == "embed" and (recipe := found.pop(OF_THE_RECIPE, None)) not in (None, *rest[:1]):
        raise UserError(f"{path} has options of the recipe {recipe}; pass that one, or take out the line `recipe`")

    # Those that are typed stand alone; the others go behind what the command takes without a flag.
    typed = named(rest)
    extra: list[str] = []
    for name, value in found.items():
        flag = flags.get(name)
        if flag is None:
            raise UserError(
                f"{path} has {name!r}, which `{command}` has not{_closest(name, flags)}; {way_out(command)}"
            )
        if not {flag, no_form(flag)} & typed:
            extra += _as_arguments(flag, options[flag], value, path)
    begin = next((place for place, one in enumerate(rest) if one.startswith("--")), len(rest))
    return [*rest[:begin], *extra, *rest[begin:]]


def way_out(command: str) -> str:
    """How to get a file that is right."""
    return f"`emcl-train {command} ... --print-config` prints a whole one"


def as_file(target: Any, values: Any) -> str:
    """The options of a command as a file for `--config`.

    Args:
        target: what the options are made of.
        values: an object of that class, or the arguments of that function by their names.
    """
    from emcl_train.commands.settings_file import dumped

    tree: dict[str, Any] = {}
    for flag, option in options_of(target).items():
        *groups, last = _name(flag).split(".")
        section = tree
        for group in groups:
            section = section.setdefault(group, {})
        section[last] = _value_at(values, option.place)
    return dumped(tree)


def without_print_config(arguments: list[str]) -> tuple[list[str], bool]:
    """The arguments without `--print-config`, and whether it was among them."""
    rest = [argument for argument in arguments if argument != PRINT_CONFIG]
    return rest, len(rest) < len(arguments)


def print_file(target: Any, values: Any) -> int:
    """Print the options of a command as a file for `--config`. Returns the exit code."""
    if is_first_process():
        print(as_file(target, values), end="")
    return 0


def collecting(function: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """A function of the same parameters that gives its arguments by their names."""

    @wraps(function)
    def collect(*given: Any, **named: Any) -> dict[str, Any]:
        bound = signature(function).bind(*given, **named)
        bound.apply_defaults()
        return dict(bound.arguments)

    return collect


def _value_at(values: Any, place: Sequence[str]) -> Any:
    for name in place:
        values = values[name] if isinstance(values, Mapping) else getattr(values, name)
    return values


def _apart(arguments: list[str]) -> tuple[list[str], Path | None]:
    """The arguments without `--config`, and its file.

    Raises:
        UserError: no file follows it.
    """
    rest: list[str] = []
    path = None
    left = iter(arguments)
    for argument in left:
        name, equals, value = argument.partition("=")
        if name != CONFIG:
            rest.append(argument)
            continue
        value = value if equals else next(left, "")
        if not value or value.startswith("--"):
            raise UserError("--config needs a file behind it, such as --config options.yaml")
        path = Path(value)
    return rest, path


def _flattened(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted names."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}".replace("-", "_")
        found |= _flattened(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def _as_arguments(flag: str, option: Option, value: Any, path: Path) -> list[str]:
    """What a user would have typed for a value."""
    if option.kind is bool:
        if not isinstance(value, bool):
            raise UserError(f"{path}: {_name(flag)} is {value!r}, expected true or false")
        return [flag if value else no_form(flag)]
    if isinstance(value, list):
        return [flag, *map(str, value)]
    return [f"{flag}={value}"]


def _name(flag: str) -> str:
    """What a file calls the option of a flag.

    Examples:
        >>> _name("--data.cache-frames")
        'data.cache_frames'
    """
    return flag.removeprefix("--").replace("-", "_")


def _closest(name: str, known: Mapping[str, str]) -> str:
    """The option that may have been meant, as the end of a sentence; "" if none is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""
