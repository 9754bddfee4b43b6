"""Which of a file's streams of pictures is the film."""

from collections import Counter
from pathlib import Path

from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from emcl_train.config import MAX_PIXELS
from emcl_train.data.decoding import demuxed
from emcl_train.data.opening import opened
from emcl_train.data.timeline import VideoError

COVER = Disposition.attached_pic
NO_FILM = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image


def film_of(container: InputContainer, path: Path, *, first: bool = False, max_pixels: int = MAX_PIXELS) -> VideoStream:
    """The stream that a player shows.

    Cameras and editors put a preview beside the film: a still, thumbnails, or a small copy. One frame is no film beside
    several, however large it is. A stream that somebody marked as the default is what players show. Where nobody did,
    a preview has at most half of the pixels that the film has over all of its frames. Of streams that are no previews,
    the one that is marked is taken, or else the first.

    Args:
        container: the open file; nothing is read from it.
        path: its name.
        first: take the first stream that is no cover, whatever it is.
        max_pixels: of a frame, where the file is opened again to count frames.

    Raises:
        VideoError: there is no stream of pictures, or none that can be decoded.
    """
    pictures = [stream for stream in container.streams.video if not stream.disposition & COVER]
    if not pictures:
        raise VideoError(path, "it has no video stream")
    known = [stream for stream in pictures if stream.codec_context is not None]
    if not known:
        raise VideoError(path, "its video stream is in a format that is not known here")

    films = [stream for stream in known if not stream.disposition & NO_FILM] or known
    if first or len(films) == 1:
        return known[0] if first else films[0]

    frames, pixels = _counted(path, max_pixels)
    films = [stream for stream in films if frames[stream.index] > 1] or films
    films = _marked(films, container) or films
    most = max(pixels[stream.index] for stream in films)
    films = [stream for stream in films if 2 * pixels[stream.index] > most] or films
    return next((stream for stream in films if stream.disposition & Disposition.default), films[0])


def _marked(films: list[VideoStream], container: InputContainer) -> list[VideoStream]:
    """Those that somebody marked as the default, if the mark says anything."""
    marked = [stream for stream in films if stream.disposition & Disposition.default]

    # Writers of MP4 mark the first one where nobody asked for any.
    unasked = container.format.name.startswith("mov") and container.streams.video[0] in marked
    return [] if unasked else marked


def _counted(path: Path, max_pixels: int) -> tuple[Counter[int], Counter[int]]:
    """How many frames each stream of pictures has, and how many pixels over all of them, by the stream's index."""
    frames: Counter[int] = Counter()
    pixels: Counter[int] = Counter()
    with opened(path, max_pixels) as container:
        for packet in demuxed(container, list(container.streams.video)):
            if packet.size and not packet.is_discard:
                codec = packet.stream.codec_context
                frames[packet.stream_index] += 1
                pixels[packet.stream_index] += codec.width * codec.height if codec is not None else 0
    return frames, pixels
