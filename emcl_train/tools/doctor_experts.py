"""Examine the features of experts before a run reads them: counts, what is missing, what is of a wrong width or NaN."""

import statistics
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from emcl_train.data.annotation_files import count, few
from emcl_train.data.cache import only_remembered, place_of
from emcl_train.data.cache_use import use_cache
from emcl_train.data.experts.checking import Found, Rules, words_fault
from emcl_train.data.experts.features import Examined
from emcl_train.data.experts.lists import FULL, ONE_K_A
from emcl_train.data.experts.mmt_h5 import MMTFeatures
from emcl_train.data.experts.split import ExpertFiles, ExpertSplit, opened, problems_of
from emcl_train.errors import UserError
from emcl_train.experts.ce import CE
from emcl_train.experts.choosing import other_widths
from emcl_train.experts.jsfusion import FEATURES
from emcl_train.experts.mmt import SIZES
from emcl_train.processes import rank_and_world
from emcl_train.recipes import RECIPES, load_recipe
from emcl_train.runs.files import write_json_atomic
from emcl_train.runs.lock import making
from emcl_train.terminal import console_of, warn
from emcl_train.tools.doctor import print_table

SYSTEMS = ("ce", "mmt", "jsfusion")
SHOWN = 20
"""Faults that are printed; the JSON file has all."""


@dataclass
class SplitCount:
    """One split in numbers."""

    clips: int
    captions: int
    queries: int
    """Texts that look for a clip: captions, or where they are joined, clips."""
    no_features: int
    no_caption: int


@dataclass
class ExpertCount:
    """One expert in numbers, over the clips of all splits."""

    width: int
    published: int | None
    """Width in the authors' files; None if nobody has published it."""
    clips: int = 0
    """Clips that have it."""
    missing: dict[str, int] = field(default_factory=dict)
    """Clips of each split that do not."""
    faults: dict[str, int] = field(default_factory=dict)
    """Clips on which it cannot be used, by what is wrong."""
    steps: tuple[int, float, int] | None = None
    """Fewest, median and most; None if no clip has it."""


@dataclass(frozen=True)
class Fault:
    """What a run would end at."""

    splits: tuple[str, ...]
    video_id: str
    kind: str
    sentence: str


@dataclass
class ExpertReport:
    """What is known of a data set of features."""

    files: ExpertFiles
    splits: dict[str, SplitCount] = field(default_factory=dict)
    experts: dict[str, ExpertCount] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)
    """Clips that have features and stand in no list."""
    problems: list[str] = field(default_factory=list)
    """What a run would end at before it looks at a clip: files that cannot be opened, or widths."""
    notes: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return 1 if self.faults or self.problems else 0

    def to_json(self) -> dict[str, Any]:
        return {
            "root": str(self.files.root),
            "system": self.files.system,
            "dataset": self.files.dataset,
            "split": self.files.split,
            "splits": {name: asdict(split) for name, split in self.splits.items()},
            "experts": {name: asdict(expert) for name, expert in self.experts.items()},
            "faults": [asdict(fault) for fault in self.faults],
            "unlisted": self.unlisted,
            "problems": self.problems,
            "notes": self.notes,
        }


def expert_files_of(name: str, root: Path) -> ExpertFiles | None:
    """The files that a recipe on experts reads in a folder; None if the recipe, or the layout, is of another kind."""
    if name not in RECIPES:
        return None
    config = load_recipe(name)
    system = config.model.system
    if system not in SYSTEMS:
        return None
    sizes = config.experts.sizes
    split = FULL if config.data.msrvtt_split == "full" else ONE_K_A
    return ExpertFiles("own" if sizes == "own" else system, sizes, root, split)  # type: ignore[arg-type]


def run_expert_doctor(
    files: ExpertFiles, name: str, *, json_path: Path | None = None, console: Console | None = None
) -> int:
    """Examine the features of every clip, print what was found, and write it to a JSON file.

    The features are read in one pass over their files: of several processes the first one does it, and the others wait.

    Args:
        files: whose, and where.
        name: the recipe, for the verdict.
        json_path: in place of `doctor.json` where what is known of the data set is remembered.
        console: where to print.

    Returns:
        1 if a run would end at something, else 0.
    """
    if rank_and_world()[0] > 0:
        return 0
    report = examine_experts(files)
    console = console_of(console)
    print_experts(report, name, console)

    # A file that was not asked for is worth no error.
    with only_remembered("everything found") if json_path is None else making(json_path):
        path = json_path or place_of("doctor.json", files.config)
        write_json_atomic(path, report.to_json())
        use_cache(files.config)
        console.print(f"everything found: {escape(str(path))}", soft_wrap=True)
    return report.exit_code


def examine_experts(files: ExpertFiles) -> ExpertReport:
    """Read the features of every clip that a list names, and count."""
    report = ExpertReport(files)
    try:
        data = opened(files)
        widths = data.reader.widths
    except UserError as error:
        report.problems.append(f"The files cannot be used: {error}.")
        return report

    rules = Rules.of(data)
    published = _published(files)
    report.notes = list(data.notes)
    report.experts = {
        expert: ExpertCount(widths[expert], published.get(expert), missing={split.name: 0 for split in data.splits})
        for expert in data.reader.experts
    }
    there = dict(widths)
    if data.words is not None:
        published["the text"] = CE[files.dataset].text.width
        there["the text"] = data.words.width
    if others := other_widths({name: width for name, width in published.items() if name in there}, there):
        report.problems.append(
            f"Features are of other widths than the authors': {others}. A run takes them with --experts.widths files "
            f"alone, and the authors' checkpoints do not fit them."
        )

    # What is wrong with a clip is said once, with all the splits that name it.
    named: dict[str, list[ExpertSplit]] = {}
    for split in data.splits:
        for video_id in split.ids:
            named.setdefault(video_id, []).append(split)
    absent: dict[str, str] = {}
    for split in data.splits:
        problems = list(problems_of(data, split))
        for problem in problems:
            if problem.video_id not in absent:
                absent[problem.video_id] = problem.kind
                of = tuple(s.name for s in named[problem.video_id])
                report.faults.append(Fault(of, problem.video_id, problem.kind, problem.sentence))
        report.splits[split.name] = _counted(split, Counter(problem.kind for problem in problems), absent)

    steps: dict[str, list[int]] = {expert: [] for expert in report.experts}
    for video_id, splits in named.items():
        if absent.get(video_id) == "no features":
            continue
        of = tuple(split.name for split in splits)
        try:
            examined = data.reader.examine(video_id)
        except UserError as error:
            report.faults.append(Fault(of, video_id, "not readable", str(error)))
            continue
        _add(report, examined, of, steps)

        found = Found.of(examined)
        if data.words is not None and video_id not in absent:
            found.words = words_fault(data, video_id, splits[0])
        for kind, sentence in found.against(rules, video_id, in_training="train" in of):
            report.faults.append(Fault(of, video_id, kind, sentence))
    for expert, of_expert in steps.items():
        if of_expert:
            report.experts[expert].steps = (min(of_expert), statistics.median(of_expert), max(of_expert))

    if isinstance(data.reader, MMTFeatures) and data.reader.kept is not None:
        data.reader.kept.save()  # the captions that were read on the way
    report.unlisted = sorted(set(data.reader.ids()) - set(named))
    return report


def _counted(split: ExpertSplit, problems: Counter[str], absent: dict[str, str]) -> SplitCount:
    usable = [video_id for video_id in split.ids if video_id not in absent]
    return SplitCount(
        clips=len(split),
        captions=sum(len(split.captions[video_id]) for video_id in usable),
        queries=sum(len(split.numbers(video_id)) for video_id in usable),
        no_features=problems["no features"],
        no_caption=problems["no caption"],
    )


def _add(report: ExpertReport, found: Examined, splits: tuple[str, ...], steps: dict[str, list[int]]) -> None:
    """Count the experts of one clip."""
    for expert, of_clip in found.steps.items():
        if of_clip is None:
            for split in splits:
                report.experts[expert].missing[split] += 1
        else:
            report.experts[expert].clips += 1
            steps[expert].append(len(of_clip.values))
    for expert, fault in found.faults.items():
        counted = report.experts[expert].faults
        counted[fault.kind] = counted.get(fault.kind, 0) + 1


def _published(files: ExpertFiles) -> dict[str, int]:
    """Widths of the authors' features."""
    if files.system == "ce":
        return {name: expert.width for name, expert in CE[files.dataset].experts.items()}
    if files.system == "mmt":
        return {name: expert.width for name, expert in SIZES[files.dataset].experts.items()}
    return {"resnet": FEATURES[files.dataset]} if files.dataset in FEATURES and files.system == "jsfusion" else {}


def print_experts(report: ExpertReport, name: str, console: Console) -> None:
    """A table of the splits, one of the experts, then everything else in sentences."""
    if report.splits:
        print_table(_split_table(report), console)
    if report.experts:
        print_table(_expert_table(report), console)

    for sentence in report.notes:
        console.print(escape(sentence), soft_wrap=True)
    if report.unlisted:
        said = f"Clips that have features and stand in no list: {len(report.unlisted)}, {few(report.unlisted)}."
        console.print(escape(said), soft_wrap=True)
    for problem in report.problems:
        warn(f"[red]{escape(problem)}[/red]", console)
    for fault in report.faults[:SHOWN]:
        line = f"{fault.video_id} ({', '.join(fault.splits)}): {fault.sentence}"
        warn(f"[red]{escape(line)}[/red]", console)
    if (more := len(report.faults) - SHOWN) > 0:
        warn(f"[red]… and {count(more, 'fault')} more[/red]", console)

    if report.faults:
        clips = len({fault.video_id for fault in report.faults})
        warn(f"{count(clips, 'clip')} cannot be used as they are; a run would end at the first.", console)
    elif not report.problems:
        text = f"The features of all clips in {report.files.root} ({name}) can be used."
        console.print(escape(text), soft_wrap=True)


def _split_table(report: ExpertReport) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("split", no_wrap=True)
    for column in ("clips", "captions", "queries", "no features", "no caption"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, split in report.splits.items():
        numbers = (split.clips, split.captions, split.queries, split.no_features, split.no_caption)
        table.add_row(name, *map(str, numbers))
    return table


def _expert_table(report: ExpertReport) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("expert", no_wrap=True)
    splits = list(report.splits)
    for column in ("width", "clips", *(f"missing in {split}" for split in splits), "steps", "wrong"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, expert in report.experts.items():
        steps = ""
        if expert.steps is not None:
            fewest, median, most = expert.steps
            steps = f"{fewest} to {most}, median {median:g}"
        missing = [str(expert.missing[split]) for split in splits]
        table.add_row(
            escape(name), str(expert.width), str(expert.clips), *missing, steps, str(sum(expert.faults.values()))
        )
    return table
