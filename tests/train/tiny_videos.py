"""Videos of a few frames whose brightness tells which frame is which."""

import json
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from torch import Tensor

STEP, FIRST = 5, 20


def write_video(
    path: Path,
    levels: Iterable[int],
    *,
    times: Sequence[int] | None = None,
    size: tuple[int, int] = (64, 48),
    noise: bool = False,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rate: int = 10,
    aspect: Fraction | None = None,
    paint: Callable[[np.ndarray, int], None] | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Frame i has brightness `levels[i]`, and is shown from `times[i]` / `rate` seconds on."""
    draw = np.random.default_rng(0)
    levels = list(levels)
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options={"crf": "1", "preset": "ultrafast"} | (options or {}))
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = Fraction(1, rate)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        stream.codec_context.thread_count = 1
        for i, value in enumerate(levels):
            image = np.full((size[1], size[0], 3), FIRST + STEP * value, dtype=np.uint8)
            if noise:
                image = draw.integers(0, 256, image.shape, dtype=np.uint8)
            if paint:
                paint(image, i)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = (times[i] if times else i), Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def level(frame: Tensor) -> int:
    """Which level a decoded frame had."""
    return round((frame.float().mean().item() - FIRST) / STEP)


def write_data_set(root: Path, train: int = 10, val: int = 2, test: int = 2, captions: int = 3) -> Path:
    """The MSR-VTT layout; clip n has brightness n and `captions` captions."""
    (root / "videos").mkdir(parents=True)
    ids = [f"video{n}" for n in range(train + val + test)]
    split = ["train"] * train + ["validate"] * val + ["test"] * test
    for n, video_id in enumerate(ids):
        write_video(root / "videos" / f"{video_id}.mp4", [n] * 4)
    videos = [{"video_id": i, "split": s} for i, s in zip(ids, split, strict=True)]
    sentences = [
        {"video_id": i, "caption": f"shade {n}, wording {k}"} for n, i in enumerate(ids) for k in range(captions)
    ]
    (root / "MSRVTT_data.json").write_text(json.dumps({"videos": videos, "sentences": sentences}))
    (root / "MSRVTT_train.9k.csv").write_text("\n".join(["video_id", *ids[:train]]) + "\n")
    rows = [f"ret{n},{i},shade {n} of {i}" for n, i in enumerate(ids[train + val :])]
    (root / "MSRVTT_JSFUSION_test.csv").write_text("\n".join(["key,video_id,sentence", *rows]) + "\n")
    return root


def add_silence(picture: Path, path: Path, sound: str, seconds: float, options: dict[str, str] | None = None) -> Path:
    """The pictures of a file, undecoded, and silence beside them.

    Args:
        picture: the file of the pictures.
        path: the file to write.
        sound: the codec of the silence.
        seconds: how long it is.
        options: of the container.
    """
    with av.open(str(picture)) as source, av.open(str(path), "w", options=options or {}) as target:
        film = target.add_stream_from_template(source.streams.video[0])
        stream = target.add_stream(sound, rate=48000, layout="mono")
        packets = []
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = film
                packets.append(packet)

        size = stream.codec_context.frame_size or 960
        for n in range(int(seconds * 48000 / size)):
            frame = av.AudioFrame(format=stream.codec_context.format.name, layout="mono", samples=size)
            frame.planes[0].update(bytes(frame.planes[0].buffer_size))
            frame.rate, frame.pts, frame.time_base = 48000, n * size, Fraction(1, 48000)
            packets += stream.encode(frame)
        packets += stream.encode(None)

        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            target.mux(packet)
    return path
