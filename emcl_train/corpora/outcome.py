"""What one call of embed has done for a corpus, for people and for programs."""

import json
from dataclasses import dataclass, field
from typing import Any

from emcl_train.corpora.plan import Asked
from emcl_train.data.annotation_files import count
from emcl_train.runs.files import write_text_atomic
from emcl_train.search.outcome import SHOWN
from emcl_train.terminal import console_of, escaped, warn
from emcl_train.tools.shards import Shards, name_of

DAMAGED = "damaged.jsonl"
"""Lists the clips of all shards that cannot be decoded, when all are there."""


@dataclass
class Report:
    """What was done, and what there is now."""

    written: list[int] = field(default_factory=list)
    """Shards that this call has made."""
    busy: list[int] = field(default_factory=list)
    """Shards that another process was making."""
    trouble: dict[int, str] = field(default_factory=dict)
    """Shards that could not be made this time, and why."""
    notes: list[str] = field(default_factory=list)
    shards: int = 0
    """Of the plan."""
    there: int = 0
    rows: int = 0
    damaged: dict[str, str] = field(default_factory=dict)
    """Clips that cannot be decoded and are in no shard."""

    def add(self, other: "Report") -> None:
        """Put together what several processes have done."""
        self.written += other.written
        self.busy += other.busy
        self.trouble |= other.trouble
        self.notes += other.notes

    def look(self, shards: Shards) -> None:
        """See what there is now, and list what is damaged when all is there."""
        self.shards = shards.count
        for number in range(shards.count):
            if shards.path(number).is_file():
                shard = shards.opened(number)
                self.there += 1
                self.rows += shard.rows
                self.damaged |= shard.damaged
        self.busy = [number for number in self.busy if not shards.path(number).is_file()]
        if self.there == self.shards:
            lines = [json.dumps({"id": key, "reason": why}, ensure_ascii=False) for key, why in self.damaged.items()]
            write_text_atomic(shards.folder / DAMAGED, "".join(f"{line}\n" for line in lines))

    @property
    def code(self) -> int:
        """Of the command's end."""
        return 1 if self.damaged or self.trouble else 0

    def as_json(self, asked: Asked) -> dict[str, Any]:
        """For programs."""
        return {
            "out": str(asked.out),
            "shards": self.shards,
            "there": self.there,
            "written": len(self.written),
            "rows": self.rows,
            "damaged": self.damaged,
            "trouble": {name_of(number): why for number, why in self.trouble.items()},
            "notes": self.notes,
        }


def print_report(report: Report, asked: Asked) -> None:
    """Say what was done."""
    console = console_of()
    for note in report.notes:
        warn(escaped(note), console)
    for key, why in list(report.damaged.items())[:SHOWN]:
        warn(f"[red]{escaped(key)} cannot be decoded and is left out: {escaped(why)}[/red]", console)
    if len(report.damaged) > SHOWN:
        warn(
            f"[red]and {len(report.damaged) - SHOWN} more; {DAMAGED} in {escaped(asked.out)} lists them[/red]", console
        )
    for number, why in list(report.trouble.items())[:SHOWN]:
        warn(f"[yellow]{name_of(number)} could not be made this time: {escaped(why)}[/yellow]", console)
    left = report.shards - report.there
    parts = [
        f"{count(report.there, 'shard')} of {report.shards}",
        f"{len(report.written)} of them made now",
        count(report.rows, "row"),
    ]
    if report.busy:
        parts.append(f"{count(len(report.busy), 'shard')} in the hands of other processes")
    if left > len(report.busy):
        parts.append("run the command again to go on")
    console.print(f"{escaped(asked.out)}: {', '.join(parts)}", soft_wrap=True, highlight=False)
