"""A film is whole if what should be shown can be decoded, whatever its header counts; and a truncated one is found."""

from bisect import bisect_right
from pathlib import Path

import av
import pytest
from edited_files import append_empty_chunks, empty_sample, overwrite_chunks, set_avi_count, set_edits
from tiny_videos import add_silence, level, write_video

from emcl_train.data.container import VideoError, check_packets
from emcl_train.data.video import FrameRequest, decode_frames

PLAIN = {
    "mjpeg": {"pix_fmt": "yuvj420p"},
    "prores_ks": {"pix_fmt": "yuv422p10le"},
    "mpeg4": {"options": {"g": "10", "qmin": "1", "qmax": "1", "bf": "0"}},
}
EDITS = {
    "whole": [(3.0, 0.0)],
    "begins-within-a-group": [(1.7, 1.3)],
    "ends-early": [(1.5, 0.0)],
    "one-frame-off": [(2.9, 0.0)],
    "middle": [(1.0, 1.0)],
    "two-parts": [(0.5, 0.0), (1.0, 2.0)],
    "parts-in-another-order": [(1.0, 2.0), (0.5, 0.5)],
    "a-part-twice": [(0.5, 1.0), (0.5, 1.0)],
    "begins-later": [(0.5, -1.0), (1.0, 1.0)],
    "longer-than-the-film": [(5.0, 0.0)],
}


def shown(path: Path) -> list[tuple[float, int]]:
    """Every frame that FFmpeg shows, and when."""
    with av.open(str(path)) as container:
        return [(f.time, round((f.to_ndarray(format="gray").mean() - 20) / 5)) for f in container.decode(video=0)]


def sampled(path: Path, num_frames: int) -> list[int]:
    frames, mask = decode_frames(FrameRequest(path, num_frames, 16, whole=True))
    return [level(frame) for frame in frames[mask]]


def film(path: Path, codec: str, **options: str) -> Path:
    settings = PLAIN.get(codec, {"options": {"g": "10", "sc_threshold": "0"} | options})
    return write_video(path, range(30), codec=codec, **settings)


@pytest.mark.parametrize("edits", EDITS)
@pytest.mark.parametrize(
    ("suffix", "codec", "b_frames"),
    [("mp4", "libx264", 0), ("mov", "libx264", 2), ("mov", "mjpeg", 0), ("mp4", "mpeg4", 0), ("mov", "prores_ks", 0)],
)
def test_what_an_edit_list_leaves_is_a_whole_film(
    tmp_path: Path, edits: str, suffix: str, codec: str, b_frames: int
) -> None:
    path = film(tmp_path / f"a.{suffix}", codec, bf=str(b_frames))
    set_edits(path, *EDITS[edits])
    times, expected = map(list, zip(*shown(path), strict=True))
    assert 0 < len(expected) <= 30
    timeline = check_packets(path)
    assert timeline.times == pytest.approx(times)
    assert sampled(path, 50) == expected

    on_display = [bisect_right(times, times[0] + timeline.seconds * (n + 0.5) / 5 + 1e-6) - 1 for n in range(5)]
    assert sampled(path, 5) == [expected[i] for i in on_display]


@pytest.mark.parametrize("share", [0.4, 0.8, 0.97])
@pytest.mark.parametrize("edit", [(3.0, 0.0), (2.5, 0.5)])
def test_a_film_with_an_edit_list_that_is_cut_off_is_found(
    tmp_path: Path, share: float, edit: tuple[float, float]
) -> None:
    path = write_video(
        tmp_path / "a.mp4", range(30), noise=True, options={"g": "10"}, container_options={"movflags": "faststart"}
    )
    set_edits(path, edit)
    check_packets(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    for look in (check_packets, lambda path: sampled(path, 4)):
        with pytest.raises(VideoError, match=r"truncated|damaged|Invalid"):
            look(path)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_an_mp4_whose_data_reach_to_its_end_is_measured_by_its_index(tmp_path: Path, share: float) -> None:
    """A writer to a pipe may give the last part the length 0: "to the end of the file", wherever that is."""
    path = write_video(tmp_path / "a.mp4", range(30), noise=True, container_options={"movflags": "faststart"})
    content = bytearray(path.read_bytes())
    length = content.index(b"mdat") - 4
    content[length : length + 4] = bytes(4)
    path.write_bytes(content)
    check_packets(path)

    path.write_bytes(content[: int(len(content) * share)])
    for look in (check_packets, lambda path: sampled(path, 4)):
        with pytest.raises(VideoError, match="truncated"):
            look(path)


@pytest.mark.parametrize("codec", ["mpeg4", "mjpeg", "libx264"])
@pytest.mark.parametrize("gaps", [{10: 1}, {10: 10}, {1: 2, 5: 3, 19: 7}])
def test_an_avi_with_empty_chunks_is_whole(tmp_path: Path, codec: str, gaps: dict[int, int]) -> None:
    """A writer of AVI fills each pause with chunks that have no bytes, and counts them as frames."""
    times = [i + sum(more for place, more in gaps.items() if i >= place) for i in range(20)]
    pixels = PLAIN.get(codec, {"options": {"bf": "0"}})
    path = write_video(tmp_path / "a.avi", range(20), times=times, codec=codec, **pixels)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == times[-1] + 1
    assert check_packets(path).times == pytest.approx([time / 10 for time in times])
    assert sampled(path, 30) == list(range(20))

    # Sampled as it is watched: the frame before a pause stays.
    length = times[-1] + 1
    on_display = [max(i for i in range(20) if times[i] <= length * (n + 0.5) / 4) for n in range(4)]
    assert sampled(path, 4) == on_display


@pytest.mark.parametrize("number", [1, 12])
def test_an_avi_that_ends_with_empty_chunks_is_whole(tmp_path: Path, number: int) -> None:
    path = write_video(tmp_path / "a.avi", range(20), codec="mpeg4", **PLAIN["mpeg4"])
    append_empty_chunks(path, number)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 20 + number
    check_packets(path)
    assert sampled(path, 4) == [2, 7, 12, 17]


def test_an_avi_whose_header_counts_wrongly_is_whole(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", range(20), codec="mpeg4", **PLAIN["mpeg4"])
    for count in (25, 7):
        set_avi_count(path, count)
        check_packets(path)
        assert sampled(path, 4) == [2, 7, 12, 17]


@pytest.mark.parametrize("share", [0.3, 0.7, 0.9])
@pytest.mark.parametrize("trailing", [0, 5])
def test_an_avi_with_empty_chunks_that_is_cut_off_is_found(tmp_path: Path, share: float, trailing: int) -> None:
    times = [i + 10 * (i >= 20) for i in range(40)]
    path = write_video(tmp_path / "a.avi", range(40), times=times, codec="mpeg4", noise=True)
    if trailing:
        append_empty_chunks(path, trailing)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    for look in (check_packets, lambda path: sampled(path, 4)):
        with pytest.raises(VideoError, match="truncated"):
            look(path)


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize(("first", "number"), [(24, None), (10, 8), (39, 1)])
@pytest.mark.parametrize("codec", ["mpeg4", "mjpeg"])
def test_an_avi_with_zeros_in_place_of_packets_is_found(
    tmp_path: Path, codec: str, first: int, number: int | None, index: bool
) -> None:
    """Its outer lengths are those of a whole file: the place was reserved, and not all of it was written."""
    path = write_video(tmp_path / "a.avi", range(40), codec=codec, **PLAIN[codec])
    check_packets(path)
    overwrite_chunks(path, first, number, index=index)
    for look in (check_packets, lambda path: sampled(path, 4)):
        with pytest.raises(VideoError, match=r"truncated|damaged|missing"):
            look(path)


def test_an_avi_that_lacks_no_more_than_its_index_is_whole(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", range(20), codec="mpeg4", **PLAIN["mpeg4"])
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"idx1")])
    check_packets(path)
    assert sampled(path, 4) == [2, 7, 12, 17]


def test_an_mp4_with_an_empty_sample_is_whole(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mov", "mjpeg")
    empty_sample(path, 12)
    assert len(check_packets(path).times) == 29
    assert sampled(path, 40) == [*range(12), *range(13, 30)]


@pytest.mark.parametrize("flags", ["frag_keyframe+empty_moov", "frag_keyframe+default_base_moof"])
def test_a_film_in_fragments_is_whole_and_cut_within_one_it_is_not(tmp_path: Path, flags: str) -> None:
    path = write_video(
        tmp_path / "a.mp4", range(30), noise=True, options={"g": "10"}, container_options={"movflags": flags}
    )
    check_packets(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 5])
    with pytest.raises(VideoError, match="truncated"):
        check_packets(path)


@pytest.mark.parametrize("suffix", ["mkv", "webm"])
@pytest.mark.parametrize("left", [0.97, 0.9, 0.6])
def test_matroska_is_as_long_as_it_says(tmp_path: Path, suffix: str, left: float) -> None:
    """A film so short that what is cut off is within the tolerance of its declared duration."""
    codec, options = ("libx264", {"g": "10"}) if suffix == "mkv" else ("libvpx", {"g": "10", "crf": "10"})
    path = write_video(tmp_path / f"a.{suffix}", range(12), noise=True, codec=codec, options=options)
    check_packets(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * left)])
    with pytest.raises(VideoError, match="truncated"):
        check_packets(path)


@pytest.mark.parametrize("seconds", [0.5, 3.0])
@pytest.mark.parametrize(("suffix", "codec", "sound"), [
    ("mp4", "libx264", "aac"), ("mkv", "libx264", "aac"), ("avi", "mpeg4", "mp2"), ("flv", "flv", "aac"),
    ("ts", "libx264", "aac"), ("mpg", "mpeg2video", "mp2"), ("webm", "libvpx", "libopus"),
])  # fmt: skip
def test_sound_that_ends_earlier_or_later_leaves_a_film_whole(
    tmp_path: Path, suffix: str, codec: str, sound: str, seconds: float
) -> None:
    options = PLAIN["mpeg4"]["options"] if codec in ("mpeg4", "flv", "mpeg2video") else {"bf": "0", "g": "10"}
    if codec == "libvpx":
        options = {"crf": "4"}
    picture = write_video(tmp_path / "picture.nut", range(25), codec=codec, rate=25, options=options)
    path = add_silence(picture, tmp_path / f"a.{suffix}", sound, seconds)
    assert check_packets(path).seconds == pytest.approx(1.0, abs=0.05)
    found = sampled(path, 5)
    # A program stream stamps only some of its pictures; the times of the others are guessed.
    assert max(abs(a - b) for a, b in zip(found, [2, 7, 12, 17, 22], strict=True)) <= (suffix == "mpg")
