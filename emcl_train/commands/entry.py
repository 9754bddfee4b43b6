"""What a command is: its line in the help, and how its options are parsed."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from inspect import signature
from typing import Any, get_args, get_type_hints

import tyro

from emcl_train.commands.output import with_bare_json
from emcl_train.errors import UserError
from emcl_train.flags import Command, of_command
from emcl_train.runs.machine import process_count
from emcl_train.search.ways import STORES
from emcl_train.terminal import tell

OF_THE_RUN = "{name} in the run's config.json"


@dataclass(frozen=True)
class Entry:
    """One line of the program's help."""

    takes: str
    """What follows the command's words."""
    summary: str
    run: Callable[[list[str]], int]
    """Takes the arguments behind the command's words, and returns the exit code."""
    in_processes: bool = False
    """Whether several processes may share its work; else only one may be started."""
    library: Callable[[list[str]], str | None] = lambda arguments: None
    """Which of its arguments names a library, which may lie in an object store: a flag, or "" for the first without
    one, where words behind it are no files. None: none does."""
    place: str = "the library"
    """What that argument is called."""
    stores: tuple[str, ...] = STORES
    """How an address begins that it may be."""
    switches: frozenset[str] = frozenset()
    """Flags that take no value, where a library is named without one."""


def in_processes(work: Callable[[], int]) -> int:
    """Do a command's work in one process, or in those that a launcher has started; what ends one of them ends all."""
    if process_count() == 1:
        return work()

    from emcl_train.processes import agreed, joined

    with joined():
        return agreed(work)


def named(arguments: Sequence[str]) -> set[str]:
    """The flags among what a user typed."""
    return {argument.split("=")[0] for argument in arguments}


def asks_for_help(arguments: Sequence[str]) -> bool:
    return "--help" in arguments or "-h" in arguments


def after_a_word(
    run: Callable[[str, list[str]], int], missing: str, describe: Callable[[], None]
) -> Callable[[list[str]], int]:
    """A command whose first word decides the defaults of its options, so that it is read before they are parsed.

    Args:
        run: takes the word and the options.
        missing: said if the options come first.
        describe: prints the command's help where no word says whose defaults it has.
    """

    def call(arguments: list[str]) -> int:
        word = bool(arguments) and not arguments[0].startswith("-")
        if not word and not asks_for_help(arguments):
            raise UserError(missing)
        if not word:
            describe()
            return 0
        try:
            return run(arguments[0], arguments[1:])
        except UserError as error:
            if not asks_for_help(arguments):
                raise

            # Help is given whatever the word is, and what is wrong with it is said.
            describe()
            tell(f"error: {error}")
            return 1

    return call


def show_help(target: Any, default: Any, words: str, description: str) -> None:
    """Print the options that tyro makes of a dataclass.

    Args:
        target: the dataclass.
        default: one with the values that the help shows.
        words: the command and what follows it, such as "eval RUN".
        description: sentences above the options.
    """
    with suppress(SystemExit):
        tyro.cli(target, args=["--help"], default=default, prog=f"emcl-train {words}", description=description)


def of_function(name: str, function: Callable[..., int | None], **command: Any) -> Callable[[list[str]], int]:
    """A command whose options tyro makes of a function's parameters.

    Args:
        name: what users type.
        function: does the work; None stands for the exit code 0.
        command: how errors name settings, as fields of `Command`.
    """

    def call(arguments: list[str]) -> int:
        from emcl_train.commands.options_file import collecting, print_file, without_print_config

        arguments, prints = without_print_config(with_bare_json(arguments))
        with of_command(Command(flags_of(function), **command)):
            if prints:
                return print_file(function, tyro.cli(collecting(function), args=arguments, prog=f"emcl-train {name}"))
            return tyro.cli(function, args=arguments, prog=f"emcl-train {name}") or 0

    return call


def switches_of(function: Callable[..., Any]) -> frozenset[str]:
    """The flags of a command that take no value."""
    flags = flags_of(function)
    opposites = {flag for flag in flags if flag.startswith("--no-")}
    return frozenset(flag for flag in flags if flag in opposites or f"--no-{flag[2:]}" in opposites)


@dataclass(frozen=True)
class Option:
    """One of the options that tyro makes of a dataclass or of a function's parameters."""

    kind: Any
    """The type of its values."""
    place: tuple[str, ...]
    """The names that lead to its value: fields and parameters."""


def options_of(target: Any, prefix: str = "", place: tuple[str, ...] = ()) -> dict[str, Option]:
    """Every option by its flag, but for the `--no-` forms of switches.

    tyro has no lasting call for this: `tyro.extras.get_parser` is deprecated.
    """
    hints = get_type_hints(target, include_extras=True)
    names = [field.name for field in fields(target)] if is_dataclass(target) else list(signature(target).parameters)

    found: dict[str, Option] = {}
    for name in names:
        kind, *marks = get_args(hints[name]) if hasattr(hints[name], "__metadata__") else (hints[name],)
        if tyro.conf.Positional in marks or tyro.conf.Suppress in marks:
            continue

        # `arg(name=...)` renames the parameter, and `arg(prefix_name=False)` takes it out of its group.
        renamed = next((mark for mark in marks if hasattr(mark, "prefix_name")), None)
        own = name if renamed is None or renamed.name is None else renamed.name
        dotted = own if renamed is not None and renamed.prefix_name is False else f"{prefix}{own}"

        if is_dataclass(kind):
            found |= options_of(kind, f"{dotted}." if own else prefix, (*place, name))
        else:
            found["--" + dotted.replace("_", "-")] = Option(kind, (*place, name))
    return found


def flags_of(target: Any) -> frozenset[str]:
    """Every flag that tyro makes of a dataclass or of a function's parameters."""
    options = options_of(target)
    return frozenset(options) | {no_form(flag) for flag, option in options.items() if option.kind is bool}


def no_form(flag: str) -> str:
    """The form of a switch that turns it off.

    Examples:
        >>> no_form("--data.cache-frames")
        '--data.no-cache-frames'
    """
    *groups, last = flag.removeprefix("--").split(".")
    return "--" + ".".join([*groups, f"no-{last}"])
