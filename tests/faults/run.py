"""Try what goes wrong on real machines, count it, and say whether everything held. README.md has the parts.

run.py [--short] [--seed N] [--jobs N] [--without PART ...] [PART ...]
"""

import argparse
import importlib
import sys
import time
from pathlib import Path

from parts import CannotRun, Part, Size, Tried

HERE = Path(__file__).resolve().parent
LINES_OF_A_FAILURE = 40
WIDTH = 200


def found_parts() -> dict[str, Part]:
    """The parts of every `*_parts.py` of this folder, by their names."""
    parts: dict[str, Part] = {}
    for path in sorted(HERE.glob("*_parts.py")):
        for part in importlib.import_module(path.stem).PARTS:
            if part.name in parts:
                raise ValueError(f"{path.name}: there are two parts called {part.name}")
            parts[part.name] = part
    return parts


def try_out(part: Part, size: Size) -> list[Tried]:
    """A part's lines; each is printed once it is there."""
    print(f"== {part.name}: {part.about}", flush=True)
    lines: list[Tried] = []
    try:
        for tried in part.run(size):
            print(f"   {sentence(tried)}", flush=True)
            for failure in tried.failures:
                print_failure(failure)
            lines.append(tried)
    except CannotRun as why:
        print(f"   cannot run here: {why}", flush=True)
        lines.append(Tried(0, f"of {part.name}, which cannot run here", [str(why)]))
    return lines


def sentence(tried: Tried) -> str:
    verdict = f"{len(tried.failures)} DID NOT HOLD" if tried.failures else "held"
    count = f"{tried.count:,}".replace(",", " ")
    return f"{count} {tried.what}: {verdict}"


def print_failure(failure: str) -> None:
    """Its beginning; a sanitizer's report may be long."""
    lines = failure.rstrip().splitlines()
    for line in lines[:LINES_OF_A_FAILURE]:
        print(f"      {line[:WIDTH]}")
    if len(lines) > LINES_OF_A_FAILURE:
        print(f"      ... and {len(lines) - LINES_OF_A_FAILURE} lines more")
    sys.stdout.flush()


def main() -> int:
    parts = found_parts()
    parser = argparse.ArgumentParser(description="Try what goes wrong on real machines.")
    parser.add_argument("parts", nargs="*", metavar="PART", help="parts to run; all, if none is named")
    parser.add_argument("--short", action="store_true", help="a few minutes instead of a quarter of an hour")
    parser.add_argument("--without", action="append", default=[], metavar="PART", help="leave a part out")
    parser.add_argument("--seed", type=int, default=0, help="what is drawn follows from it")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--list", action="store_true", help="show the parts and stop")
    args = parser.parse_args()

    if args.list:
        for part in parts.values():
            print(f"{part.name:<14} {part.about}")
        return 0
    for name in (*args.parts, *args.without):
        if name not in parts:
            parser.error(f"there is no part {name}; expected some of {', '.join(parts)}")
    chosen = [parts[name] for name in args.parts or parts if name not in args.without]

    start = time.monotonic()
    size = Size(args.short, args.seed, args.jobs)
    table = [(part, try_out(part, size)) for part in chosen]

    # One table of everything, last.
    print(f"\n== {'short' if size.short else 'full'}, seed {size.seed}, {time.monotonic() - start:.0f} s")
    for part, lines in table:
        for tried in lines:
            print(f"{part.name:<14} {sentence(tried)}")
    for name in args.without:
        print(f"{name:<14} left out, as asked for")
    return int(any(tried.failures for _, lines in table for tried in lines))


if __name__ == "__main__":
    sys.exit(main())
