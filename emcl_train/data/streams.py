"""Which of a file's streams of pictures is the film."""

from collections import Counter
from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from emcl_train.data.timeline import VideoError

COVER = Disposition.attached_pic
NO_FILM = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image


def film_of(container: InputContainer, path: Path, *, first: bool = False) -> VideoStream:
    """The stream that a player shows.

    Cameras and editors put a preview beside the film: a still, thumbnails, or a small copy. It has at most half of the
    pixels that the film has over all of its frames. Of streams that are no previews, the one that is marked as the
    default is taken, or else the first.

    Args:
        container: the open file; nothing is read from it.
        path: its name.
        first: take the first stream that is no cover, whatever it is.

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

    pixels = _pixels(path)
    most = max(pixels[stream.index] for stream in films)
    films = [stream for stream in films if 2 * pixels[stream.index] > most] or films
    return next((stream for stream in films if stream.disposition & Disposition.default), films[0])


def _pixels(path: Path) -> Counter[int]:
    """How many pixels each stream of pictures has over all of its frames, by the stream's index."""
    found: Counter[int] = Counter()
    with av.open(str(path)) as container:
        for packet in container.demux(video=list(range(len(container.streams.video)))):
            if packet.size and not packet.is_discard:
                codec = packet.stream.codec_context
                found[packet.stream_index] += codec.width * codec.height if codec is not None else 0
    return found
