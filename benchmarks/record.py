"""Benchmark records: one JSON file for programs, one Markdown file and one plot for people, never edited afterwards.

python benchmarks/record.py build/bench.json writes benchmarks/results/<date>-<cpu>.{json,md,png} of what `make bench`
measured; benchmarks/gpu.py writes its records through the same functions.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from emcl_train.runs.code import now, processor

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
Record = dict[str, Any]
ENDINGS = (".json", ".md", ".png")


class AlreadyThere(Exception):
    """A record of that name exists."""


def slug(text: str) -> str:
    """ "NVIDIA H200" → "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower().replace("(r)", "").replace("(tm)", "")).strip("-")


def commit_of(given: str | None) -> Record:
    """The commit, by git or as it was given where there is no git, and a hash of what was measured."""
    digest = hashlib.sha256()
    for folder, pattern in (("emcl_kernels", "**/*.py"), ("csrc", "**/*"), ("benchmarks", "*.py")):
        for file in sorted((ROOT / folder).glob(pattern)):
            if file.is_file():
                digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    sources = digest.hexdigest()[:16]
    try:
        git = ["git", "-C", str(ROOT)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
        return {"id": head, "dirty": bool(changes.strip()), "sources": sources}
    except (OSError, subprocess.CalledProcessError):
        return {"id": given or "not known (no git here, and no --commit)", "dirty": None, "sources": sources}


def refuse_to_overwrite(folder: Path, name: str) -> None:
    for ending in ENDINGS:
        if (folder / (name + ending)).exists():
            raise AlreadyThere(
                f"{folder / (name + ending)} exists, and records are never edited; pass --name for another one"
            )


def name_of(kind: str, given: str | None, folder: Path) -> str | None:
    """The name of a record that will be written, asked before anything is measured, so that no time is lost.

    Args:
        kind: of the record, the end of its name.
        given: by --name; None: <date>-<processor>-<kind>.
        folder: where it will be.

    Returns:
        The name; None, with a line on stderr, where a record of that name is there.
    """
    name = given or f"{datetime.now(timezone.utc):%Y-%m-%d}-{slug(processor())}-{kind}"
    try:
        refuse_to_overwrite(folder, name)
    except AlreadyThere as there:
        print(there, file=sys.stderr)
        return None
    return name


def made_here(title: str, used: str, command: str, versions: Record) -> Record:
    """What every record of a program on this machine's processor begins with.

    Args:
        title: what was measured.
        used: what of the processor, such as "2 threads".
        command: without its arguments, which are those of this program.
        versions: of packages beside Python.
    """
    return {
        "title": f"{title}. CPU: {processor()}, {used}",
        "date": now(),
        "commit": commit_of(None),
        "command": " ".join([command, *sys.argv[1:]]),
        "machine": {"processor": processor(), "system": f"{platform.system()} {platform.release()}"},
        "versions": {"Python": platform.python_version()} | versions,
        "plot": False,
    }


def save(record: Record, folder: Path, name: str) -> None:
    """Write both files whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for ending, text in ((".json", json.dumps(record, indent=1, ensure_ascii=False)), (".md", markdown(record, name))):
        write_whole(folder / (name + ending), text + "\n")


def write_whole(file: Path, text: str) -> None:
    """Replace a file by renaming: whoever kills this process finds the state before or the state after."""
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, file)


# ---- numbers ---------------------------------------------------------------------------------------------------------


def shown_time(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1 or unit == "µs":
            return f"{seconds * factor:.3g} {unit}"
    raise AssertionError("unreachable")


def shown_rate(per_second: float) -> str:
    return f"{per_second / 1e12:.3g} T" if per_second >= 1e12 else f"{per_second / 1e9:.3g} G"


def ratio(case: Record, way: str, other: str) -> float | None:
    """How many times the time of `way` is that of `other`, both medians of the same run; None where one is missing."""
    medians = [case["ways"].get(name, {}).get("median_s") for name in (way, other)]
    return None if None in medians else medians[0] / medians[1]


def without_em(way: str) -> str:
    """The way that does the same without EMCL."""
    name, graph, _ = way.partition(" + graph")
    return "EMCL off" if name == "ours" else f"{name}, EMCL off{graph}"


def rate(way: Record, amount: str) -> float | None:
    """ "flops" or "bytes" of the cost model per second."""
    if "median_s" not in way or not way.get("cost"):
        return None
    return way["cost"][amount] / way["median_s"]


# ---- Markdown --------------------------------------------------------------------------------------------------------


def markdown(record: Record, name: str) -> str:
    parts = [f"# {record['title']}", facts(record)]
    if record.get("went_on"):
        parts.append(f"It was cut off, and went on at {', '.join(record['went_on'])}.")
    if record.get("running"):
        parts.append("**This run has not ended yet, or was cut off: what follows is what it had measured.**")
    if record.get("plot"):
        parts.append(f"![times faster than the release's loop]({name}.png)")
    if record.get("ceilings"):
        parts.append(ceilings(record["ceilings"]))
    if record.get("targets"):
        parts.append(targets(record["targets"]))
    parts += [table(case, record.get("ceilings")) for case in record["cases"] if case["ways"]]
    return "\n\n".join(parts)


def facts(record: Record) -> str:
    commit = record["commit"]
    dirty = {True: ", with changes that are not committed", False: "", None: ", not known whether with changes"}
    rows = {"date": record["date"], "commit": f"{commit['id']}{dirty[commit['dirty']]}"}
    if "sources" in commit:
        rows["sha256 of the sources"] = commit["sources"]
    rows |= {"command": f"`{record['command']}`"} | record["machine"] | record["versions"]
    for backend, failed in record.get("tests", {}).items():
        rows[f"short tests of {backend}"] = failed or "passed"
    return "\n".join([*(f"- {key}: {value}" for key, value in rows.items()), "", record["method"]])


def ceilings(found: dict[str, Any]) -> str:
    copy, *products = (found[name]["per_second"] for name in ("copy", "bf16", "tf32"))
    return (
        f"Ceilings measured in this run: copy {copy / 1e12:.2f} TB/s (read and written), matrix product "
        f"{products[0] / 1e12:.0f} TFLOP/s in bfloat16 and {products[1] / 1e12:.0f} TFLOP/s in TF32."
    )


def targets(rows: list[Record]) -> str:
    lines = ["## Targets", "", "| case | target | measured | |", "|---|---|---|---|"]
    return "\n".join(lines + [f"| {r['case']} | {r['target']} | {r['measured']} | {r['verdict']} |" for r in rows])


def table(case: Record, found: dict[str, Any] | None = None) -> str:
    """All ways of a case, slower and failed ones too. Columns that no way has are left out."""
    columns: dict[str, list[str]] = {}
    for name, way in case["ways"].items():
        for column, text in cells(case, name, way, found).items():
            columns.setdefault(column, [""] * len(case["ways"]))[list(case["ways"]).index(name)] = text
    order = [
        "way",
        "median",
        "IQR",
        "repeats",
        "× eager",
        "÷ EMCL off",
        *(column for column in columns if column.startswith(NARROWER)),
        "peak MiB",
        "error",
        "FLOP/s",
        "byte/s",
        "note",
    ]
    shown = [column for column in order if any(columns.get(column, []))]
    lines = [
        f"## {case['shape']}, {case['dtype']}" + (f" ({case['note']})" if case.get("note") else ""),
        "",
        "| " + " | ".join(shown) + " |",
        "|---|" + "".join("---|" if column in ("error", "note") else "---:|" for column in shown[1:]),
    ]
    rows = zip(*(columns[column] for column in shown), strict=True)
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


NARROWER = "as on "
"""In front of the columns of what was measured again with less than the processor has."""


def cells(case: Record, name: str, way: Record, found: dict[str, Any] | None) -> dict[str, str]:
    if "median_s" not in way:
        return {"way": name, "note": way.get("failed", "")}
    row = {
        "way": name,
        "median": shown_time(way["median_s"]),
        "IQR": shown_time(way["iqr_s"]),
        "repeats": str(way["repeats"]),
    }
    if name != "eager" and "EMCL off" not in name:
        if (times := ratio(case, "eager", name)) is not None:
            row["× eager"] = f"{times:.3g}"
        if (times := ratio(case, name, without_em(name))) is not None:
            row["÷ EMCL off"] = f"{times:.2f}"
    if "narrower" in way:
        isa, narrower = case["narrower"], way["narrower"]
        row[f"{NARROWER}{isa}: median"] = shown_time(narrower["median_s"])
        if name != "eager" and (of_eager := case["ways"].get("eager", {}).get("narrower")):
            row[f"{NARROWER}{isa}: × eager"] = f"{of_eager['median_s'] / narrower['median_s']:.3g}"
    if "peak_mib" in way:
        row["peak MiB"] = f"{way['peak_mib']:.0f}"
    if way.get("errors"):
        row["error"] = ", ".join(f"{output} {error:.0e}" for output, error in way["errors"].items())
    for amount in ("FLOP", "byte"):
        if (per_second := rate(way, amount.lower() + "s")) is not None:
            row[f"{amount}/s"] = shown_rate(per_second) + share(case, amount, per_second, found)
    notes = [f"ran on {' and '.join(way['chosen'])}"] if way.get("chosen") else []
    notes += [way[name] for name in ("tests", "note") if way.get(name)]
    if notes:
        row["note"] = "; ".join(notes)
    return row


def share(case: Record, amount: str, per_second: float, found: dict[str, Any] | None) -> str:
    """Of the ceiling, in percent."""
    if not found:
        return ""
    ceiling = "copy" if amount == "byte" else "tf32" if case["dtype"] == "float32" else "bf16"
    return f" ({100 * per_second / found[ceiling]['per_second']:.0f} %)"


# ---- the plot --------------------------------------------------------------------------------------------------------


COLOURS = {"compiled": "#b8bec9", "triton": "#e0a458"}
OURS = "#2a7fd4"


def plot(record: Record, file: Path, ways: dict[str, str]) -> bool:
    """Bars: how many times faster than eager each way is, by case. ways: name → label, in order.

    Returns: False where there is nothing to draw, because no case has eager and another way.
    """
    bars = [
        (label(case), {way: times for way in ways if (times := ratio(case, "eager", way)) is not None})
        for case in record["cases"]
    ]
    bars = [(name, values) for name, values in bars if values]
    if not bars:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import patches, pyplot

    present = [way for way in ways if any(way in values for _, values in bars)]
    colours = {way: COLOURS.get(way.split()[0], OURS) for way in present}
    thick = 0.8 / len(present)
    every = [value for _, values in bars for value in values.values()]
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = pyplot.subplots(figsize=(7.2, 1.0 + len(bars) * (0.12 + 0.17 * len(present))), dpi=150)
        for row, (_, values) in enumerate(bars):
            for i, way in enumerate(values):
                y = row + (i - (len(values) - 1) / 2) * thick
                axes.barh(y, values[way] - 1, thick * 0.9, left=1, color=colours[way])
                axes.text(max(1, values[way]) * 1.05, y, f"{values[way]:.3g}×", va="center", fontsize=8)
        handles = [patches.Rectangle((0, 0), 1, 1, color=colours[way]) for way in present]
        axes.legend(
            handles, [ways[way] for way in present], ncols=len(present), frameon=False, fontsize=8,
            loc="lower left", bbox_to_anchor=(0, 0.99),
        )  # fmt: skip
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(-0.5, len(bars) - 0.5)
        axes.set_yticks(range(len(bars)), [name for name, _ in bars])
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.set_xlim(0.9 * min(1, *every), 1.5 * max(every))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
        axes.axvline(1, color="#1c2230", linewidth=0.8)
        axes.set_xlabel("times faster than the release's formula in eager torch")
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, facecolor="white", bbox_inches="tight")
        pyplot.close(figure)
    return True


def label(case: Record) -> str:
    """The shape in words, short enough for an axis."""
    shape = re.sub(r"^\S+ (?=A=B)", "training step, ", case["shape"]).removesuffix(" forward + backward")
    shape = re.sub(r"^\S+ (?=\d+ × )", "evaluation ", shape).replace("forward + backward", "fwd + bwd")
    return shape + ("" if case["dtype"] == "float32" else f" {case['dtype']}")


# ---- records of make bench -------------------------------------------------------------------------------------------


def from_pytest_benchmark(data: dict[str, Any]) -> Record:
    """A record of the JSON file of pytest-benchmark, with what benchmarks/conftest.py adds to it."""
    machine, ours = data["machine_info"], data["machine_info"].get("emcl", {})
    cpu = machine["cpu"]
    cases: dict[str, Record] = {}
    for bench in data["benchmarks"]:
        group, extra, stats = bench["group"], bench["extra_info"], bench["stats"]
        case = cases.setdefault(group, {"shape": group, "dtype": "float32", "ways": {}})
        way = {"median_s": stats["median"], "iqr_s": stats["iqr"], "repeats": stats["rounds"]}
        if "peak_mib" in extra:
            way["peak_mib"] = extra["peak_mib"]
        if "gflop" in extra:
            way["cost"] = {"flops": extra["gflop"] * 1e9, "bytes": extra["mbyte"] * 1e6}
        case["ways"][bench["params"]["way"]] = way
    return {
        "title": f"CPU: {cpu['brand_raw']}, {ours.get('threads', 'unknown number of')} threads",
        "date": data["datetime"][:19].replace("T", " ") + " UTC",
        "commit": {"id": data["commit_info"]["id"], "dirty": data["commit_info"]["dirty"]},
        "command": ours.get("command", "make bench"),
        "machine": {
            "processor": f"{cpu['brand_raw']}, {cpu['count']} cores",
            "instruction set": ours.get("isa", "not recorded"),
            "system": f"{machine['system']} {machine['release']}",
        },
        "versions": {
            "Python": machine["python_version"],
            "torch": ours.get("torch", "not recorded"),
            "emcl": ours.get("emcl", "not recorded"),
        },
        "method": (
            "float32, K = 32, T = 9, starts that differ unless named. Medians of wall-clock time, all in one run; IQR "
            "is the interquartile range. Peak memory is what a call takes beside its inputs, in a process of its own. "
            "FLOP/s and byte/s are the cost model's work over the median."
        ),
        "cases": list(cases.values()),
    }


def put_narrower(record: Record, data: dict[str, Any]) -> None:
    """Beside each figure, that of the same run with a narrower instruction set; nothing if both are the same."""
    narrower = from_pytest_benchmark(data)
    isa = narrower["machine"]["instruction set"]
    if isa == record["machine"]["instruction set"]:
        return
    ways = {(case["shape"], name): way for case in narrower["cases"] for name, way in case["ways"].items()}
    for case in record["cases"]:
        case["narrower"] = isa
        for name, way in case["ways"].items():
            if found := ways.get((case["shape"], name)):
                way["narrower"] = {key: found[key] for key in ("median_s", "iqr_s", "repeats")}
    record["method"] += (
        f" Columns that begin with “{NARROWER}{isa}” are of a second run on the same processor, in which torch, MKL, "
        f"oneDNN and our kernels may use no more than {isa}; a processor that has no more clocks and caches otherwise."
    )


CPU_WAYS = {"compiled": "torch.compile", "ours": "EMCL kernels"}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("json", type=Path, help="what pytest --benchmark-json wrote")
    parser.add_argument("--narrower", type=Path, help="the same, measured with a narrower instruction set")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    parser.add_argument("--name", help="of the record's files; by default <date>-<cpu>")
    parser.add_argument("--plot", type=Path, help="write only the plot, to this file")
    parser.add_argument("--cases", default="", help="regular expression: only cases whose shape it is found in")
    options = parser.parse_args()
    data = json.loads(options.json.read_text(encoding="utf-8"))
    record = from_pytest_benchmark(data)
    record["cases"] = [case for case in record["cases"] if re.search(options.cases, case["shape"])]
    if options.narrower and options.narrower.exists():
        put_narrower(record, json.loads(options.narrower.read_text(encoding="utf-8")))
    if options.plot:
        plot(record, options.plot, CPU_WAYS)
        return 0
    name = options.name or f"{data['datetime'][:10]}-{slug(data['machine_info']['cpu']['brand_raw'])}"
    try:
        refuse_to_overwrite(options.out, name)
    except AlreadyThere as there:
        print(there, file=sys.stderr)
        return 1
    record["plot"] = plot(record, options.out / f"{name}.png", CPU_WAYS)
    save(record, options.out, name)
    print(f"wrote {options.out / name}.json, .md" + (" and .png" if record["plot"] else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
