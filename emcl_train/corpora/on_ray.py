"""A corpus into shards on a cluster: Ray Data hands the numbers of shards to actors, each of which has a model.

What an actor does with a number is what a process does with it: the shard is made unless it is there, whole or not at
all. So whatever Ray does when a worker dies, as giving its number to another one, no row is there twice. Ray's own
aggregation adds up the moments of the rows, which are all that a refiner needs of them.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from emcl_kernels import em_moments
from emcl_train.corpora.outcome import Report
from emcl_train.corpora.plan import A_MOMENT, Asked, prepared
from emcl_train.corpora.running import make_shard
from emcl_train.data.passing import PassingError
from emcl_train.encoder import load
from emcl_train.errors import UserError
from emcl_train.runs.files import give_usual_mode, whole
from emcl_train.runs.lock import BusyError, making
from emcl_train.tools.shards import MOMENTS, Shards


class ShardMaker:
    """An actor: it loads the model once, and makes the shards whose numbers it is given.

    Args:
        folder: of the shards; all machines see it under this name.
        model: that made the plan.
        device: where to compute.
        workers: threads that decode; None: as the model says.
    """

    def __init__(self, folder: str, model: str, device: str, workers: int | None) -> None:
        self._workers = workers
        self._shards = Shards.open(Path(folder))
        self._encoder = load(model, device=device)
        if self._encoder.fingerprint != self._shards.fingerprint:
            raise UserError(
                f"{model} has the fingerprint {self._encoder.fingerprint} on this machine, and the plan is of "
                f"{self._shards.fingerprint}; bring the same model to every machine"
            )

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Make the shards of a batch, and give the moments of their rows, `[n, D² + D + 1]`."""
        moments, written, trouble = [], [], []
        for number in batch["shard"].tolist():
            made, why = False, ""
            try:
                made = self._make(number)
            except PassingError as error:
                if error.everywhere:
                    raise
                why = f"{error.path}: {error.reason}"
            moments.append(
                np.zeros(self._shards.width * (self._shards.width + 1) + 1) if why else self._moments(number)
            )
            written.append(made)
            trouble.append(why)
        return {"shard": batch["shard"], "moments": np.stack(moments), "written": written, "trouble": trouble}

    def _make(self, number: int) -> bool:
        """Make a shard, or wait for who makes it: that may be an actor that Ray believes dead."""
        while True:
            try:
                return make_shard(self._shards, number, self._encoder, self._workers)
            except BusyError:
                time.sleep(A_MOMENT)

    def _moments(self, number: int) -> np.ndarray:
        """Of the rows as they are in the shard, brought to length one."""
        rows = torch.from_numpy(self._shards.opened(number).vectors()).double()
        gram, colsum = em_moments(torch.nn.functional.normalize(rows, dim=-1))
        return np.concatenate([gram.flatten().numpy(), colsum.numpy(), [len(rows)]])


def embed_on_ray(asked: Asked, actors: int | None) -> Report:
    """Make the shards of a corpus that are not there, and the moments of all rows.

    Args:
        asked: what is wanted. The folder, the model and a corpus of files have to be there for every machine.
        actors: how many; None: one for each GPU of the cluster, or else for each core.

    Raises:
        UserError: the corpus, the model or the folder is not what it should be.
    """
    encoder = load(asked.model, device="cpu")
    shards, notes = prepared(asked, encoder)
    model = str(shards.manifest["model"]["path"])
    del encoder
    report = Report(notes=notes)
    if shards.count:
        with _ray() as ray:
            moments = _on_ray(ray, shards, {"model": model, "workers": asked.workers}, actors, report)
        if not report.trouble:
            _write_moments(shards, moments)
    report.look(shards)
    return report


@contextmanager
def _ray() -> Iterator[Any]:
    """The cluster that RAY_ADDRESS names, or one of this machine for as long as the block lasts."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield ray
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, UserError):
            raise UserError(str(cause)) from error
        raise
    finally:
        if ours:
            ray.shutdown()


def _on_ray(ray: Any, shards: Shards, settings: dict[str, Any], actors: int | None, report: Report) -> np.ndarray:
    """Let Ray map the shards over actors and add up what they give."""
    from ray.data.aggregate import AggregateFn

    there = ray.cluster_resources()
    gpus = int(there.get("GPU", 0))
    number = min(actors or gpus or int(there.get("CPU", 1)), shards.count)
    device = "cuda" if gpus else "cpu"
    size = shards.width * (shards.width + 1) + 1

    made = ray.data.from_items([{"shard": number} for number in range(shards.count)]).map_batches(
        ShardMaker,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=number),
        fn_constructor_kwargs={"folder": str(shards.folder.absolute()), "device": device, **settings},
        **({"num_gpus": 1} if gpus else {"num_cpus": 1}),
    )
    summed = made.aggregate(
        AggregateFn(
            init=lambda key: np.zeros(size),
            accumulate_row=lambda total, row: total + row["moments"],
            merge=lambda one, other: one + other,
            name="moments",
        ),
        AggregateFn(
            init=lambda key: [],
            accumulate_row=lambda found, row: [*found, [row["shard"], row["written"], row["trouble"]]],
            merge=lambda one, other: [*one, *other],
            finalize=lambda found: [f"{int(number)}\t{int(made)}\t{why}" for number, made, why in found],
            name="shards",
        ),
    )
    for line in summed["shards"]:
        shard, was_made, why = line.split("\t", 2)
        if int(was_made):
            report.written.append(int(shard))
        if why:
            report.trouble[int(shard)] = why
    return np.asarray(summed["moments"], np.float64).reshape(size)


def _write_moments(shards: Shards, moments: np.ndarray) -> None:
    path = shards.folder / MOMENTS
    with making(path), whole(path) as partial:
        save_file({"moments": moments}, partial, metadata={"fingerprint": shards.fingerprint})
        give_usual_mode(partial)
