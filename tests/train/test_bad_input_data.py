"""Bad clips and tokenizers: one error each, with the clip or argument, what came, and the way out."""

import shutil

import pytest
from tiny_videos import write_data_set

from emcl_train.config import DataConfig, ModelConfig, RunConfig
from emcl_train.data.annotations import load_annotations
from emcl_train.data.loader import clip_loader, prepare
from emcl_train.data.text import CaptionTokenizer, load_tokenizer
from emcl_train.errors import UserError
from emcl_train.tools.doctor import run_doctor


def config_of(root, **data):
    return RunConfig(data=DataConfig(root=root, num_frames=2, image_size=16, **{"workers": 0} | data))


def damaged_clip(root):
    (root / "videos" / "video1.mp4").write_bytes(b"nothing")
    prepare(config_of(root))


def missing_clip(root):
    (root / "videos" / "video5.mp4").unlink()
    prepare(config_of(root))


def many_damaged_clips(root):
    for path in (root / "videos").iterdir():
        path.write_bytes(b"")
    prepare(config_of(root))


def no_clip_left(root):
    for name in ("video12", "video13"):
        (root / "videos" / f"{name}.mp4").write_bytes(b"")
    prepare(config_of(root, on_bad_video="skip"))


def clip_lost_in_mid_run(root, workers=0):
    config = config_of(root, workers=workers)
    split = prepare(config).train
    (root / "videos" / "video2.mp4").unlink()
    list(clip_loader(split, config.data, batch_size=4))


def clip_lost_in_a_worker(root):
    clip_lost_in_mid_run(root, workers=1)


def cache_without_space(root):
    usage = shutil.disk_usage(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("emcl_train.data.cache.shutil.disk_usage", lambda _: usage._replace(free=10))
        prepare(config_of(root, cache_frames=True))


def empty_clip_folder(root):
    model = ModelConfig(clip=str(root / "videos"))
    load_tokenizer(RunConfig(model=model))


def broken_tokenizer(root):
    (root / "tokenizer.json").write_text('{"version": "1.0"')
    load_tokenizer(RunConfig(), root)


def tokenizer_without_padding(root):
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(root / "tokenizer.json"))
    CaptionTokenizer.load(root / "tokenizer.json")


def doctor_of_nothing(root):
    run_doctor("msrvtt", root / "none")


BAD_INPUTS = {
    "damaged-clip": (damaged_clip, r"1 of 14 clips in .* cannot be decoded: video1 \(.+--data.on-bad-video skip"),
    "missing-clip": (missing_clip, r"1 of 14 clips in .*: video5 \(there is no such file\)"),
    "many-damaged-clips": (
        many_damaged_clips,
        r"14 of 14 clips .*; and 4 more, all of which stand in .*bad-clips.txt. Replace .*emcl-train data doctor",
    ),
    "no-clip-left": (no_clip_left, r"none of the 2 clips of the test split in .* video12 .*data doctor"),
    "clip-lost-in-mid-run": (clip_lost_in_mid_run, r"^clip video2 \(.*\) was whole .*: there is no such file; restore"),
    "clip-lost-in-a-worker": (clip_lost_in_a_worker, r"^clip video2 \(.*\) was whole .*: there is no such file"),
    "cache-without-space": (cache_without_space, r"frame cache of 14 clips takes .* GB left; .*--data.no-cache-frames"),
    "empty-clip-folder": (empty_clip_folder, r"model.clip is '.*videos', of which no tokenizer .*; pass --model.clip"),
    "broken-tokenizer": (broken_tokenizer, r"tokenizer.json is not a tokenizer of a run \(.*\); copy it again"),
    "tokenizer-without-padding": (tokenizer_without_padding, r"not a tokenizer of a run \(it does not pad"),
    "doctor-of-nothing": (doctor_of_nothing, r"there is no folder .*none; pass the one that holds"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_a_bad_data_set_is_one_error_with_the_way_out(case, tmp_path):
    root = write_data_set(tmp_path / "set")
    call, message = BAD_INPUTS[case]
    with pytest.raises(UserError, match=message):
        call(root)


def test_the_data_set_itself_is_good(tmp_path):
    config = config_of(write_data_set(tmp_path / "set"))
    assert prepare(config) == load_annotations(config.data)
