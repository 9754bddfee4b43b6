"""Films to moments, some films ahead of the towers: threads decode, and little of it is in memory at a time."""

import threading
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from emcl_train.data.ahead import made_ahead
from emcl_train.data.clips import Clip
from emcl_train.data.passing import PassingError, passing
from emcl_train.data.timeline import VideoError
from emcl_train.data.video import Span, pictures_of_spans
from emcl_train.encoder import Encoder
from emcl_train.search.finding import Seen, content_of
from emcl_train.search.moments import Cutting
from emcl_train.search.thumbnails import thumbnail_of

MOMENTS = 16
"""That are decoded and encoded together: always the same ones of a film, so that rows do not depend on other films."""


@dataclass
class Part:
    """Some moments of a film that follow each other, decoded; or the end of it."""

    seen: Seen
    content: str = ""
    """Of the file; "" where it could not be read."""
    is_known: bool = False
    """Its moments are there, or on their way: it is a copy, or was moved."""
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


def decoded_ahead(films: Sequence[Seen], encoder: Encoder, cutting: Cutting, known: Container[str]) -> Iterator[Part]:
    """The parts of every film, film by film, in order. The last part of each says whether it came to its end.

    Args:
        films: files. Of several with one content the first is decoded, and the others are known.
        encoder: says which frames it wants, of which size.
        cutting: into moments.
        known: contents that need not be decoded.

    Raises:
        PassingError: every other film would meet it too.
    """
    claims = _Claims(known)
    for part in made_ahead(
        len(films), lambda number: _parts_of(films[number], encoder, cutting, claims), workers_of(encoder)
    ):
        if isinstance(part.error, PassingError) and part.error.everywhere:
            raise part.error
        if part.error is not None and not isinstance(part.error, VideoError | PassingError):
            raise part.error
        yield part


def workers_of(encoder: Encoder) -> int:
    """Films that are decoded at a time."""
    return max(1, encoder.config.data.workers)


class _Claims:
    """Which contents are known, or are somebody's to decode."""

    def __init__(self, known: Container[str]) -> None:
        self._known = known
        self._claimed: set[str] = set()
        self._lock = threading.Lock()

    def take(self, content: str) -> bool:
        """Whether the one who asks is to decode it."""
        with self._lock:
            if content in self._known or content in self._claimed:
                return False
            self._claimed.add(content)
            return True


def _parts_of(seen: Seen, encoder: Encoder, cutting: Cutting, claims: _Claims) -> Iterator[Part]:
    """The parts of one film. An error is its last part, so that it reaches who takes them."""
    content = ""
    try:
        content = content_of(seen.path)
        if not claims.take(content):
            yield Part(seen, content, is_known=True, last=True)
            return

        clip = Clip(str(seen.path), seen.path)
        cut = cutting.spans(seen.path, encoder.config.data.max_pixels)
        part = Part(seen, content)
        for span, pictures in pictures_of_spans(encoder.request(clip), cut):
            frames, mask = encoder.frames_of(pictures)
            part.spans.append(span)
            part.pictures.append(frames)
            part.masks.append(mask)
            part.thumbnails.append(thumbnail_of(pictures))
            if len(part.spans) == MOMENTS:
                yield part
                part = Part(seen, content)
        part.last = True
        yield part
    except VideoError as error:
        yield Part(seen, content, last=True, error=error)
    except Exception as error:
        yield Part(seen, content, last=True, error=passing(error, seen.path) or _gone(error, seen) or error)


def _gone(error: Exception, seen: Seen) -> PassingError | None:
    """What is said of a file that went away, or that may not be read."""
    return PassingError(seen.path, error.strerror or str(error), error.errno) if isinstance(error, OSError) else None
