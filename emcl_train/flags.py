"""How the command at hand takes a setting.

An error names a setting's flag by `flag("data.num_frames")`, which is `--data.num-frames` in training, and in another
command whatever that has for it. The command line says which command is at hand; without one it is training.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Command:
    """What a command takes."""

    flags: frozenset[str] | None = None
    """Its flags; None: one for every setting."""
    prefix: str = ""
    """Beginning of settings that its flags leave out: "eval." for a command that has --em-block."""
    positional: Mapping[str, str] = field(default_factory=dict)
    """Settings that it takes without a flag, as its help names them."""
    elsewhere: str = "{name} of `emcl-train train`"
    """What is said of all others."""


_at_hand = Command()


@contextmanager
def of_command(command: Command) -> Iterator[None]:
    """Let errors speak of this command's flags."""
    global _at_hand
    before, _at_hand = _at_hand, command
    try:
        yield
    finally:
        _at_hand = before


def flag(setting: str) -> str:
    """How the command at hand takes a setting, in the words of its help; where it does not, who does."""
    if setting in _at_hand.positional:
        return _at_hand.positional[setting]
    return _flag(setting) if takes(setting) else _at_hand.elsewhere.format(name=setting)


def takes(setting: str) -> bool:
    """Whether the command at hand has a flag, or a place, for a setting."""
    known = _at_hand.flags is None or _flag(setting) in _at_hand.flags
    return known or setting in _at_hand.positional


def again() -> str:
    """What to do when a cause is put right."""
    return f"go on with {flag('resume')}" if takes("resume") else "run the command again"


def _flag(setting: str) -> str:
    return "--" + setting.removeprefix(_at_hand.prefix).replace("_", "-")
