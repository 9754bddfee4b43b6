"""Frames by time: at constant and variable rates, of short, long, and damaged files."""

import pickle
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from tiny_videos import level, write_video

from emcl_train.data import decoding, video
from emcl_train.data.clock import Clock, Ticks
from emcl_train.data.video import FrameRequest, VideoError, decode_frames, pictures_of_spans, probe


def levels(path: Path, num_frames: int = 4, size: int = 16) -> list[int]:
    """Which of the written frames were taken, by their brightness."""
    frames, mask = decode_frames(FrameRequest(path, num_frames, size))
    assert frames.dtype == torch.uint8
    assert frames.shape == (num_frames, 3, size, size)
    return [level(frame) for frame in frames[mask]]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_a_constant_rate_gives_the_frames_at_the_centres_of_equal_parts(tmp_path, suffix):
    # 12 frames in 4 parts of 3: centres lie at 1.5, 4.5, 7.5, 10.5 frame durations
    assert levels(write_video(tmp_path / f"a.{suffix}", range(12))) == [1, 4, 7, 10]


def test_a_variable_rate_is_sampled_by_time_and_not_by_count(tmp_path):
    # Ticks of 0.1 s: six frames in the first 0.6 s, then one that stays to 1.8 s, and two more up to 2.0 s.
    times = [0, 1, 2, 3, 4, 5, 6, 18, 19]
    path = write_video(tmp_path / "a.mkv", range(9), times=times)
    # targets 0.25, 0.75, 1.25, 1.75 s
    assert levels(path) == [2, 6, 6, 6]


def test_time_counts_from_the_first_frame(tmp_path):
    path = write_video(tmp_path / "a.mkv", range(12), times=range(50, 62))
    assert levels(path) == [1, 4, 7, 10]


def test_b_frames_come_in_the_order_of_display(tmp_path):
    for suffix in ("mp4", "avi"):
        path = write_video(tmp_path / f"a.{suffix}", range(14), options={"bf": "3", "b_strategy": "0"})
        assert levels(path, 7) == [1, 3, 5, 7, 9, 11, 13]


def test_a_clip_of_few_frames_has_fewer_valid_ones(tmp_path):
    path = write_video(tmp_path / "a.mp4", range(3))
    frames, mask = decode_frames(FrameRequest(path, 7, 16))
    assert mask.tolist() == [True] * 3 + [False] * 4
    assert [level(frame) for frame in frames[:3]] == [0, 1, 2]
    assert frames[3:].sum() == 0


def test_one_frame_is_a_clip(tmp_path):
    assert levels(write_video(tmp_path / "a.mp4", [5])) == [5]


def test_long_clips_are_sampled_alike_by_seeking(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", range(15), options={"g": "4", "bf": "2"})
    straight = levels(path, 5)
    monkeypatch.setattr(video, "SEEK_FROM", 0.0)
    monkeypatch.setattr(video, "_choose_by_decoding", None)
    assert levels(path, 5) == straight == [1, 4, 7, 10, 13]


def test_the_short_side_is_resized_and_the_centre_kept(tmp_path):
    def paint(image, _):
        image[:, :64] = 0
        image[:, 64:128] = 200
        image[:, 128:] = 0

    path = write_video(tmp_path / "a.mp4", range(4), size=(192, 64), paint=paint)
    frames, _ = decode_frames(FrameRequest(path, 2, 32))
    assert frames[:, :, :, 4:-4].float().mean() > 180


def test_probe_reads_what_the_file_says(tmp_path):
    info = probe(write_video(tmp_path / "a.mp4", range(12), size=(64, 48)))
    assert (info.codec, info.width, info.height, info.frames) == ("h264", 64, 48, 12)
    assert info.fps == pytest.approx(10)
    assert info.duration == pytest.approx(1.2, abs=0.05)
    assert "mp4" in info.container


def seconds(path: Path, num_frames: int = 4, **span: float) -> list[int]:
    """The written frames that a frame a second takes."""
    frames, mask = decode_frames(FrameRequest(path, num_frames, 16, "1fps", **span))
    assert mask.tolist() == [True] * int(mask.sum()) + [False] * (num_frames - int(mask.sum()))
    assert frames[~mask].sum() == 0
    return [level(frame) for frame in frames[mask]]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_a_frame_a_second_is_taken_and_of_too_many_evenly_spread_ones(tmp_path, suffix):
    path = write_video(tmp_path / f"a.{suffix}", range(45))  # 4.5 s: 0, 1, 2, 3, 4
    assert seconds(path, 7) == [0, 10, 20, 30, 40]
    assert seconds(path, 5) == [0, 10, 20, 30, 40]
    # Numbers 0 to 4 in three even steps, and in four that are rounded down: 0, 1.33, 2.67, 4.
    assert seconds(path, 3) == [0, 20, 40]
    assert seconds(path, 4) == [0, 10, 20, 40]
    assert seconds(path, 1) == [0]


def test_a_clip_of_whole_seconds_has_no_frame_at_its_end(tmp_path):
    assert seconds(write_video(tmp_path / "a.mp4", range(30)), 7) == [0, 10, 20]
    assert seconds(write_video(tmp_path / "b.mp4", range(31)), 7) == [0, 10, 20, 30]
    assert seconds(write_video(tmp_path / "c.mp4", range(4)), 7) == [0]


def test_a_frame_that_stays_is_taken_at_every_second_but_the_last(tmp_path):
    # Shown from 0, 0.1 and 2.5 s on: the second one at 1 and 2 s, and the last not again after it began.
    path = write_video(tmp_path / "a.mkv", range(3), times=[0, 1, 25])
    assert seconds(path, 7) == [0, 1, 1]


@pytest.mark.parametrize("seek_from", [0.0, 60.0])
def test_a_span_is_sampled_as_a_clip_of_its_own(tmp_path, monkeypatch, seek_from):
    monkeypatch.setattr(video, "SEEK_FROM", seek_from)
    path = write_video(tmp_path / "a.mp4", range(40), options={"g": "7"})
    assert seconds(path, 9, start=1.0, end=3.0) == [10, 20]
    assert seconds(path, 9, start=0.5) == [5, 15, 25, 35]
    assert seconds(path, 9, end=2.5) == [0, 10, 20]
    assert seconds(path, 9, end=30.0) == [0, 10, 20, 30]
    assert seconds(path, 9, start=3.95) == [39]

    def spread(num_frames: int, **span: float) -> list[int]:
        frames, mask = decode_frames(FrameRequest(path, num_frames, 16, **span))
        return [level(frame) for frame in frames[mask]]

    assert spread(4, start=1.0, end=3.0) == [12, 17, 22, 27]
    assert spread(2, end=1.0) == [2, 7]
    with pytest.raises(VideoError, match=r"it ends at 4\.00 s, before the span from 4 s on"):
        decode_frames(FrameRequest(path, 4, 16, start=4.0))


def test_a_short_span_has_fewer_valid_frames(tmp_path):
    path = write_video(tmp_path / "a.mp4", range(40))
    frames, mask = decode_frames(FrameRequest(path, 5, 16, start=2.0, end=2.2))
    assert [level(frame) for frame in frames[mask]] == [20, 21]


def test_a_span_counts_from_the_first_frame(tmp_path):
    path = write_video(tmp_path / "a.mkv", range(30), times=range(50, 80))
    assert seconds(path, 9, start=1.0) == [10, 20]


@pytest.fixture
def fed(monkeypatch):
    """Places and stamps of the packets that enter a decoder."""
    stamps = []
    real = decoding.decode_packet

    def counted(packet):
        stamps.append((packet.pos, packet.pts))
        return real(packet)

    monkeypatch.setattr(decoding, "decode_packet", counted)
    return stamps


def test_a_clip_that_is_not_long_is_decoded_on_where_the_whole_of_it_is_asked_for(tmp_path, monkeypatch, fed):
    monkeypatch.setattr(video, "SEEK_FROM", 2.0)
    path = write_video(tmp_path / "a.mp4", range(40), options={"g": "4", "bf": "0"})
    # 4 s for 36 frames: less than three times 2 s
    assert seconds(path, 36, whole=True) == [0, 10, 20, 30]
    assert len(fed) > 30
    for whole, frames in ((True, 4), (False, 36)):
        fed.clear()
        assert seconds(path, frames, whole=whole) == [0, 10, 20, 30]
        assert len(fed) < 15


LONG = {
    "one-keyframe": ("mp4", "libx264", {"g": "1000", "bf": "0"}),
    "groups": ("mp4", "libx264", {"g": "20", "bf": "2"}),
    "open-groups": ("mkv", "libx264", {"g": "20", "bf": "3", "x264-params": "open-gop=1"}),
    "hevc": ("mp4", "libx265", {"x265-params": "log-level=none:pools=1:frame-threads=1:keyint=20:bframes=3"}),
    "no-index": ("ts", "libx264", {"g": "20", "bf": "2"}),
    "vp9": ("webm", "libvpx-vp9", {"g": "20", "deadline": "realtime", "cpu-used": "8"}),
    "mpeg4": ("mkv", "mpeg4", {"g": "20", "bf": "2", "qmin": "1", "qmax": "1"}),
    "every-frame-a-keyframe": ("mkv", "libx264", {"g": "1"}),
}


@pytest.mark.parametrize("kind", LONG)
@pytest.mark.parametrize("num_frames", [3, 12, 40])
def test_of_a_long_clip_no_group_of_pictures_is_decoded_twice(tmp_path, monkeypatch, fed, kind, num_frames):
    suffix, codec, options = LONG[kind]
    path = write_video(tmp_path / f"a.{suffix}", [i // 4 for i in range(160)], codec=codec, options=options)
    straight, _ = decode_frames(FrameRequest(path, num_frames, 16))
    fed.clear()
    monkeypatch.setattr(video, "SEEK_FROM", 0.0)
    monkeypatch.setattr(video, "_choose_by_decoding", None)
    entered, _ = decode_frames(FrameRequest(path, num_frames, 16))
    assert torch.equal(entered, straight)

    # Each packet at most once, and of a film with keyframes only the groups in which wanted frames lie.
    stamps = [stamp for stamp in fed if stamp != (None, None)]
    assert len(stamps) == len(set(stamps)) <= 160
    if kind == "one-keyframe":
        assert len(stamps) >= 130
    elif num_frames == 3:
        assert len(stamps) <= 3 * 2 * (20 + 5)
    if kind == "every-frame-a-keyframe":
        assert len(stamps) <= 5 * num_frames


WRONG_MARKS = {
    "h264": ("libx264", {"bf": "0"}),
    "h264-b-frames": ("libx264", {"bf": "3", "b_strategy": "0"}),
    "hevc": ("libx265", {"x265-params": "log-level=none:pools=1:frame-threads=1:keyint=1000:bframes=3"}),
    "mpeg4": ("mpeg4", {"bf": "0", "qmin": "1", "qmax": "1"}),
    "mpeg4-b-frames": ("mpeg4", {"bf": "2", "qmin": "1", "qmax": "1"}),
}


@pytest.mark.parametrize("kind", WRONG_MARKS)
def test_wrong_marks_of_keyframes_lead_to_the_right_frames(tmp_path, monkeypatch, fed, kind):
    """A list of keyframes in a header that names frames which depend on others. The decoder of MPEG-4 takes them."""
    codec, options = WRONG_MARKS[kind]
    path = write_video(tmp_path / "a.mp4", range(40), codec=codec, options={"g": "1000"} | options)
    request = FrameRequest(path, 3, 16)
    spans = [(1.05, 1.95), (2.45, 3.35)]
    expected = levels(path, 6)
    of_spans = [pictures for _, pictures in pictures_of_spans(request, lambda _: spans)]

    data = bytearray(path.read_bytes())
    data[data.index(b"stss") : data.index(b"stss") + 4] = b"free"  # without it every frame counts as a keyframe
    path.write_bytes(data)
    monkeypatch.setattr(video, "SEEK_FROM", 0.0)
    fed.clear()
    assert levels(path, 6) == expected == [3, 10, 16, 23, 30, 36]
    assert len(fed) <= 2 * 40 + 2
    found = [pictures for _, pictures in pictures_of_spans(request, lambda _: spans)]
    for pictures, right in zip(found, of_spans, strict=True):
        assert all(np.array_equal(one.pixels, other.pixels) for one, other in zip(pictures, right, strict=True))


SHORT = LONG | {
    "b-frames-in-avi": ("avi", "libx264", {"g": "20", "bf": "3"}),
    "pyramid": ("mp4", "libx264", {"g": "30", "bf": "5", "b_strategy": "0", "x264-params": "b-pyramid=normal"}),
    "interlaced": ("ts", "libx264", {"g": "20", "bf": "2", "flags": "+ildct+ilme"}),
}


@pytest.mark.parametrize("kind", SHORT)
def test_pixels_are_those_of_a_film_that_is_decoded_whole(tmp_path, monkeypatch, kind):
    suffix, codec, options = SHORT[kind]
    texture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)

    def paint(image, number):
        image[:] = np.roll(texture, (number, 3 * number), (0, 1)) // 2 + number

    path = write_video(tmp_path / f"a.{suffix}", [0] * 70, paint=paint, codec=codec, options=options)
    requests = [FrameRequest(path, *how) for how in ((1, 48), (5, 48), (40, 48), (4, 48, "1fps"), (9, 48, "2.5fps"))]
    requests += [FrameRequest(path, 4, 48, start=1.3, end=3.1, choice="nearest")]
    found = [decode_frames(request) for request in requests]
    monkeypatch.setattr(video, "_choose_by_seeking", lambda *_: None)
    for request, (frames, mask) in zip(requests, found, strict=True):
        expected, valid = decode_frames(request)
        assert torch.equal(mask, valid)
        assert torch.equal(frames, expected), request


@pytest.fixture
def made(monkeypatch):
    """How many frames left a decoder for each packet that entered it."""
    counts = []
    real = decoding.decode_packet

    def counted(packet):
        frames = real(packet)
        counts.append(len(frames))
        return frames

    monkeypatch.setattr(decoding, "decode_packet", counted)
    return counts


def test_frames_that_nothing_depends_on_are_left_out(tmp_path, made):
    path = write_video(tmp_path / "a.mp4", range(40), options={"g": "1000", "bf": "3", "b_strategy": "0"})
    assert levels(path, 2) == [10, 30]
    assert sum(made) < 20
    made.clear()
    decode_frames(FrameRequest(path, 2, 16, whole=True))
    assert sum(made) >= 39


def test_damage_that_no_wanted_frame_depends_on_is_seen_if_the_whole_is_asked_for(tmp_path):
    path = write_video(tmp_path / "a.mp4", range(40), noise=True, options={"g": "1000", "bf": "3", "b_strategy": "0"})
    before, _ = decode_frames(FrameRequest(path, 2, 16))
    with av.open(str(path)) as film:
        packets = [(packet.pos, packet.size, bytes(packet)) for packet in film.demux(video=0) if packet.size]

    # A picture that is no reference, by the header of its unit, far from the wanted ones.
    place, size, _ = next(packet for packet in packets[16:] if packet[2][4] == 1)
    data = bytearray(path.read_bytes())
    data[place + 5 : place + size] = bytes(size - 5)
    path.write_bytes(data)
    assert torch.equal(decode_frames(FrameRequest(path, 2, 16))[0], before)
    with pytest.raises(VideoError):
        decode_frames(FrameRequest(path, 2, 16, whole=True))


def test_frames_that_share_a_time_are_not_known_by_it(tmp_path, monkeypatch, made):
    path = write_video(tmp_path / "a.mkv", range(40), options={"g": "1000", "bf": "3", "b_strategy": "0"})
    real = Clock.put_right

    def shared(clock, packet):
        real(clock, packet)
        packet.pts = 100 if packet.pts == 200 else packet.pts

    monkeypatch.setattr(Clock, "put_right", shared)
    assert levels(path, 2) == [10, 30]
    assert sum(made) >= 30


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_truncated_file_is_an_error_and_never_fewer_frames(tmp_path, suffix, share):
    options = {"movflags": "faststart"} if suffix == "mp4" else {}
    path = write_video(tmp_path / f"a.{suffix}", range(40), noise=True, container_options=options)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(VideoError):
        decode_frames(FrameRequest(path, 12, 16))


def test_damage_inside_a_file_is_an_error(tmp_path):
    path = write_video(tmp_path / "a.mp4", range(40), noise=True)
    data = bytearray(path.read_bytes())
    data[len(data) // 4 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 4)
    path.write_bytes(data)
    with pytest.raises(VideoError):
        decode_frames(FrameRequest(path, 12, 16))


def test_a_truncated_long_file_is_an_error_too(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "SEEK_FROM", 0.0)
    path = write_video(tmp_path / "a.mp4", range(40), noise=True, container_options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(VideoError):
        decode_frames(FrameRequest(path, 12, 16))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
@pytest.mark.parametrize("sampling", ["1fps", "uniform"])
def test_asked_for_the_whole_clip_damage_behind_the_last_sampled_frame_is_an_error(tmp_path, suffix, sampling):
    path = write_video(tmp_path / f"a.{suffix}", range(19), noise=True)
    before, mask = decode_frames(FrameRequest(path, 1, 16, sampling, whole=True))
    assert torch.equal(decode_frames(FrameRequest(path, 1, 16, sampling))[0], before)
    assert mask.tolist() == [True]
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    place, size = packets[16]
    data = bytearray(path.read_bytes())
    start = data.index(b"\x00", place)  # in Matroska behind the header of the block
    data[start : start + size // 2] = bytes(size // 2)
    path.write_bytes(data)
    assert torch.equal(decode_frames(FrameRequest(path, 1, 16, sampling))[0], before)
    with pytest.raises(VideoError):
        decode_frames(FrameRequest(path, 1, 16, sampling, whole=True))
    decode_frames(FrameRequest(path, 1, 16, sampling, end=1.2, whole=True))


def test_sound_without_pictures_is_an_error(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame(format="s16", layout="mono", samples=800)
        frame.planes[0].update(bytes(1600))
        frame.rate, frame.pts, frame.time_base = 8000, 0, Fraction(1, 8000)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match="no video stream"):
        decode_frames(FrameRequest(path, 4, 16))


def test_the_error_survives_the_way_from_a_worker():
    error = pickle.loads(pickle.dumps(VideoError(Path("a.mp4"), "it is broken")))
    assert (error.path, error.reason, str(error)) == (Path("a.mp4"), "it is broken", "a.mp4: it is broken")


def test_real_videos_decode_and_the_damaged_one_says_so(shared_data):
    folder = shared_data / "real_videos" / "videos"
    for name in ("video11.avi", "video17.avi", "video18.mp4", "video14.mp4", "video5.mp4"):
        frames, mask = decode_frames(FrameRequest(folder / name, 6, 16))
        assert mask.all()
        assert frames.float().std() > 0
    with pytest.raises(VideoError, match="Invalid data"):
        decode_frames(FrameRequest(folder / "video20.mp4", 12, 16))


def test_seconds_of_a_stamp_are_those_of_the_exact_fraction():
    draw = np.random.default_rng(0)
    for time_base in (Fraction(1, 90000), Fraction(1001, 30000), Fraction(1, 12800), Fraction(7, 3)):
        ticks = Ticks(time_base)
        for stamp in [0, -1, 2**62 + 1, *draw.integers(-(2**40), 2**40, 200).tolist()]:
            assert ticks.seconds(stamp) == float(stamp * time_base)
