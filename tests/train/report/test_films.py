"""Pictures and films of a page: what they show, that they are small, and what is said of clips without them."""

import base64
import io

import av
import numpy as np
import pytest
from PIL import Image
from tiny_videos import FIRST, STEP, write_video

from emcl_train.config import DataConfig
from emcl_train.data.clips import Clip
from emcl_train.report import films
from emcl_train.report.films import make_media


def frames_of(text):
    with av.open(io.BytesIO(base64.b64decode(text))) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]


def level(pixels):
    return round((float(np.mean(pixels)) - FIRST) / STEP)


def test_a_film_is_the_middle_of_its_clip_and_the_picture_the_middle_of_the_film(tmp_path):
    # 10 seconds at 4 frames a second: the three in the middle are frames 14 to 25.
    path = write_video(tmp_path / "a.mp4", range(40), rate=4)
    media = make_media([(7, Clip("a", path))], DataConfig(), 10**6, workers=1)
    frames = frames_of(media.films[7])
    assert len(frames) == 24
    assert [level(frame) for frame in frames[::6]] == [14, 17, 20, 23]
    picture = Image.open(io.BytesIO(base64.b64decode(media.pictures[7])))
    assert picture.format == "WEBP"
    assert level(np.asarray(picture)) == 20


def test_a_picture_without_a_film_is_the_keyframe_before_the_middle(tmp_path, monkeypatch):
    monkeypatch.setattr(films, "MOST_FILMS", 0)
    path = write_video(tmp_path / "a.mp4", range(40), rate=4, options={"g": "8", "x264-params": "scenecut=0"})
    clips = [(0, Clip("a", path)), (1, Clip("b", path, start=4.5, end=6.0))]
    media = make_media(clips, DataConfig(), 10**6, workers=1)
    assert media.films == {}
    shown = [Image.open(io.BytesIO(base64.b64decode(media.pictures[n]))) for n in (0, 1)]
    assert level(np.asarray(shown[0])) == 16
    assert level(np.asarray(shown[1])) == 21  # its keyframe lies before the span


def test_a_film_stays_inside_the_span_of_its_clip(tmp_path):
    path = write_video(tmp_path / "a.mp4", range(40), rate=4)
    media = make_media([(0, Clip("a", path, start=8.0, end=9.0))], DataConfig(), 10**6, workers=1)
    levels = [level(frame) for frame in frames_of(media.films[0])]
    assert len(levels) == 8
    assert set(levels) == {32, 33, 34, 35}


@pytest.mark.parametrize(
    ("size", "expected"), [((640, 480), (144, 192)), ((64, 48), (48, 64)), ((1280, 96), (22, 288))]
)
def test_films_are_small_and_keep_their_shape(tmp_path, size, expected):
    path = write_video(tmp_path / "a.mp4", range(4), size=size)
    media = make_media([(0, Clip("a", path))], DataConfig(), 10**6, workers=1)
    assert frames_of(media.films[0])[0].shape[:2] == expected


def test_the_same_clip_gives_the_same_bytes(tmp_path):
    path = write_video(tmp_path / "a.mp4", range(20), noise=True)
    made = [make_media([(0, Clip("a", path))], DataConfig(), 10**6, workers=1) for _ in range(2)]
    assert made[0].films == made[1].films
    assert made[0].pictures == made[1].pictures


def test_what_has_no_room_is_left_out_films_first_and_a_damaged_clip_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(films, "AT_ONCE", 2)
    whole = write_video(tmp_path / "whole.mp4", range(20), noise=True)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    clips = [(0, Clip("broken", tmp_path / "broken.mp4"))] + [(n, Clip(str(n), whole)) for n in range(1, 12)]

    everything = make_media(clips, DataConfig(), 10**8, workers=2)
    assert set(everything.pictures) == set(everything.films) == set(range(1, 12))
    assert set(everything.reasons) == {0}
    assert "broken.mp4" in everything.reasons[0]

    budget = 4 * len(everything.films[1]) + 11 * len(everything.pictures[1])
    fewer = make_media(clips, DataConfig(), budget, workers=2)
    assert fewer.size <= budget
    assert 1 in fewer.films
    assert 0 < len(fewer.films) < len(fewer.pictures) <= 11

    monkeypatch.setattr(films, "MOST_FILMS", 3)
    monkeypatch.setattr(films, "MOST_PICTURES", 6)
    limited = make_media(clips, DataConfig(), 10**8, workers=2)
    assert set(limited.films) == {1, 2}
    assert set(limited.pictures) == {1, 2, 3, 4, 5}
    assert make_media(clips, DataConfig(), 0, workers=1).size == 0
