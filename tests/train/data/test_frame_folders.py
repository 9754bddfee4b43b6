"""Folders of JPEG frames as clips: sampling by hand, what is remembered of them, and damaged frames."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from emcl_train.config import DataConfig
from emcl_train.data.annotation_files import clips_in, video_files
from emcl_train.data.cache import FrameCache
from emcl_train.data.clips import Clip, Split
from emcl_train.data.container import check_packets, probe
from emcl_train.data.loader import check_clips, training_loader
from emcl_train.data.opening import fingerprint
from emcl_train.data.passing import PassingError
from emcl_train.data.video import FrameRequest, VideoError, decode_clip, decode_frames, every_second_frame
from emcl_train.report.films import make_media


def write_frames(folder, count, size=(24, 16), first=0):
    """Frame n is of brightness 2 n."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(first, first + count):
        Image.new("RGB", size, (2 * n,) * 3).save(folder / f"{n + 1:08d}.jpg", quality=95)
    return folder


def numbers_in(frames, mask):
    """Which frames these are, by their brightness."""
    return [round(frame.float().mean().item() / 2) for frame in frames[mask]]


def sampled(folder, **settings):
    return numbers_in(*decode_frames(FrameRequest(folder, **({"num_frames": 4, "image_size": 8} | settings))))


def config_of(root, **settings):
    values = {"num_frames": 4, "image_size": 8, "frame_sampling": "2.5fps", "workers": 0, "cache_dir": root / "cache"}
    return DataConfig(root=root, **{**values, **settings})


@pytest.mark.parametrize(
    ("frames", "wanted", "expected"),
    [
        (1, 12, [0]),  # the release takes none
        (2, 12, [0]),
        (3, 12, [0]),
        (4, 12, [0, 3]),
        (10, 12, [0, 2, 4, 6, 9]),  # 0, 2.25, 4.5, 6.75, 9
        (25, 12, [0, 2, 4, 6, 8, 10, 13, 15, 17, 19, 21, 24]),  # 12 of them, 24 / 11 apart
        (9, 2, [0, 8]),  # 0, 2.67, 5.33, 8, of which the first and the last
        (20, 4, [0, 6, 12, 19]),  # 0, 2, 4, 6, 8, 10, 12, 14, 16, 19, of which 0, 3, 6, 9
    ],
)
def test_half_of_the_frames_evenly(frames, wanted, expected):
    assert every_second_frame(frames, wanted) == expected


def test_training_moves_inner_frames_by_up_to_half_a_step():
    still = np.array(every_second_frame(300, 12))
    reach = (still[1] - still[0]) // 2
    assert reach > 2
    drawn = np.array([every_second_frame(300, 12, draw=(0, epoch, 5)) for epoch in range(200)])
    moved = drawn - still
    assert (drawn[:, 0] == 0).all()
    assert (drawn[:, -1] == 299).all()
    assert (np.diff(drawn) >= 0).all()
    assert moved[:, 1:-1].min() == -reach
    assert moved[:, 1:-1].max() == reach
    assert every_second_frame(300, 12, draw=(1, 2, 3)) == every_second_frame(300, 12, draw=(1, 2, 3))
    # A step of five frames is less than two and a half on either side.
    assert every_second_frame(60, 12, draw=(0, 0, 0)) == every_second_frame(60, 12)


def test_a_folder_is_sampled_like_a_film_of_five_frames_a_second(tmp_path):
    folder = write_frames(tmp_path / "video0", 20)
    assert sampled(folder, sampling="2.5fps") == [0, 6, 12, 19]
    assert sampled(folder, sampling="1fps") == [0, 5, 10, 15]
    assert sampled(folder) == [2, 7, 12, 17]
    assert sampled(folder, num_frames=30) == list(range(20))
    assert sampled(folder, sampling="1fps", start=1.0, end=3.0) == [5, 10]
    frames, mask = decode_frames(FrameRequest(folder, 12, 8, "2.5fps"))
    assert frames.shape == (12, 3, 8, 8)
    assert mask.tolist() == [True] * 10 + [False] * 2


def test_pixels_are_those_of_the_file(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    Image.new("RGB", (32, 16), (80, 10, 200)).save(folder / "00000001.jpg", quality=100)
    found, _ = decode_frames(FrameRequest(folder, 1, 8))
    assert (found[0].float().mean((1, 2)) - torch.tensor([80.0, 10.0, 200.0])).abs().max() < 4


def test_folders_are_found_beside_files_and_files_come_first(tmp_path):
    write_frames(tmp_path / "set.a" / "video.1", 2)
    write_frames(tmp_path / "video2", 2)
    (tmp_path / "video2.mp4").write_bytes(b"film")
    write_frames(tmp_path / ".hidden", 1)
    Image.new("RGB", (4, 4)).save(tmp_path / "poster.jpg")
    found = video_files(tmp_path)
    assert found == {
        "video.1": [tmp_path / "set.a" / "video.1"],
        "video2": [tmp_path / "video2.mp4", tmp_path / "video2"],
    }
    files, folders = clips_in(tmp_path)
    assert (len(files), len(folders)) == (1, 2)


def test_a_damaged_frame_is_named(tmp_path):
    folder = write_frames(tmp_path / "video0", 9)
    clip = Clip("video0", folder)
    whole = (folder / "00000003.jpg").read_bytes()
    damaged = {
        whole[: len(whole) // 2]: "its frame 00000003.jpg is damaged or no JPEG",
        b"GIF89a": "its frame 00000003.jpg is damaged or no JPEG",
        b"": "its frame 00000003.jpg is empty",
    }
    for content, said in damaged.items():
        (folder / "00000003.jpg").write_bytes(content)
        assert decode_clip(clip, config_of(tmp_path, num_frames=2))[1].all()  # it is not sampled
        with pytest.raises(VideoError, match=said):  # training may draw it
            decode_clip(clip, config_of(tmp_path, num_frames=2), whole=True)
    with pytest.raises(VideoError, match=r"00000003\.jpg is empty"):
        check_packets(folder)


def test_a_frame_that_is_too_large_is_refused(tmp_path):
    folder = write_frames(tmp_path / "video0", 2)
    with pytest.raises(VideoError, match=r"00000002\.jpg has 24 × 16 pixels, and .*max.pixels allows 100"):
        decode_frames(FrameRequest(folder, 1, 8, max_pixels=100))


def test_folders_that_are_missing_or_empty(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("")
    missing = Clip("a", tmp_path / "a")
    bad = check_clips([missing, Clip("empty", tmp_path / "empty")], config_of(tmp_path))
    assert bad["a"] == "there is no such file"
    assert "a folder without frames, expected 00000001.jpg" in bad["empty"]


def test_a_folder_that_grows_while_it_is_read_is_not_blamed(tmp_path, monkeypatch):
    folder = write_frames(tmp_path / "video0", 4)

    def grows(picture, size, resize):
        write_frames(folder, 1, first=9)
        return torch.zeros(3, size, size, dtype=torch.uint8)

    monkeypatch.setattr("emcl_train.data.video.square", grows)
    with pytest.raises(PassingError, match="changed while it was read"):
        decode_frames(FrameRequest(folder, 1, 8))


def test_what_is_remembered_of_a_folder_holds_until_a_frame_changes(tmp_path):
    folder = write_frames(tmp_path / "video0", 6)
    clip = Clip("video0", folder)
    before = fingerprint(folder)
    assert before == fingerprint(folder)
    config = config_of(tmp_path, cache_frames=True)
    assert check_clips([clip], config) == {}
    cached = FrameCache.open(config, [clip])
    assert cached is not None
    assert numbers_in(*cached.read(clip)) == numbers_in(*decode_clip(clip, config))

    # Another frame in the place of one: neither the folder nor the number of files has changed.
    path = folder / "00000002.jpg"
    status = path.stat()
    Image.new("RGB", (24, 16), (250,) * 3).save(path, quality=95)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert fingerprint(folder) != before
    assert FrameCache.open(config, [clip]) is None
    path.unlink()
    assert fingerprint(folder)[2] == 5
    assert fingerprint(tmp_path / "nothing") is None


def test_training_draws_other_frames_in_each_epoch_and_the_same_again(tmp_path):
    folders = [write_frames(tmp_path / f"video{n}", 100) for n in range(2)]
    clips = tuple(Clip(folder.name, folder) for folder in folders)
    split = Split("train", clips, ("a", "b"), (0, 1))

    class Words:
        def encode(self, captions):
            ids = torch.ones(len(captions), 2, dtype=torch.int64)
            return ids, ids

    def epoch(number, **settings):
        config = config_of(tmp_path, **settings)
        (batch,) = training_loader(split, Words(), config, 2, seed=1, epoch=number)
        order = batch["index"].argsort()
        return batch["frames"][order]

    assert torch.equal(epoch(0), epoch(0))
    assert not torch.equal(epoch(0), epoch(1))
    check_clips(clips, config_of(tmp_path, cache_frames=True))
    assert torch.equal(epoch(0, cache_frames=True), epoch(1, cache_frames=True))
    assert torch.equal(epoch(0, frame_sampling="1fps"), epoch(1, frame_sampling="1fps"))


def test_headers_of_a_folder_and_its_film_in_a_report(tmp_path):
    folder = write_frames(tmp_path / "video0", 10)
    info = probe(folder)
    assert (info.container, info.codec, info.width, info.height, info.fps) == ("folder", "jpeg", 24, 16, 5.0)
    assert (info.duration, info.frames, check_packets(folder).seconds) == (2.0, 10, 2.0)
    media = make_media([(0, Clip("video0", folder))], config_of(tmp_path), 1 << 20, 1)
    assert media.reasons == {}
    assert media.pictures.keys() == media.films.keys() == {0}


def test_files_are_sampled_at_five_frames_a_second_too(tmp_path):
    from tiny_videos import write_video

    path = tmp_path / "a.mp4"
    write_video(path, range(20), size=(32, 32))  # ten frames a second: two seconds
    request = FrameRequest(path, 4, 8, "2.5fps")
    frames, mask = decode_frames(request)
    expected = [2 * n for n in every_second_frame(10, 4)]
    found = frames[mask].float().mean((1, 2, 3))
    whole, _ = decode_frames(replace(request, num_frames=20, sampling="uniform"))
    close = (whole.float().mean((1, 2, 3))[None] - found[:, None]).abs().argmin(1).tolist()
    assert close == expected
