"""The files of a finished run, read and checked in one place."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from emcl_train.config import EMCLConfig, RunConfig
from emcl_train.errors import UserError
from emcl_train.runs.contents import (
    EMBEDDINGS,
    ENVIRONMENT,
    METRICS,
    OF_EVALUATION,
    OF_TRAINING,
    QUERIES,
    RESULTS,
    load_config,
    require_run,
    run_of,
)
from emcl_train.runs.files import read_json
from emcl_train.runs.records import read_records
from emcl_train.runs.state import read_tensors

IN_RESULTS = ("rows", "split", "queries", "gallery", "em_block", "selection")
"""What a report needs of results.json."""


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

    missing = [name for name in (*OF_TRAINING, *OF_EVALUATION) if not (run_dir / name).is_file()]
    if missing:
        raise UserError(
            f"{run_dir} is not the folder of a finished run: {', '.join(missing)} missing; "
            f"{_writer(run_dir / missing[0])} writes {missing[0]} (a run that was stopped goes on with "
            f"`emcl-train train RECIPE --resume`)"
        )

    queries = _read_json(run_dir / QUERIES, ("video_ids", "captions"))
    results = _read_json(run_dir / RESULTS, IN_RESULTS)
    embeddings = run_dir / EMBEDDINGS
    tensors = read_tensors(embeddings, f"{_writer(embeddings)} writes it again")

    # Three files that one evaluation wrote belong together.
    expected = [len(queries["captions"]), len(queries["video_ids"])]
    found = list(tensors["similarity_off"].shape) if "similarity_off" in tensors else "no similarity_off"
    if found != expected:
        raise UserError(
            f"{embeddings} does not belong to queries.json next to it: expected similarity_off of shape {expected}, "
            f"got {found}; {_writer(embeddings)} writes both again"
        )

    return Run(
        path=run_dir,
        config=load_config(run_dir),
        environment=_read_json(run_dir / ENVIRONMENT, ()),
        records=read_records(run_dir / METRICS),
        results=results,
        video_ids=queries["video_ids"],
        captions=queries["captions"],
        tensors=tensors,
    )


def _writer(path: Path) -> str:
    """The command that writes a file of a run again."""
    folder = path.parent
    if run := run_of(folder):
        return f"`emcl-train eval {run}` with the settings of {folder.name}"
    return "`emcl-train train`" if path.name in OF_TRAINING else f"`emcl-train eval {folder}`"


def _read_json(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    return dict(read_json(path, f"{_writer(path)} writes it again", keys=keys))
