"""A corpus into shards, by as many processes as there are: each takes a shard that nobody has, until none is left.

Processes of a launcher do so, and as well those that were started one by one, on machines that share the folder. Whose
a shard is says the lock of its file, which ends with the process: what a killed one had begun is another one's.
"""

from collections.abc import Callable
from contextlib import suppress

from emcl_train.corpora.embedding import write_shard
from emcl_train.corpora.outcome import Report
from emcl_train.corpora.plan import Asked, prepared
from emcl_train.data.passing import PassingError
from emcl_train.encoder import Encoder, load
from emcl_train.processes import agreed, gather_objects, rank_and_world
from emcl_train.runs.lock import RECORD, BusyError, making
from emcl_train.search.progress import Progress
from emcl_train.tools.shards import Shards


def embed_corpus(asked: Asked) -> Report:
    """Make the shards of a corpus that are not there.

    Returns:
        What was done; in several processes of a launcher, in the first one what all have done.

    Raises:
        UserError: the corpus, the model or the folder is not what it should be.
    """
    rank, world = rank_and_world()
    encoder = agreed(lambda: load(asked.model))
    shards, notes = agreed(lambda: prepared(asked, encoder))
    report = agreed(
        lambda: make_shards(shards, encoder, asked.workers, first=rank * shards.count // world, quiet=rank > 0)
    )
    report.notes = notes
    for other in gather_objects(report)[1:] if world > 1 else []:
        report.add(other)
    if rank == 0:
        clear_records(shards)
        report.look(shards)
    return report


def clear_records(shards: Shards) -> None:
    """Remove what killed processes have left beside shards: whose they were, and files that are not whole."""
    for record in shards.folder.glob(f".*{RECORD}"):
        with suppress(BusyError), making(shards.folder / record.name.removeprefix(".").removesuffix(RECORD)):
            pass


def make_shards(
    shards: Shards, encoder: Encoder, workers: int | None, *, first: int = 0, quiet: bool = False
) -> Report:
    """Make every shard that is not there and that no other process has.

    Args:
        shards: the folder.
        encoder: of its model.
        workers: threads that decode; None: as the model says.
        first: the shard to begin with, so that processes that begin together do not ask for the same ones.
        quiet: whether to show no progress.
    """
    report = Report()
    numbers = [*range(first, shards.count), *range(first)]
    left = [number for number in numbers if not shards.path(number).is_file()]
    clips = shards.manifest["corpus"]["items"] * len(left) // max(1, shards.count)
    with Progress(clips, clips, quiet=quiet, title="Embed") as progress:

        def count() -> None:
            progress.moments(1)
            progress.file(1)

        for number in left:
            try:
                if make_shard(shards, number, encoder, workers, count):
                    report.written.append(number)
            except BusyError:
                report.busy.append(number)
            except PassingError as error:
                if error.everywhere:
                    raise
                report.trouble[number] = f"{error.path}: {error.reason}"
    return report


def make_shard(
    shards: Shards, number: int, encoder: Encoder, workers: int | None, on_clip: Callable[[], None] = lambda: None
) -> bool:
    """Make a shard, unless it is there.

    Returns:
        Whether it was made now.

    Raises:
        BusyError: another process has it.
        PassingError: a file of it cannot be read now.
    """
    if shards.path(number).is_file():
        return False
    with making(shards.path(number)):
        if shards.path(number).is_file():  # by now
            return False
        write_shard(shards, number, encoder, workers, on_clip)
    return True
