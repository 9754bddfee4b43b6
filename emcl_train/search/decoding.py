"""Films to moments, some films ahead of the towers: threads decode, and little of it is in memory at a time."""

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from emcl_train.data.clips import Clip
from emcl_train.data.passing import PassingError, passing
from emcl_train.data.timeline import VideoError
from emcl_train.data.video import Span, pictures_of_spans
from emcl_train.encoder import Encoder
from emcl_train.search.finding import Seen
from emcl_train.search.moments import Cutting
from emcl_train.search.thumbnails import thumbnail_of

MOMENTS = 16
"""That are decoded, and then encoded, together; always the same ones of a film, so that rows do not depend on others."""
AHEAD = 2
"""Parts of each film that wait for the towers."""


@dataclass
class Part:
    """Some moments of a film that follow each other, decoded; or the end of it."""

    seen: Seen
    spans: list[Span] = field(default_factory=list)
    pictures: list[Tensor] = field(default_factory=list)
    """Of each moment its frames `[F, 3, S, S]`, uint8."""
    masks: list[Tensor] = field(default_factory=list)
    thumbnails: list[bytes] = field(default_factory=list)
    last: bool = False
    error: Exception | None = None
    """What ended the film before its end; its moments count for nothing then."""

    @property
    def frames(self) -> Tensor:
        """`[N, F, 3, S, S]`, uint8."""
        return torch.stack(self.pictures)

    @property
    def frame_mask(self) -> Tensor:
        """`[N, F]`, False on padding."""
        return torch.stack(self.masks)


def decoded_ahead(films: Sequence[Seen], encoder: Encoder, cutting: Cutting) -> Iterator[Part]:
    """The parts of every film, film by film, in order. The last part of each says whether it came to its end.

    Args:
        films: files.
        encoder: says which frames it wants, of which size.
        cutting: into moments.

    Raises:
        PassingError: every other film would meet it too.
    """
    waiting: list[queue.Queue[Part]] = [queue.Queue(AHEAD) for _ in films]
    order = iter(range(len(films)))
    next_film = threading.Lock()
    ended = threading.Event()
    ahead = threading.Semaphore(workers_of(encoder) + 1)
    """Films that are begun and not yet taken to their end."""

    def put(number: int, part: Part) -> bool:
        while not ended.is_set():
            try:
                waiting[number].put(part, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        while not ended.is_set():
            ahead.acquire()
            with next_film:
                number = next(order, None)
            if number is None or ended.is_set():
                ahead.release()
                return
            for part in _parts_of(films[number], encoder, cutting):
                if not put(number, part):
                    return

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(workers_of(encoder), len(films)))]
    for thread in threads:
        thread.start()
    try:
        for parts in waiting:
            part = parts.get()
            while not part.last:
                yield part
                part = parts.get()
            if isinstance(part.error, PassingError) and part.error.everywhere:
                raise part.error
            if part.error is not None and not isinstance(part.error, VideoError | PassingError):
                raise part.error
            yield part
            ahead.release()
    finally:
        ended.set()
        for _ in threads:
            ahead.release()
        for thread in threads:
            thread.join()


def workers_of(encoder: Encoder) -> int:
    """Films that are decoded at a time."""
    return max(1, encoder.config.data.workers)


def _parts_of(seen: Seen, encoder: Encoder, cutting: Cutting) -> Iterator[Part]:
    """The parts of one film. An error is its last part, so that it reaches who takes them."""
    try:
        clip = Clip(str(seen.path), seen.path)
        cut = cutting.spans(seen.path, encoder.config.data.max_pixels)
        part = Part(seen)
        for span, pictures in pictures_of_spans(encoder.request(clip), cut):
            frames, mask = encoder.frames_of(pictures)
            part.spans.append(span)
            part.pictures.append(frames)
            part.masks.append(mask)
            part.thumbnails.append(thumbnail_of(pictures))
            if len(part.spans) == MOMENTS:
                yield part
                part = Part(seen)
        part.last = True
        yield part
    except VideoError as error:
        yield Part(seen, last=True, error=error)
    except Exception as error:
        yield Part(seen, last=True, error=passing(error, seen.path) or error)
