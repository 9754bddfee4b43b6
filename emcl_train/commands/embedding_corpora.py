"""The command embed with --shards: a corpus into shards."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from emcl_train.commands.entry import flags_of
from emcl_train.commands.everywhere import is_dry_run
from emcl_train.commands.options_file import print_file, without_print_config
from emcl_train.commands.output import json_result, with_bare_json
from emcl_train.endings import say_if_ended
from emcl_train.errors import UserError
from emcl_train.extras import require_packages
from emcl_train.flags import Command, of_command
from emcl_train.runs.machine import is_first_process, process_count

FLAG = "--shards"


@dataclass
class EmbedCorpusArguments:
    """Embed every clip of a corpus, a row each, into shards in the folder `--out`.

    A corpus is a folder of videos, a table (.jsonl, .csv) of clips, a .tar of videos as webdataset has them, or a
    folder of such; or the address of one of these in an object store, such as s3://bucket/videos. Kill it whenever you
    like: the next one goes on. Start as many processes as you like, by torchrun or one by one: each takes shards that
    nobody has.
    """

    out: Path
    """Folder to write, or to go on with."""
    model: str
    """The folder of a run, or a CLIP's folder or name on the hub."""
    shards: bool = True
    """Write shards. Without it, embed writes one array."""
    clips_a_shard: int = 1000
    """Of a folder or a table; an archive is a shard."""
    piece: float | None = None
    """Cut clips into pieces of so many seconds, a row each; None: a clip is a row."""
    frames: bool = False
    """Store the features of frames too, in 16 bits."""
    workers: int | None = None
    """Threads of each process that decode beside the towers; 0: none; None: as the model's configuration says."""
    engine: Literal["processes", "ray"] = "processes"
    """Who divides the work: the processes that were started, or Ray Data."""
    actors: int | None = None
    """Of Ray, each with a model; None: one for each GPU, or else for each core, of the cluster."""
    json: Path | None = None
    """Write what was done to this file; alone, or with -, print it in place of all else."""


def embed_corpus(what: str, arguments: list[str]) -> int:
    """Embed a corpus, or make of its shards those that are not there."""
    arguments, prints = without_print_config(with_bare_json(arguments))
    asked = tyro.cli(EmbedCorpusArguments, args=arguments, prog=f"emcl-train embed {what}")
    if prints:
        return print_file(EmbedCorpusArguments, asked)
    with of_command(Command(flags_of(EmbedCorpusArguments))):
        _require(asked)
        if asked.engine == "ray":
            require_packages("ray")
        if is_dry_run():
            raise UserError("embed takes no --dry-run with --shards; the manifest in --out says what the plan is")
        say_if_ended(lambda: f"the shards in {asked.out} are whole; run the command again to go on")
        if asked.engine == "ray" and process_count() > 1:
            raise UserError("--engine ray starts its own processes; start the command without torchrun")
        return _run(what, asked)


def _require(asked: EmbedCorpusArguments) -> None:
    if not asked.shards:
        raise UserError("--no-shards leaves no place for a corpus; pass --shards")
    if asked.clips_a_shard < 1:
        raise UserError(f"clips_a_shard is {asked.clips_a_shard}, expected 1 or more; pass --clips-a-shard 1000")
    if asked.piece is not None and not 0.1 <= asked.piece < float("inf"):
        raise UserError(f"piece is {asked.piece:g} s, expected 0.1 s or more; pass --piece 4")
    if asked.workers is not None and asked.workers < 0:
        raise UserError(f"workers is {asked.workers}, expected 0 or more; pass --workers 2")
    if asked.actors is not None and asked.engine != "ray":
        raise UserError("--actors is of Ray; pass --engine ray, or leave it out")
    if asked.actors is not None and asked.actors < 1:
        raise UserError(f"actors is {asked.actors}, expected 1 or more; pass --actors 2")


def _run(what: str, asked: EmbedCorpusArguments) -> int:
    from emcl_train.corpora.outcome import print_report
    from emcl_train.corpora.plan import Asked
    from emcl_train.corpora.running import embed_corpus as embed_here

    wanted = Asked(what, asked.out, asked.model, asked.clips_a_shard, asked.piece, asked.frames, asked.workers)
    with json_result(asked.json if is_first_process() else None) as result:
        if asked.engine == "ray":
            from emcl_train.corpora.on_ray import embed_on_ray

            report = embed_on_ray(wanted, asked.actors)
        else:
            report = embed_here(wanted)
        if not is_first_process():
            return 0
        print_report(report, wanted)
        result(report.as_json(wanted))
    return report.code
