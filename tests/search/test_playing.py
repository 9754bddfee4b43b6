"""What a browser plays as it is, and the parts that are made of all else: at the right second, with their sound."""

import io
import threading
from pathlib import Path

import av
import numpy as np
import pytest
from served_library import level_at, levels_of, with_sound, write_film

from emcl_train.data.decoding import demuxed, looking
from emcl_train.data.timeline import VideoError
from emcl_train.search.server import converting, tracks
from emcl_train.search.server.converting import PastTheEnd, Written, write_part
from emcl_train.search.server.playing import LEAD, LONGEST, STEP, TAIL, Span, part_of, plan_of
from emcl_train.search.server.tracks import Limits, TooMuch, Unwritable


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    write_film(folder / "h264.mp4")
    write_film(folder / "h264.mkv")
    write_film(folder / "h264.mov")
    write_film(folder / "h264.ts")
    write_film(folder / "h264.avi", options={"bf": "0"})
    write_film(folder / "mpeg4.avi", codec="mpeg4")
    write_film(folder / "with b-frames.avi", codec="mpeg4", options={"bf": "2"})
    write_film(folder / "mpeg4.mp4", codec="mpeg4")
    write_film(folder / "10 bits.mp4", pix_fmt="yuv420p10le")
    write_film(folder / "vp9.webm", codec="libvpx-vp9", options={"cpu-used": "8", "deadline": "realtime"})
    with_sound(folder / "h264.mp4", folder / "aac.mp4", "aac")
    with_sound(folder / "h264.mp4", folder / "ac3.mp4", "ac3")
    with_sound(folder / "h264.mkv", folder / "ac3.ts", "ac3")
    with_sound(folder / "h264.mkv", folder / "opus.mkv", "libopus")
    with_sound(folder / "h264.mkv", folder / "pcm.mkv", "pcm_s16le")
    with_sound(folder / "vp9.webm", folder / "vp9 opus.mkv", "libopus")
    (folder / "really an avi.mp4").write_bytes((folder / "mpeg4.avi").read_bytes())
    (folder / "really an mp4.avi").write_bytes((folder / "h264.mp4").read_bytes())
    return folder


def made(path: Path, span: Span, most: int = 1 << 30) -> tuple[Written, bytes]:
    """What is written of a part, and the file."""
    target = path.with_name("part of it")
    written = write_part(path, plan_of(path), span, target, Limits.from_now(most, threading.Event()))
    return written, target.read_bytes()


@pytest.mark.parametrize(
    ("name", "way", "kind", "sound"),
    [
        ("h264.mp4", "as it is", "mp4", "none"),
        ("aac.mp4", "as it is", "mp4", "copied"),
        ("vp9.webm", "as it is", "webm", "none"),
        ("really an mp4.avi", "as it is", "mp4", "none"),
        ("h264.mkv", "remuxed", "mp4", "none"),
        ("h264.mov", "remuxed", "mp4", "none"),
        ("opus.mkv", "remuxed", "mp4", "copied"),
        ("vp9 opus.mkv", "remuxed", "mp4", "copied"),
        ("ac3.mp4", "remuxed", "mp4", "encoded"),
        ("pcm.mkv", "remuxed", "mp4", "encoded"),
        ("mpeg4.avi", "transcoded", "mp4", "none"),
        ("mpeg4.mp4", "transcoded", "mp4", "none"),
        ("really an avi.mp4", "transcoded", "mp4", "none"),
        ("10 bits.mp4", "transcoded", "mp4", "none"),
        ("h264.avi", "transcoded", "mp4", "none"),
        ("h264.ts", "transcoded", "mp4", "none"),
    ],
)
def test_container_and_codecs_decide_and_never_the_name(films, name, way, kind, sound):
    plan = plan_of(films / name)
    assert (plan.way, plan.kind, plan.sound) == (way, kind, sound)
    assert plan.why.startswith(("browsers play", "browsers do not play"))


def test_a_part_has_its_moment_with_some_seconds_around_it():
    assert part_of(10.0, 14.0, 0) == Span(10 - LEAD, 14 + TAIL)
    assert part_of(1.0, 5.0, 0) == Span(0, 5 + TAIL)
    assert part_of(10.0, 14.0, 2) == Span(14 + TAIL + STEP, 14 + TAIL + 2 * STEP)
    assert part_of(10.0, 1000.0, 0) == Span(10 - LEAD, 10 - LEAD + LONGEST)
    assert part_of(10.0, 1000.0, 1).begin == part_of(10.0, 1000.0, 0).end


@pytest.mark.parametrize("begin", [0.0, 3.3, 7.0, 11.5])
@pytest.mark.parametrize(
    "name",
    ["h264.mkv", "h264.mov", "h264.ts", "h264.avi", "mpeg4.avi", "with b-frames.avi", "10 bits.mp4", "vp9 opus.mkv"],
)
def test_a_part_shows_the_seconds_that_it_says(films, name, begin):
    written, film = made(films / name, Span(begin, begin + 3.0))
    shown = levels_of(film)
    seconds = [written.begin + second for second, _ in shown]
    assert written.begin <= begin < written.begin + 2.1
    assert seconds[0] == pytest.approx(written.begin, abs=0.02)
    assert [level for _, level in shown] == [level_at(second + 0.02) for second in seconds]
    assert seconds[-1] == pytest.approx(min(begin + 3.0, 12.0) - 0.1, abs=0.11)
    assert written.more == (begin + 3.0 < 12.0)
    with av.open(io.BytesIO(film)) as container:
        assert container.format.name.startswith("mov")
        assert container.streams.video[0].codec_context.name in ("h264", "vp9", "libvpx-vp9")


@pytest.mark.parametrize("name", ["opus.mkv", "pcm.mkv", "ac3.mp4", "vp9 opus.mkv"])
def test_sound_comes_along(films, name):
    written, film = made(films / name, Span(4.0, 8.0))
    with av.open(io.BytesIO(film)) as container:
        assert container.streams.audio[0].codec_context.name in ("aac", "opus", "libopus")
        pieces = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
    wave = np.concatenate(pieces)[4800:]
    length = 8.0 - written.begin
    assert len(wave) / 48000 == pytest.approx(length - 0.1, abs=0.15)
    # It is the tone that was put in, and not noise: its spectrum has one peak, at 440 Hz.
    spectrum = np.abs(np.fft.rfft(wave[:48000]))
    assert np.argmax(spectrum) == pytest.approx(440, abs=2)
    assert not written.muted


def test_sound_that_cannot_be_decoded_is_left_out_and_said(films, monkeypatch):
    def fails(self: tracks.Sound, *_: object) -> object:
        self._broken += 1
        return iter(())

    monkeypatch.setattr(tracks.Sound, "_decoded", fails)
    written, film = made(films / "pcm.mkv", Span(4.0, 6.0))
    assert written.muted
    with av.open(io.BytesIO(film)) as container:
        assert not container.streams.audio


def test_where_packets_cannot_be_copied_or_entered_all_is_decoded(films, monkeypatch):
    def astray(*_: object) -> None:
        raise converting.Astray

    monkeypatch.setattr(converting, "_seek", astray)
    for name in ("h264.mkv", "mpeg4.avi"):
        written, film = made(films / name, Span(7.0, 9.0))
        assert (written.begin, written.more) == (7.0, True)
        assert [level for _, level in levels_of(film)] == [level_at(7.0 + n / 10 + 0.02) for n in range(20)]


def test_there_is_no_part_behind_the_end(films):
    for name in ("h264.mkv", "mpeg4.avi", "h264.ts"):
        with pytest.raises(PastTheEnd):
            made(films / name, Span(12.5, 20.0))


def test_a_turned_film_is_upright_and_large_ones_are_made_smaller(films, tmp_path):
    write_film(tmp_path / "large.avi", seconds=0.2, codec="mpeg4", size=(1600, 900))
    _, film = made(tmp_path / "large.avi", Span(0.0, 1.0))
    with av.open(io.BytesIO(film)) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (1280, 720)

    write_film(tmp_path / "odd.avi", seconds=0.5, codec="mpeg4", size=(63, 41))
    _, film = made(tmp_path / "odd.avi", Span(0.0, 1.0))
    with av.open(io.BytesIO(film)) as container:
        assert (container.streams.video[0].width % 2, container.streams.video[0].height % 2) == (0, 0)


def test_limits_end_a_part_and_what_is_no_film_is_refused(films, tmp_path, monkeypatch):
    with pytest.raises(TooMuch, match="take more than 0 MiB"):
        made(films / "mpeg4.avi", Span(0.0, 9.0), most=100)
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(TooMuch, match="the server ends"):
        write_part(
            films / "mpeg4.avi",
            plan_of(films / "mpeg4.avi"),
            Span(0.0, 9.0),
            tmp_path / "x",
            Limits.from_now(1 << 30, stopped),
        )
    monkeypatch.setattr(tracks, "SLOWEST", -1.0)
    with pytest.raises(TooMuch, match="takes longer than"):
        made(films / "mpeg4.avi", Span(0.0, 9.0))

    (tmp_path / "text.mp4").write_text("no film")
    with pytest.raises(VideoError):
        plan_of(tmp_path / "text.mp4")


@pytest.mark.parametrize(
    ("name", "step"),
    [("h264.ts", "open_video"), ("h264.ts", "read_timeline"), ("mpeg4.avi", "open_video"), ("ac3.ts", "Pictures")],
)
def test_a_part_can_be_stopped_before_anything_of_it_is_written(films, tmp_path, monkeypatch, name, step):
    """While its packets are looked over, packets are passed over, or its sound is looked for: that may be gigabytes."""
    stopped = threading.Event()
    takes = getattr(converting, step)

    def stops_behind(*args: object) -> object:
        done = takes(*args)
        stopped.set()
        return done

    def writes(*_: object) -> None:
        raise AssertionError("something was written")

    monkeypatch.setattr(converting, step, stops_behind)
    monkeypatch.setattr(tracks.Film, "add", writes)
    limits = Limits.from_now(1 << 30, stopped)
    with pytest.raises(TooMuch, match="the server ends"):
        write_part(films / name, plan_of(films / name), Span(7.0, 9.0), tmp_path / "x", limits)


def test_packets_of_other_streams_are_looked_at_too(films):
    """Behind the last packet of sound may lie gigabytes of pictures."""
    looks = []
    with av.open(str(films / "pcm.mkv")) as container:
        sound = container.streams.audio[0]
        alone = [packet.size for packet in demuxed(container, [sound])]
        container.seek(0)
        with looking(lambda: looks.append(1)):
            assert [packet.size for packet in demuxed(container, [sound])] == alone
    assert len(looks) > len(alone) + 100


def test_a_disk_that_takes_nothing_is_no_fault_of_the_film(films):
    plan = plan_of(films / "mpeg4.avi")
    with pytest.raises(Unwritable, match="No space left"):
        write_part(
            films / "mpeg4.avi", plan, Span(0.0, 9.0), Path("/dev/full"), Limits.from_now(1 << 30, threading.Event())
        )
    gone = Path("/no such folder/part")
    with pytest.raises(Unwritable, match="No such file"):
        write_part(films / "mpeg4.avi", plan, Span(0.0, 9.0), gone, Limits.from_now(1 << 30, threading.Event()))
