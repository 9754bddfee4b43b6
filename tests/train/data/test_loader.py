"""Checked clips, remembered frames, and batches in an order that seed and epoch decide."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_videos import level, write_data_set, write_video

from emcl_train.config import DataConfig, RunConfig
from emcl_train.data import loader
from emcl_train.data.annotations import Clip, Split, load_annotations
from emcl_train.data.cache import cache_folder
from emcl_train.data.loader import (
    batches_of_captions,
    caption_loader,
    clip_loader,
    draw_captions,
    prepare,
    shuffled_captions,
    training_loader,
)
from emcl_train.data.text import word_tokenizer
from emcl_train.errors import UserError


@pytest.fixture
def config(tmp_path):
    """10 training clips, 2 validation clips, 2 test clips, of one brightness each."""
    root = write_data_set(tmp_path / "set")
    return RunConfig(data=DataConfig(root=root, num_frames=3, image_size=16, max_words=9, workers=0))


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that are decoded."""
    names = []
    real = loader.decode_clip

    def decode_clip(clip, config, **settings):
        names.append(clip.path.name)
        return real(clip, config, **settings)

    monkeypatch.setattr(loader, "decode_clip", decode_clip)
    return names


def batches(config, epoch=0, start_batch=0, seed=0, **processes):
    split = load_annotations(config.data).train
    tokenizer = word_tokenizer(split.captions, config.data.max_words)
    return list(training_loader(split, tokenizer, config.data, 4, seed, epoch, start_batch, **processes))


def test_a_batch_holds_distinct_clips_with_their_own_captions(config):
    split = load_annotations(config.data).train
    tokenizer = word_tokenizer(split.captions, 9)
    batch = batches(config)[0]
    assert {name: (value.dtype, tuple(value.shape)) for name, value in batch.items()} == {
        "frames": (torch.uint8, (4, 3, 3, 16, 16)),
        "frame_mask": (torch.bool, (4, 3)),
        "input_ids": (torch.int64, (4, 9)),
        "attention_mask": (torch.int64, (4, 9)),
        "index": (torch.int64, (4,)),
    }
    clips = batch["index"].tolist()
    assert len(set(clips)) == 4
    assert [level(frames[0]) for frames in batch["frames"]] == clips
    captions = [split.captions[draw_captions(split, 0, 0)[clip]] for clip in clips]
    assert all(f"shade {clip}," in caption for clip, caption in zip(clips, captions, strict=True))
    assert torch.equal(batch["input_ids"], tokenizer.encode(captions)[0])


def test_order_and_captions_depend_on_seed_and_epoch_alone(config):
    def drawn(**arguments):
        torch.rand(1)
        return [(batch["index"].tolist(), batch["input_ids"].tolist()) for batch in batches(config, **arguments)]

    first = drawn()
    assert drawn() == first
    assert drawn(epoch=1) != first
    assert drawn(seed=1) != first
    assert len(first) == 2  # 10 clips, whole batches of 4


def test_the_loader_leaves_the_random_state_alone(config):
    before = torch.get_rng_state()
    batches(config)
    assert torch.equal(torch.get_rng_state(), before)


def test_skipped_batches_are_the_same_ones_and_not_decoded(config, decoded):
    whole = batches(config, epoch=3)
    decoded.clear()
    rest = batches(config, epoch=3, start_batch=1)
    assert len(rest) == 1
    assert len(decoded) == 4
    assert all(torch.equal(rest[0][name], whole[1][name]) for name in whole[1])


def test_every_caption_of_a_clip_is_drawn_at_some_time(config):
    split = load_annotations(config.data).train
    drawn = {caption for epoch in range(30) for caption in draw_captions(split, 0, epoch)}
    assert drawn == set(range(len(split.captions)))


def pairs(config, **arguments):
    """Batches of (clip, caption), when every caption is trained on."""
    config.data.train_captions = "all"
    return [
        list(zip(batch["index"].tolist(), map(tuple, batch["input_ids"].tolist()), strict=True))
        for batch in batches(config, **arguments)
    ]


def test_all_captions_of_a_clip_come_once_in_an_epoch_with_its_frames(config):
    split = load_annotations(config.data).train
    encoded = word_tokenizer(split.captions, config.data.max_words).encode(split.captions)[0].tolist()
    expected = {(clip, tuple(words)) for clip, words in zip(split.caption_clip, encoded, strict=True)}
    seen = pairs(config)
    assert [len(batch) for batch in seen] == [4] * 7  # 30 pairs, whole batches of 4
    assert len({pair for batch in seen for pair in batch}) == 28
    assert {pair for batch in seen for pair in batch} <= expected
    assert all(len({clip for clip, _ in batch}) == 4 for batch in seen)
    for batch in batches(config):
        assert [level(frames[0]) for frames in batch["frames"]] == batch["index"].tolist()


def test_the_order_of_all_captions_depends_on_seed_and_epoch_alone_and_can_be_resumed(config):
    first = pairs(config)
    torch.rand(1)
    assert pairs(config) == first
    assert pairs(config, epoch=1) != first
    assert pairs(config, seed=1) != first
    assert pairs(config, start_batch=5) == first[5:]
    split = load_annotations(config.data).train
    tokenizer = word_tokenizer(split.captions, config.data.max_words)
    parts = [list(training_loader(split, tokenizer, config.data, 4, 0, 0, rank=rank, world=2)) for rank in range(2)]
    together = [torch.cat([a["index"], b["index"]]).tolist() for a, b in zip(*parts, strict=True)]
    assert together == [[clip for clip, _ in batch] for batch in first]


def counted(*counts):
    """A split with so many captions of each clip."""
    owner = tuple(clip for clip, count in enumerate(counts) for _ in range(count))
    clips = tuple(Clip(f"video{i}", Path(f"{i}.mp4")) for i in range(len(counts)))
    return Split("train", clips, tuple(f"caption {i}" for i in range(len(owner))), owner)


@pytest.mark.parametrize(
    ("counts", "batch_size"),
    [((20,) * 100, 128 // 2), ((20,) * 7, 7), ((5, 1, 1, 1, 1, 1), 2), ((9, 9, 9, 1, 1, 1), 3), ((1,) * 11, 2)],
)
@pytest.mark.parametrize("seed", range(5))
def test_a_batch_of_captions_has_no_clip_twice_however_they_are_spread(counts, batch_size, seed):
    split = counted(*counts)
    drawn = batches_of_captions(split, batch_size, seed, 0)
    assert len(drawn) == sum(counts) // batch_size
    assert all(len({split.caption_clip[caption] for caption in batch}) == batch_size for batch in drawn)
    assert len({caption for batch in drawn for caption in batch}) == len(drawn) * batch_size


def test_a_clip_with_more_captions_than_batches_is_repeated_in_some():
    split = counted(10, 1, 1, 1)
    drawn = batches_of_captions(split, 4, 0, 0)
    assert len({caption for batch in drawn for caption in batch}) == 12
    assert len(drawn) == 3


def test_what_fills_no_batch_is_another_pair_each_time():
    split = counted(*(2,) * 5)
    left_out = set()
    for epoch in range(60):
        left_out |= set(range(10)).difference(*batches_of_captions(split, 3, 0, epoch))
    assert left_out == set(range(10))


def test_any_pairs_are_one_shuffle_of_all_captions_in_which_clips_meet_themselves():
    split = counted(*(20,) * 50)
    drawn = shuffled_captions(split, 128, 0, 0)
    assert [len(batch) for batch in drawn] == [128] * 7
    assert len({caption for batch in drawn for caption in batch}) == 7 * 128
    twice = [128 - len({split.caption_clip[caption] for caption in batch}) for batch in drawn]
    assert min(twice) > 60  # of 50 clips, 128 captions

    assert shuffled_captions(split, 128, 0, 0) == drawn
    assert shuffled_captions(split, 128, 0, 1) != drawn
    assert shuffled_captions(split, 128, 1, 0) != drawn
    left_out = [set(range(1000)).difference(*shuffled_captions(split, 128, 0, epoch)) for epoch in range(2)]
    assert left_out[0] != left_out[1]


def test_the_loader_takes_any_pairs_where_it_is_told(config):
    seen = pairs(config, pairs="any")
    assert [len(batch) for batch in seen] == [4] * 7
    assert any(len({clip for clip, _ in batch}) < 4 for batch in seen)
    assert pairs(config, pairs="any", start_batch=5) == seen[5:]
    assert all(len({clip for clip, _ in batch}) == 4 for batch in pairs(config))


def test_workers_give_the_same_batches(config):
    alone = batches(config)
    config.data.workers = 2
    assert all(torch.equal(a[name], b[name]) for a, b in zip(alone, batches(config), strict=True) for name in a)


def test_evaluation_sees_everything_once_and_in_order(config):
    split = load_annotations(config.data).train
    clips = torch.cat([batch["index"] for batch in clip_loader(split, config.data, batch_size=4)])
    assert clips.tolist() == list(range(10))
    tokenizer = word_tokenizer(split.captions, 9)
    texts = list(caption_loader(split, tokenizer, config.data, batch_size=7))
    assert torch.cat([batch["index"] for batch in texts]).tolist() == list(range(30))
    assert torch.equal(torch.cat([batch["input_ids"] for batch in texts]), tokenizer.encode(split.captions)[0])


def test_clips_are_checked_once_until_their_file_changes(config, decoded):
    prepare(config)
    assert len(decoded) == 14
    decoded.clear()
    prepare(config)
    assert decoded == []
    write_video(config.data.root / "videos" / "video3.mp4", [7] * 5)
    prepare(config)
    assert decoded == ["video3.mp4"]


def test_cached_frames_are_the_decoded_ones_and_decoded_once(config, decoded):
    write_video(config.data.root / "videos" / "video3.mp4", [3] * 2)  # shorter than 3 frames
    plain = batches(config)
    decoded.clear()
    config.data.cache_frames = True
    prepare(config)
    assert len(decoded) == 14
    cached = batches(config)
    prepare(config)
    assert len(decoded) == 14
    assert all(torch.equal(a[name], b[name]) for a, b in zip(plain, cached, strict=True) for name in a)
    assert not list(config.data.root.rglob("*.partial"))


def test_a_cache_of_other_files_is_not_used(config, decoded):
    config.data.cache_frames = True
    prepare(config)
    write_video(config.data.root / "videos" / "video3.mp4", [30] * 4)
    found = {int(i): level(f[0]) for b in batches(config, seed=1) for i, f in zip(b["index"], b["frames"], strict=True)}
    assert found.get(3, 30) == 30
    prepare(config)
    assert len(list(cache_folder(config.data).glob("frames-*.npy"))) == 1
    other = replace(config.data, num_frames=2)
    prepare(replace(config, data=other))
    assert next(iter(clip_loader(load_annotations(other).train, other, 2)))["frames"].shape[1] == 2


def test_an_interrupted_cache_leaves_nothing_that_counts(config, monkeypatch):
    config.data.cache_frames = True
    monkeypatch.setattr(loader, "decode_clip", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare(config)
    assert not list(cache_folder(config.data).glob("*frames*"))


def test_skipped_clips_are_left_out_and_counted(config):
    videos = config.data.root / "videos"
    (videos / "video1.mp4").write_bytes(b"nothing")
    (videos / "video13.mp4").unlink()
    config.data.on_bad_video = "skip"
    for cache_frames in (False, True):
        config.data.cache_frames = cache_frames
        annotations = prepare(config)
        assert set(annotations.left_out) == {"video1", "video13"}
        assert annotations.left_out["video13"] == "there is no such file"
        assert [len(split.clips) for split in (annotations.train, annotations.val, annotations.test)] == [9, 2, 1]
        assert "1 of train, 0 of val, 1 of test" in annotations.notes[-1]


def test_a_captioned_clip_in_no_list_is_checked_too(config):
    root = config.data.root
    content = json.loads((root / "MSRVTT_data.json").read_text())
    content["videos"] += [{"video_id": "video99", "split": "test"}, {"video_id": "video100", "split": "test"}]
    (root / "MSRVTT_data.json").write_text(json.dumps(content))
    (root / "videos" / "video99.mp4").write_bytes(b"nothing")  # video100 has no file, and none is needed
    with pytest.raises(UserError, match=r"1 of 15 clips .* cannot be decoded: video99"):
        prepare(config)


@pytest.mark.parametrize("mode", [0o555, 0o755])
def test_clips_are_remembered_in_the_users_cache_and_not_beside_them(mode, config, tmp_path, monkeypatch, decoded):
    config.data.root.chmod(mode)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    prepare(config)
    prepare(config)
    assert len(decoded) == 14
    assert not (config.data.root / ".emcl").exists()
    assert list((tmp_path / "cache" / "emcl").rglob("checked-*.json"))


def test_each_of_several_processes_decodes_its_part_of_the_same_batches(config, decoded):
    whole = batches(config, epoch=1)
    decoded.clear()
    parts = [batches(config, epoch=1, rank=rank, world=2) for rank in range(2)]
    assert len(decoded) == 8
    for batch, *slices in zip(whole, *parts, strict=True):
        assert all(torch.equal(torch.cat([part[name] for part in slices]), batch[name]) for name in batch)
    assert torch.equal(batches(config, epoch=1, start_batch=1, rank=1, world=2)[0]["index"], parts[1][1]["index"])


def test_spans_of_one_file_are_remembered_apart(config, decoded):
    root = config.data.root
    path = write_video(root / "videos" / "long.mp4", range(20))
    clips = [Clip(f"span{n}", path, start=n * 0.5, end=(n + 1) * 0.5) for n in range(4)]
    config.data.cache_frames = True
    assert loader.check_clips(clips, config.data) == {}
    cache = loader.FrameCache.open(config.data, clips)
    assert [[level(frame) for frame in cache.read(clip)[0]] for clip in clips] == [
        [0, 2, 4],
        [5, 7, 9],
        [10, 12, 14],
        [15, 17, 19],
    ]
    past = Clip("past", path, start=2.0, end=3.0)
    assert loader.FrameCache.open(config.data, [*clips, past]) is None
    assert loader.check_clips([*clips, past], replace(config.data, cache_frames=False)) == {
        "past": "it ends at 2.00 s, before the span from 2 s on"
    }
    decoded.clear()
    assert "past" in loader.check_clips([*clips, past], replace(config.data, cache_frames=False))
    assert decoded == []


def test_files_of_one_name_in_two_folders_are_remembered_apart(config):
    videos = config.data.root / "videos"
    clips = []
    for n in range(2):
        (videos / f"film{n}").mkdir()
        clips.append(Clip(f"clip{n}", write_video(videos / f"film{n}" / "a.mp4", [n + 3] * 4)))
    config.data.cache_frames = True
    assert loader.check_clips(clips, config.data) == {}
    cache = loader.FrameCache.open(config.data, clips)
    assert [level(cache.read(clip)[0][0]) for clip in clips] == [3, 4]


def test_another_sampling_is_another_cache(config, decoded):
    config.data.cache_frames = True
    prepare(config)
    by_second = replace(config.data, frame_sampling="1fps")
    assert loader.FrameCache.open(by_second, load_annotations(by_second).train.clips) is None
    decoded.clear()
    prepare(replace(config, data=by_second))
    assert len(decoded) == 14
    clips = next(iter(clip_loader(load_annotations(by_second).train, by_second, 4)))
    assert clips["frame_mask"].sum(dim=1).tolist() == [1] * 4  # of 0.4 s
    assert loader.FrameCache.open(config.data, load_annotations(config.data).train.clips) is not None


def test_frames_of_another_version_of_the_sampler_are_another_cache(config, decoded):
    config.data.cache_frames = True
    prepare(config)
    before = replace(config.data, resize="rounded", display="rotated")
    clips = load_annotations(before).train.clips
    assert loader.FrameCache.open(before, clips) is None
    prepare(replace(config, data=before))
    assert sorted(path.name for path in cache_folder(config.data).glob("frames-v*.json")) == [
        f"frames-v1-uniform-{before.num_frames}x{before.image_size}.json",
        f"frames-v2-uniform-{before.num_frames}-shown-clip-watchedx{before.image_size}.json",
    ]

    # Each is kept while runs of both kinds go on.
    decoded.clear()
    prepare(config)
    prepare(replace(config, data=before))
    assert decoded == []


def test_what_an_older_version_could_not_decode_is_looked_at_again(config, decoded):
    prepare(config)
    (checked,) = cache_folder(config.data).glob("checked-v2-*.json")
    older = checked.with_name(checked.name.replace("v2", "v1"))
    entries = json.loads(checked.read_text())
    older.write_text(json.dumps({name: entry | {"reason": "it is truncated"} for name, entry in entries.items()}))
    checked.unlink()
    decoded.clear()
    prepare(replace(config, data=replace(config.data, resize="rounded", display="rotated")))
    assert len(decoded) == len(entries)


def test_more_bad_clips_than_an_error_names_stand_in_a_file(config):
    for n in range(12):
        (config.data.root / "videos" / f"video{n}.mp4").write_bytes(b"")
    with pytest.raises(UserError, match=r"and 2 more, all of which stand in .*bad-clips\.txt\. Replace"):
        prepare(config)
    lines = (cache_folder(config.data) / "bad-clips.txt").read_text().splitlines()
    assert lines == [f"video{n}\tthe file is empty" for n in range(12)]
