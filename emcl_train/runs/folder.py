"""The files of a finished run, read and checked in one place."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from emcl_train.config import EMCLConfig, RunConfig
from emcl_train.errors import UserError
from emcl_train.runs.contents import (
    ANSWERS,
    CONFIG,
    EMBEDDINGS,
    ENVIRONMENT,
    FINISHED,
    METRICS,
    OF_ANSWERING,
    OF_EVALUATION,
    OF_TRAINING,
    QUERIES,
    RESULTS,
    load_config,
    load_environment,
    require_run,
    run_of,
)
from emcl_train.runs.files import read_json
from emcl_train.runs.likeness import ANY, Number, Optional, like_of, may_lack, unlike
from emcl_train.runs.lock import settle
from emcl_train.runs.origin import IN_ORIGIN, ORIGIN
from emcl_train.runs.records import read_records, record_error, selection_of
from emcl_train.runs.state import read_tensors

SHARE = Number(0, 100 + 1e-6)
RANK = Number(1, 1e12)
OF_A_DIRECTION = {"R@1": SHARE, "R@5": SHARE, "R@10": SHARE, "R@50": Optional(SHARE), "MdR": RANK, "MnR": RANK}
ROW = {
    "name": str,
    "text_to_video": OF_A_DIRECTION,
    "video_to_text": OF_A_DIRECTION,
    "video_to_text_by_rank": Optional(OF_A_DIRECTION),
    "note": Optional(str),
}
IN_RESULTS = {
    "rows": [ROW],
    "split": str,
    "queries": Number(1, 1e12),
    "gallery": Number(1, 1e12),
    "em_block": Optional(int),
    "selection": str,
    "recipe": Optional(str),
    "protocol": Optional(dict),
    "emcl": Optional(dict),
    "chance": Optional(ROW),
    "left_out": Optional({ANY: str}),
    "notes": Optional([str]),
    ORIGIN: Optional(IN_ORIGIN),
}
"""What a report needs of results.json."""
ACCURACIES = dict.fromkeys(("top1_of_kept", "top5_of_kept", "top1_of_all", "top5_of_all"), SHARE)
IN_RESULTS_OF_ANSWERS = {
    "task": str,
    "figures": {"kept": Number(1, 1e12), "asked": Number(1, 1e12), **ACCURACIES},
    "answers": Number(1, 1e12),
    **{name: IN_RESULTS[name] for name in ("split", "selection", "recipe", "protocol", "emcl", "left_out", "notes")},
    ORIGIN: Optional(IN_ORIGIN),
}
"""The same of a run that answers questions."""
IN_ANSWERS = [{"video_id": str, "question": str, "answer": str, "given": [str]}]
IN_EMCL = like_of(EMCLConfig)
IN_QUERIES = {"video_ids": [str], "captions": [str]}
IN_RECORDS = {
    "train": {"step": Number(0, 1e12), "epoch": Number(0, 1e12), "loss": Number()},
    "validation": {
        "epoch": Number(0, 1e12),
        "split": Optional(str),
        "text_to_video": OF_A_DIRECTION,
        "video_to_text": OF_A_DIRECTION,
    },
}
"""What a report needs of a record, by its kind."""
IN_RECORDS_OF_ANSWERS = {
    "train": IN_RECORDS["train"],
    "validation": {"epoch": Number(0, 1e12), "split": Optional(str), "accuracies": ACCURACIES},
}
"""The same of a run that answers questions."""


@dataclass(frozen=True)
class Run:
    """A finished run, or an evaluation of one with other settings."""

    path: Path
    config: RunConfig
    environment: dict[str, Any]
    records: list[dict[str, Any]]
    """The lines of metrics.jsonl."""
    results: dict[str, Any]
    video_ids: list[str]
    captions: list[str]
    tensors: dict[str, Tensor]
    """text [Q, D], frames [G, F, D], frame_mask [G, F], caption_clip [Q], similarity_off [Q, G]; where the run has
    EMCL also similarity_on [Q, G] and bases [K]."""
    answers: list[dict[str, Any]] = field(default_factory=list)
    """Of a run that answers questions, which has no captions, clips and tensors: a row for each kept question."""

    @property
    def emcl(self) -> EMCLConfig:
        """EMCL's settings in the evaluation, which may be others than those in training."""
        return EMCLConfig(**self.results["emcl"]) if "emcl" in self.results else self.config.emcl

    @property
    def similarity(self) -> Tensor:
        """The similarity that the run is judged by, [Q, G]."""
        return self.tensors.get("similarity_on", self.tensors["similarity_off"])

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Records of metrics.jsonl of one kind: "train" or "validation"."""
        return [record for record in self.records if record["kind"] == kind]


def load_run(run_dir: Path) -> Run:
    """Read a run folder.

    Raises:
        UserError: it is no folder, lacks a file, or a file is damaged; the message says what writes it again.
    """
    if not run_dir.is_dir():
        require_run(run_dir)
    settle(run_dir)

    config = load_config(run_dir) if (run_dir / CONFIG).is_file() else None
    answers = config is not None and config.answers_questions
    of_evaluation = OF_ANSWERING if answers else OF_EVALUATION
    missing = [name for name in (*OF_TRAINING, *of_evaluation) if not (run_dir / name).is_file()]
    if missing:
        what = f"{run_dir} is not the folder of a finished run: {', '.join(missing)} missing"
        if RESULTS in missing and (run_dir / CONFIG).is_file() and not (run_dir / FINISHED).exists():
            raise UserError(f"{what}; `emcl-train resume {run_dir}` goes on with it, and writes them at its end")
        raise UserError(
            f"{what}; {_writer(run_dir / missing[0])} writes {missing[0]} (a run that was stopped goes on with "
            f"`emcl-train resume {run_dir}`)"
        )

    assert config is not None
    environment = _read_json(run_dir / ENVIRONMENT, {})
    records = _checked(read_records(run_dir / METRICS), run_dir / METRICS, config)
    if answers:
        return _load_answers(run_dir, config, environment, records)

    queries = _read_json(run_dir / QUERIES, IN_QUERIES)
    results = _read_json(run_dir / RESULTS, IN_RESULTS)
    embeddings = run_dir / EMBEDDINGS
    tensors = read_tensors(embeddings, f"{_writer(embeddings)} writes it again")

    run = Run(
        path=run_dir,
        config=config,
        environment=environment,
        records=records,
        results=results,
        video_ids=queries["video_ids"],
        captions=queries["captions"],
        tensors=tensors,
    )
    _require_one_evaluation(run)
    return run


def _load_answers(run_dir: Path, config: RunConfig, environment: dict[str, Any], records: list[dict[str, Any]]) -> Run:
    """The figures of a run that answers questions."""
    results = _read_json(run_dir / RESULTS, IN_RESULTS_OF_ANSWERS)
    path = run_dir / ANSWERS
    way_out = f"{_writer(path)} writes it again"
    given = read_json(path, way_out)
    if wrong := unlike(given, IN_ANSWERS):
        raise UserError(f"{path} cannot be used: {wrong}; {way_out}")
    if len(given) != results["figures"]["kept"]:
        raise UserError(
            f"{path} does not belong to {RESULTS} next to it: it has {len(given)} questions, and the figures there are "
            f"of {results['figures']['kept']} kept ones; {_writer(path)} writes both again"
        )
    run = Run(run_dir, config, environment, records, results, [], [], {}, given)
    _require_settings_of_emcl(run)
    return run


def load_so_far(run_dir: Path) -> Run:
    """Read the folder of a run that has no figures yet: its settings and its curves, as far as there are any.

    Returns:
        The run, without queries and tensors; of results it has how its weights are chosen, and no rows.

    Raises:
        UserError: it holds no run, or a file is damaged.
    """
    config = load_config(run_dir)
    path = run_dir / METRICS
    records = _checked(read_records(path), path, config) if path.is_file() else []
    results = {"selection": selection_of(run_dir), "rows": []}
    return Run(run_dir, config, load_environment(run_dir), records, results, [], [], {})


def _require_one_evaluation(run: Run) -> None:
    """Raise a UserError unless results, queries and embeddings fit each other, as one evaluation writes them."""
    results = run.path / RESULTS
    if not run.results["rows"]:
        raise UserError(f"{results} has no rows; {_writer(results)} writes it again")
    _require_settings_of_emcl(run)

    embeddings = run.path / EMBEDDINGS
    again = f"{_writer(embeddings)} writes both again"
    beside = f"{embeddings} does not belong to queries.json next to it"
    captions, clips = len(run.captions), len(run.video_ids)
    found = list(run.tensors["similarity_off"].shape) if "similarity_off" in run.tensors else "no similarity_off"
    if found != [captions, clips]:
        raise UserError(f"{beside}: expected similarity_off of shape {[captions, clips]}, got {found}; {again}")

    # The first lengths of all others; None is any.
    expected = {
        "text": (captions, None),
        "frames": (clips, None, None),
        "frame_mask": (clips, None),
        "caption_clip": (captions,),
        "similarity_on": (captions, clips),
    }
    for name, lengths in expected.items():
        if name not in run.tensors and name in ("similarity_on", "frames", "text", "frame_mask"):
            continue
        shape = tuple(run.tensors[name].shape) if name in run.tensors else ()
        fits = len(shape) == len(lengths) and all(b in (None, a) for a, b in zip(shape, lengths, strict=True))
        if not fits:
            raise UserError(
                f"{beside}: {name} has shape {list(shape)}, for {captions} captions and {clips} clips; {again}"
            )
    own = run.tensors["caption_clip"]
    if own.is_floating_point() or (own.numel() and not 0 <= int(own.min()) <= int(own.max()) < clips):
        raise UserError(f"{beside}: caption_clip has other values than numbers of {clips} clips; {again}")


def _require_settings_of_emcl(run: Run) -> None:
    results = run.path / RESULTS
    settings = run.results.get("emcl") or {}
    wrong = unlike(settings, IN_EMCL) or next(
        (f"{name} is no setting" for name in settings if name not in IN_EMCL), None
    )
    if wrong:
        raise UserError(f"{results} has no settings of EMCL: {wrong}; {_writer(results)} writes it again")


def _checked(records: list[dict[str, Any]], path: Path, config: RunConfig) -> list[dict[str, Any]]:
    """The records, all of which are what their readers expect."""
    expected = IN_RECORDS_OF_ANSWERS if config.answers_questions else IN_RECORDS
    for line, record in enumerate(records, start=1):
        if wrong := unlike(record, expected.get(record["kind"], {})):
            raise record_error(path, line, wrong)
    return records


def _writer(path: Path) -> str:
    """The command that writes a file of a run again."""
    folder = path.parent
    if run := run_of(folder):
        return f"`emcl-train eval {run}` with the settings of {folder.name}"
    return "`emcl-train train`" if path.name in OF_TRAINING else f"`emcl-train eval {folder}`"


def _read_json(path: Path, like: Mapping[str, Any]) -> dict[str, Any]:
    way_out = f"{_writer(path)} writes it again"
    value = dict(read_json(path, way_out, keys=[name for name in like if not may_lack(like[name])]))
    if wrong := unlike(value, like):
        raise UserError(f"{path} cannot be used: {wrong}; {way_out}")
    return value
