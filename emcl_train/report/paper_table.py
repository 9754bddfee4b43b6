"""The paper's tables: what was published, and our own runs beside it where protocol and system agree.

A figure that could not be had is absent, with the reason; nothing is filled in. The terminal (`paper_terminal.py`) and
the page (`paper_page.py`) say the same.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from emcl_train.report.differences import names_of
from emcl_train.report.groups import Group, mean_and_deviation, origins_of
from emcl_train.report.paper_systems import (
    Measured,
    lines_of_run,
    remarks_on_run,
    system_of,
    why_apart,
)
from emcl_train.report.published import (
    ACTIVITYNET,
    CLIP2VIDEO,
    CLIP2VIDEO_EMCL,
    CLIP4CLIP_TRANSFORMER,
    DIDEMO,
    DRL,
    EMCL_NET,
    LSMDC,
    MMT,
    MMT_EMCL,
    MSRVTT_1KA,
    MSRVTT_1KB,
    MSRVTT_FULL,
    MSRVTT_QA,
    MSVD,
    PARAGRAPHS,
    PLAIN,
    VATEX,
    Metrics,
    Protocol,
    Published,
    System,
    is_of,
    protocol_of,
    remarks_on,
)
from emcl_train.runs.origin import ORIGIN, sentence_of, what_is_stale
from emcl_train.runs.records import weights_sentence

NOT_AVAILABLE = "not available"
BY_RANK_OF = {"video_to_text": "video_to_text_by_rank"}
RETRIEVAL = {"text_to_video": "T→V", "video_to_text": "V→T"}

MAIN = (MSRVTT_1KA, ACTIVITYNET, LSMDC)
OTHERS = (MSRVTT_FULL, MSRVTT_1KB, MSVD, DIDEMO, VATEX)
INSIDE = (
    MMT,
    MMT_EMCL,
    CLIP4CLIP_TRANSFORMER,
    System(CLIP4CLIP_TRANSFORMER.name, "train"),
    DRL,
    System(DRL.name, "train"),
    CLIP2VIDEO,
    CLIP2VIDEO_EMCL,
)
"""Systems that EMCL was put into, each before that with EMCL."""
NOT_SEEN = (
    "it stands in table 3 of the EMCL paper, which could not be had; known is that the gains there, with MMT, "
    "CLIP4Clip and DRL (called DCR), reach 3.5 points of text→video R@1"
)
NO_ROW = "no figure of it was found"

ANSWERS = {"accuracy": "accuracy"}
KEPT, ALL = "kept", "all"
ACCURACIES = {KEPT: "top1_of_kept", ALL: "top1_of_all"}
"""What results.json calls them, under "figures"."""
QUESTIONS = (
    "kept: over the questions whose answer is one of the 1 500 that the model knows, as the release counts it; all: "
    "over all questions, where those that it cannot answer are wrong.",
    "Of the validation split 93.0 % can be answered; if it is so in the test split, 45.8 over the kept would be about "
    "42.6 over all.",
    f"EMCL-QA has CLIP {MSRVTT_QA.towers}; its release keeps the epoch that is best on the test split.",
)
CAPTIONS = {"captions": ""}
NO_CAPTIONING = (
    "Captioning: the published row only. No code was released and no description of the model could be had, so there "
    "is nothing to build it from."
)


@dataclass(frozen=True)
class Row:
    """A line of a table."""

    kind: Literal["published", "own", "absent"]
    name: str
    figures: dict[str, Metrics] = field(default_factory=dict)
    """By direction, and in it by metric. What is not there could not be had."""
    deviations: dict[str, Metrics] = field(default_factory=dict)
    """Likewise, over seeds."""
    source: str = ""
    """Where published figures were read; of an absent row why there are none."""
    from_memory: tuple[str, ...] = ()
    """The directions that are from memory."""
    runs: tuple[str, ...] = ()
    """Folders of our own figures."""
    variant: str = ""
    """What tells a published row from others of its system."""
    seeds: tuple[int, ...] = ()
    origins: tuple[Any, ...] = ()
    """Weights, step and code of each run, as results.json has them."""
    stale: tuple[str, ...] = ()
    """What to say of figures that are not those of the weights beside them."""
    remarks: tuple[str, ...] = ()
    """Sentences on our own figures."""

    def cell(self, way: str, metric: str) -> str:
        """A figure, marked `m` if it is from memory; a dash if there is none."""
        if metric not in self.figures.get(way, {}):
            return "–"
        remembered = way in self.from_memory or way.removesuffix("_by_rank") in self.from_memory
        return f"{self.figures[way][metric]:.1f}" + ("m" if remembered else "")


@dataclass
class Entry:
    """A system of a table with its lines."""

    system: System
    rows: list[Row]

    @property
    def has_own(self) -> bool:
        return any(row.kind == "own" for row in self.rows)


@dataclass
class Table:
    """One of the paper's tables."""

    title: str
    protocol: Protocol | None
    ways: dict[str, str]
    """What each group of columns is called, by the name of its figures."""
    columns: tuple[str, ...]
    entries: list[Entry]
    remarks: list[str]

    @property
    def without_own(self) -> list[str]:
        """Systems that no run of ours stands beside."""
        return [entry.system.label for entry in self.entries if not entry.has_own]


@dataclass(frozen=True)
class Apart:
    """Runs that no published row may stand beside."""

    name: str
    runs: tuple[str, ...]
    system: str
    reason: str


@dataclass(frozen=True)
class Paper:
    """All tables."""

    tables: list[Table]
    apart: list[Apart]

    @property
    def sources(self) -> list[str]:
        """Where published figures were read, in the order of the numbers that tables have."""
        rows = (row for table in self.tables for entry in table.entries for row in entry.rows)
        return list(dict.fromkeys(row.source for row in rows if row.kind == "published"))


def paper_tables(groups: Sequence[Group]) -> Paper:
    """The tables, with our own runs where they belong.

    Args:
        groups: runs, or runs of several seeds each, as `load_group` reads them; none: what was published alone.
    """
    main = [_retrieval(protocol) for protocol in MAIN]
    inside = _inside_others()
    answers = _question_answering()
    others = [_retrieval(protocol) for protocol in OTHERS]
    paper = Paper([*main, inside, answers, _captioning(), *others], [])

    for group, name in zip(groups, names_of(groups) if groups else (), strict=True):
        folders = tuple(str(run.path) for run in group.curves) or (str(group.path),)
        if not group.runs:
            paper.apart.append(Apart(name, folders, "not measured", "it has no figures yet"))
        elif (reason := why_apart(group.runs[0])) is not None:
            paper.apart.append(Apart(name, folders, system_of(group.runs[0]).label, reason))
        elif group.runs[0].config.answers_questions:
            _put_answers(group, name, answers)
        else:
            _put(group, name, [table for table in paper.tables if table.protocol is protocol_of(group.runs[0].results)])
    return paper


def as_json(paper: Paper) -> dict[str, Any]:
    """For programs: the same rows, where a metric that could not be had is null."""
    return {
        "tables": [
            {
                "title": table.title,
                "split": table.protocol.split if table.protocol else None,
                "columns": list(table.columns),
                "systems": [
                    {
                        "system": entry.system.label,
                        "emcl": entry.system.emcl,
                        "rows": [_row_as_json(row, table) for row in entry.rows],
                        "own": "available" if entry.has_own else NOT_AVAILABLE,
                    }
                    for entry in table.entries
                ],
                "remarks": table.remarks,
            }
            for table in paper.tables
        ],
        "apart": [asdict(one) for one in paper.apart],
    }


def _row_as_json(row: Row, table: Table) -> dict[str, Any]:
    # A row that has more metrics than the table shows keeps them.
    ways = dict.fromkeys([*table.ways, *row.figures])
    figures = {
        way: {metric: row.figures.get(way, {}).get(metric) for metric in (*table.columns, *row.figures.get(way, {}))}
        for way in ways
    }
    more = {name: value for name, value in asdict(row).items() if name not in ("kind", "name", "figures", "source")}
    status = NOT_AVAILABLE if row.kind == "absent" else row.kind
    about = {"reason": row.source} if row.kind == "absent" else {"source": row.source} if row.source else {}
    return {"name": row.name, "status": status, "figures": figures, **about} | {
        name: list(value) if isinstance(value, tuple) else value for name, value in more.items() if value
    }


def _retrieval(protocol: Protocol) -> Table:
    """The published rows of a protocol, those of one system together."""
    entries: list[Entry] = []
    for row in protocol.rows:
        found = next((entry for entry in entries if entry.system == row.system), None)
        if found is None:
            entries.append(Entry(row.system, [_published(row)]))
        else:
            found.rows.append(_published(row))
    columns = PARAGRAPHS if protocol is ACTIVITYNET else PLAIN
    return Table(
        f"Retrieval on {protocol.split}",
        protocol,
        RETRIEVAL,
        columns,
        entries,
        remarks_on(protocol.rows, protocol.note),
    )


def _inside_others() -> Table:
    """Each system before itself with EMCL; what the paper has of it could be had for one alone."""
    entries = []
    shown = []
    for system in INSIDE:
        rows = [row for row in MSRVTT_1KA.rows if row.system == system]
        shown += rows
        absent = Row("absent", system.label, source=NOT_SEEN)
        entries.append(Entry(system, [_published(row) for row in rows] or [absent]))
    title = f"EMCL inside other systems, {MSRVTT_1KA.split}"
    return Table(title, MSRVTT_1KA, RETRIEVAL, PLAIN, entries, remarks_on(shown))


def _question_answering() -> Table:
    system = MSRVTT_QA.system
    row = Row("published", system.label, {"accuracy": {KEPT: MSRVTT_QA.kept}}, source=MSRVTT_QA.source)
    title = f"Video question answering, {MSRVTT_QA.split}"
    return Table(title, None, ANSWERS, (KEPT, ALL), [Entry(system, [row])], list(QUESTIONS))


def _captioning() -> Table:
    figures = {"BLEU-4": 45.3, "METEOR": 30.2, "ROUGE-L": 63.2, "CIDEr": 54.6}
    row = Row("published", "EMCL captioning", {"captions": figures}, source=MSRVTT_QA.source)
    entry = Entry(System("EMCL captioning"), [row])
    return Table("Captioning, MSR-VTT", None, CAPTIONS, tuple(figures), [entry], [NO_CAPTIONING])


def _published(row: Published) -> Row:
    figures = {"text_to_video": row.text_to_video, "video_to_text": row.video_to_text}
    if row.video_to_text_by_rank:
        figures["video_to_text_by_rank"] = row.video_to_text_by_rank
    deviations = {}
    if row.deviation is not None:
        to_text = "video_to_text_by_rank" if row.video_to_text_by_rank else "video_to_text"
        deviations = {"text_to_video": {"R@1": row.deviation[0]}, to_text: {"R@1": row.deviation[1]}}
    return Row(
        "published",
        row.name,
        figures,
        deviations,
        source=row.source,
        from_memory=row.from_memory,
        variant=row.variant,
    )


def _put(group: Group, name: str, tables: Sequence[Table]) -> None:
    """Add a group's lines where a row of their system stands, and its main line in any case."""
    for measured in lines_of_run(group.runs[0]):
        row = _own(group, name, measured)
        beside = [entry for table in tables for entry in table.entries if is_of(entry.system, measured.system)]
        for entry in beside:
            entry.rows.append(row)
        if beside or not measured.main:
            continue

        # A system that nobody published figures of: in the table of what EMCL is inside of, or else the first one.
        within = measured.system.emcl != "off" and not measured.system.name.startswith(EMCL_NET)
        table = tables[-1] if within else tables[0]
        absent = Row("absent", measured.system.label, source=NO_ROW)
        table.entries.append(Entry(measured.system, [absent, row]))


def _own(group: Group, name: str, measured: Measured) -> Row:
    """A line of our own: of several seeds the means, with their deviations."""
    results = [run.results for run in group.runs]
    lines = [one["rows"][measured.row] for one in results]
    figures: dict[str, Metrics] = {}
    deviations: dict[str, Metrics] = {}
    for way in (*RETRIEVAL, *BY_RANK_OF.values()):
        metrics = lines[0].get(way) or {}
        spread = {key: mean_and_deviation([line[way][key] for line in lines]) for key in metrics}
        if spread:
            figures[way] = {key: mean for key, (mean, _) in spread.items()}
        if spread and len(lines) > 1:
            deviations[way] = {key: deviation for key, (_, deviation) in spread.items()}
    return _of_group(group, name, figures, deviations)


def _of_group(group: Group, name: str, figures: dict[str, Metrics], deviations: dict[str, Metrics]) -> Row:
    results = [run.results for run in group.runs]
    marks = [(run.path, what_is_stale(run.path, run.results)) for run in group.runs]
    remarks = [f"{remark}." for remark in remarks_on_run(group.runs[0])]
    remarks += sorted({weights_sentence(str(one["selection"])) for one in results})
    remarks.append(sentence_of(results[0]) if len(results) == 1 else origins_of(results))
    return Row(
        "own",
        name,
        figures,
        deviations,
        runs=tuple(str(run.path) for run in group.runs),
        seeds=tuple(run.config.train.seed for run in group.runs),
        origins=tuple(one.get(ORIGIN) for one in results),
        stale=tuple(f"{path}: {what}." for path, what in marks if what is not None),
        remarks=tuple(remarks),
    )


def _put_answers(group: Group, name: str, table: Table) -> None:
    """Add the accuracies of runs that answer questions, over the kept and over all."""
    system = system_of(group.runs[0])
    found = [run.results["figures"] for run in group.runs]
    spread = {key: mean_and_deviation([one[name] for one in found]) for key, name in ACCURACIES.items()}
    figures = {"accuracy": {key: mean for key, (mean, _) in spread.items()}}
    deviations = {"accuracy": {key: deviation for key, (_, deviation) in spread.items()}} if len(found) > 1 else {}
    row = _of_group(group, name, figures, deviations)
    entry = next((entry for entry in table.entries if entry.system == system), None)
    if entry is None:
        table.entries.append(Entry(system, [Row("absent", system.label, source=NO_ROW), row]))
    else:
        entry.rows.append(row)
