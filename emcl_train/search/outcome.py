"""What one call of index has done, for people and for programs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emcl_train.data.annotation_files import count
from emcl_train.terminal import console_of, escaped, warn

SHOWN = 10
"""Files that are named one by one."""


@dataclass
class Report:
    """What one call of index has done."""

    added: int = 0
    moved: int = 0
    """Files whose content was there already, under another name."""
    removed: int = 0
    unchanged: int = 0
    moments: int = 0
    """Embedded now."""
    seconds: float = 0.0
    """Of film that was embedded."""
    damaged: dict[Path, str] = field(default_factory=dict)
    trouble: dict[Path, str] = field(default_factory=dict)
    """Files that could not be read this time."""
    outside: list[Path] = field(default_factory=list)
    kept: dict[Path, int] = field(default_factory=dict)

    def add(self, other: "Report") -> None:
        """Put together what several processes have done."""
        self.added += other.added
        self.moments += other.moments
        self.seconds += other.seconds
        self.damaged |= other.damaged
        self.trouble |= other.trouble

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        names = ("added", "moved", "removed", "unchanged", "moments", "seconds")
        return {
            **{name: getattr(self, name) for name in names},
            **{
                name: {_text(path): why for path, why in getattr(self, name).items()} for name in ("damaged", "trouble")
            },
            "outside": [_text(path) for path in self.outside],
            "kept": {_text(path): number for path, number in self.kept.items()},
        }


def _text(path: Path) -> str:
    """A path as text; bytes of a name that is not UTF-8 are shown as such."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def print_report(report: Report, out: str, moments: int) -> None:
    """Say what was done."""
    console = console_of()
    for path, why in list(report.damaged.items())[:SHOWN]:
        warn(f"[red]{escaped(path)} cannot be decoded and is left out: {escaped(why)}[/red]", console)
    if len(report.damaged) > SHOWN:
        warn(
            f"[red]and {len(report.damaged) - SHOWN} more: `emcl-train search {escaped(out)} --damaged`[/red]",
            console,
        )
    for path, why in list(report.trouble.items())[:SHOWN]:
        warn(f"[yellow]{escaped(path)} could not be read this time: {escaped(why)}[/yellow]", console)
    if report.outside:
        warn(
            f"[yellow]{count(len(report.outside), 'link')} out of the folder left out, such as "
            f"{escaped(report.outside[0])}[/yellow]",
            console,
        )
    for root, number in report.kept.items():
        warn(
            f"[yellow]{escaped(root)} is not there, or has no video any more, as where a disk is not mounted; "
            f"{count(number, 'file')} of it stay. If they are gone for good: --forget[/yellow]",
            console,
        )
    done = [
        f"{count(number, 'file')} {what}"
        for number, what in (
            (report.added, "added"),
            (report.moved, "moved or copied"),
            (report.removed, "removed"),
            (report.unchanged, "as before"),
            (len(report.damaged), "damaged"),
        )
        if number
    ]
    console.print(
        f"{escaped(out)}: {', '.join(done) or 'nothing to do'}; {count(moments, 'moment')}",
        soft_wrap=True,
        highlight=False,
    )
