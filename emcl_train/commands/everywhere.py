"""Flags that stand with several commands and are no setting of any: `--device` and `--dry-run`."""

from emcl_train.device import use_device
from emcl_train.errors import UserError

COMPUTING = ("train", "resume", "eval", "embed", "index", "search", "serve")
"""Commands that take `--device`."""
PLANNED = ("train", "resume", "embed", "refine", "data compress")
"""Commands that take `--dry-run`."""
WITHOUT_A_FILE = ("train", "resume", "completion")
"""Commands whose options stand in no file of theirs: the settings of a run have one of their own."""
CONFIG, PRINT_CONFIG = "--config", "--print-config"
"""A file with a command's options, and its printing."""
EVERYWHERE = ("--debug", "--no-lock", "--quiet")
"""Flags of every command."""
DEVICE, DRY_RUN = "--device", "--dry-run"

_dry_run = False


def is_dry_run() -> bool:
    """Whether the command at hand is to write nothing."""
    return _dry_run


def without_flags(arguments: list[str]) -> list[str]:
    """The arguments without these flags, which are in force from now on.

    Raises:
        UserError: the command takes no such flag, or its value is none.
    """
    global _dry_run
    rest, device, dry_run = _apart(arguments)
    word = " ".join(rest[:2]) if rest[:1] == ["data"] else "".join(rest[:1])
    for flag, given, takes in ((DEVICE, device is not None, COMPUTING), (DRY_RUN, dry_run, PLANNED)):
        if given and word not in takes:
            raise UserError(f"{word or 'emcl-train'} takes no {flag}; {', '.join(takes)} do")
    use_device(device)
    _dry_run = dry_run
    return rest


def word_of(arguments: list[str]) -> str:
    """The command's first word, wherever these flags and those of every command stand; "" if there is none."""
    rest, _, _ = _apart([argument for argument in arguments if argument not in EVERYWHERE])
    return "".join(rest[:1])


def also_taken(command: str) -> str:
    """What the help of a command says of these flags and of those of every command."""
    flags = [DEVICE] if command in COMPUTING else []
    flags += [DRY_RUN] if command in PLANNED else []
    flags += [CONFIG, PRINT_CONFIG] if command not in WITHOUT_A_FILE else []
    return f"Also: {', '.join([*flags, *EVERYWHERE])}; `emcl-train --help` says what they do."


def _apart(arguments: list[str]) -> tuple[list[str], str | None, bool]:
    """The arguments without `--device` and `--dry-run`, and what these say."""
    rest: list[str] = []
    device = None
    dry_run = False
    left = iter(arguments)
    for argument in left:
        name, equals, value = argument.partition("=")
        if name == DEVICE:
            device = value if equals else next(left, "")
        elif argument == DRY_RUN:
            dry_run = True
        else:
            rest.append(argument)
    return rest, device, dry_run
