"""Frames of real clips by several decoders: the same frames of every clip, as the model sees them."""

import importlib
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emcl_train.data.container import open_video, whole_timeline
from emcl_train.data.picture import Picture, square
from emcl_train.data.timeline import VideoError
from emcl_train.data.video import FrameRequest, decode_frames

ENDINGS = (".avi", ".mkv", ".mov", ".mp4", ".webm")
OURS = "ours"


@dataclass(frozen=True)
class Wanted:
    """What is wanted of a clip, which no way has to find out itself."""

    path: Path
    numbers: list[int]
    """Frames by their place in the order of display, ascending."""
    height: int
    width: int
    """Of a frame as it is watched, in square pixels."""
    size: int
    """Height and width of the square that is made of each."""
    expected: np.ndarray
    """[F, H, W, 3], uint8: what ours gives."""

    @property
    def scaled(self) -> tuple[int, int]:
        """Height and width after scaling, before the crop."""
        short = min(self.height, self.width)
        return int(self.size * self.height / short), int(self.size * self.width / short)


Frames = np.ndarray
"""[F, H, W, 3], uint8."""
Way = Callable[[Wanted], Frames]


def wanted_of(folder: Path, frames: int, size: int) -> tuple[list[Wanted], list[str]]:
    """What is wanted of every clip in a folder; and of those that are damaged their names."""
    found, damaged = [], []
    for path in sorted(file for file in folder.iterdir() if file.suffix in ENDINGS):
        try:
            pixels, mask = decode_frames(FrameRequest(path, frames, size))
            with open_video(path) as (container, stream):
                timeline = whole_timeline(container, stream, path)
                height, width, aspect = stream.height, stream.width, stream.sample_aspect_ratio
        except VideoError:
            damaged.append(path.name)
            continue
        centres = [timeline.times[0] + timeline.seconds * (part + 0.5) / frames for part in range(frames)]
        numbers = [max(0, bisect_right(timeline.times, centre + 1e-6) - 1) for centre in centres]
        expected = pixels[mask].permute(0, 2, 3, 1).numpy()
        if len(expected) < frames:
            numbers = list(dict.fromkeys(numbers))
        found.append(Wanted(path, numbers, height, round(width * aspect) if aspect else width, size, expected))
    return found, damaged


def squared(pictures: Sequence[np.ndarray], wanted: Wanted) -> Frames:
    """Pictures of full size as ours are scaled and cropped: by Pillow."""
    pixels = [square(Picture(picture, wanted.height, wanted.width), wanted.size) for picture in pictures]
    return torch.stack(pixels).permute(0, 2, 3, 1).numpy()


def cropped(pictures: Sequence[np.ndarray], wanted: Wanted) -> Frames:
    """Pictures that are scaled already, cropped at the centre."""
    height, width = pictures[0].shape[:2]
    top, left = (height - wanted.size) // 2, (width - wanted.size) // 2
    return np.stack([picture[top : top + wanted.size, left : left + wanted.size] for picture in pictures])


def ours(wanted: Wanted) -> Frames:
    """As a run decodes a clip in training."""
    frames, _ = decode_frames(FrameRequest(wanted.path, len(wanted.numbers), wanted.size))
    return frames.permute(0, 2, 3, 1).numpy()


def decord_ways() -> dict[str, Way]:
    decord: Any = importlib.import_module("decord")

    def scaled(wanted: Wanted) -> Frames:
        height, width = wanted.scaled
        reader = decord.VideoReader(str(wanted.path), width=width, height=height, num_threads=1)
        return cropped(reader.get_batch(wanted.numbers).asnumpy(), wanted)

    def whole(wanted: Wanted) -> Frames:
        reader = decord.VideoReader(str(wanted.path), num_threads=1)
        return squared(reader.get_batch(wanted.numbers).asnumpy(), wanted)

    return {"decord, scaled as ours": whole, "decord, its own scaling": scaled}


def opencv_ways() -> dict[str, Way]:
    cv2: Any = importlib.import_module("cv2")
    cv2.setNumThreads(1)

    def read(wanted: Wanted) -> list[np.ndarray]:
        capture = cv2.VideoCapture(str(wanted.path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        pictures: dict[int, np.ndarray] = {}
        chosen = set(wanted.numbers)
        for number in range(wanted.numbers[-1] + 1):
            if not capture.grab():
                break
            if number in chosen:
                pictures[number] = capture.retrieve()[1]
        return [pictures[number] for number in wanted.numbers]

    def scaled(wanted: Wanted) -> Frames:
        height, width = wanted.scaled
        small = [cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA) for picture in read(wanted)]
        return cropped([picture[:, :, ::-1] for picture in small], wanted)

    def whole(wanted: Wanted) -> Frames:
        return squared([np.ascontiguousarray(picture[:, :, ::-1]) for picture in read(wanted)], wanted)

    return {"OpenCV, scaled as ours": whole, "OpenCV, its own scaling": scaled}


def torchcodec_ways() -> dict[str, Way]:
    decoders: Any = importlib.import_module("torchcodec.decoders")

    def whole(wanted: Wanted) -> Frames:
        decoder = decoders.VideoDecoder(str(wanted.path), dimension_order="NHWC", num_ffmpeg_threads=1)
        return squared(decoder.get_frames_at(wanted.numbers).data.numpy(), wanted)

    return {"torchcodec, scaled as ours": whole}


LIBRARIES: dict[str, Callable[[], dict[str, Way]]] = {
    "decord": decord_ways,
    "OpenCV": opencv_ways,
    "torchcodec": torchcodec_ways,
}


def ways() -> tuple[dict[str, Way], dict[str, str]]:
    """All that can be loaded here, ours first; and why others cannot."""
    found: dict[str, Way] = {OURS: ours}
    missing = {}
    for name, load in LIBRARIES.items():
        try:
            found |= load()
        except (ImportError, OSError, RuntimeError) as error:
            reason = error.__cause__ or error  # which library was looked for, and not for whom
            missing[name] = " ".join(str(reason).split())[:200]
    return found, missing


def difference(way: Way, clips: Sequence[Wanted]) -> float:
    """Mean of the absolute differences to ours, in levels of 255."""
    apart = [np.abs(way(clip).astype(int) - clip.expected).mean() for clip in clips]
    return float(np.mean(apart))


def processor_seconds(way: Way, clips: Sequence[Wanted]) -> float:
    """Of this process and all its threads, user and system, for all clips once."""
    begin = time.process_time()
    for clip in clips:
        way(clip)
    return time.process_time() - begin
