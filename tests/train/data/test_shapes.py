"""The rendered set: what it shows is what it says, no combination twice, and no file half written."""

import json
import os
import re
import subprocess
import sys

import av
import numpy as np
import pytest

from emcl_train.config import DataConfig, ShapesConfig
from emcl_train.data import shapes
from emcl_train.data.annotations import load_annotations
from emcl_train.data.shapes import COLORS, MOTIONS, PlannedClip, Shape, draw_frames, plan_clips, render_shapes
from emcl_train.errors import UserError

TINY = ShapesConfig(train_clips=8, val_clips=2, test_clips=2, captions_per_clip=3, size=32, seconds=1.0, fps=4)
LARGE = ShapesConfig(train_clips=300, val_clips=40, test_clips=60, captions_per_clip=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "tiny"
    render_shapes(folder, TINY)
    return folder


@pytest.fixture(scope="module")
def plan():
    return plan_clips(LARGE)


def content_of(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def frames_of(motion, size=32, number=3):
    clip = PlannedClip(number, "train", (Shape("red", "circle", motion),), ())
    return [np.asarray(image) for image in draw_frames(clip, ShapesConfig(size=size))]


def red(frames):
    """Where each frame is of the circle's red, [F, H, W]."""
    return np.abs(np.stack(frames).astype(int) - COLORS["red"]).sum(-1) < 60


def test_a_set_is_the_layout_that_real_data_has(root):
    annotations = load_annotations(DataConfig(layout="shapes", root=root, shapes=TINY))
    assert [len(s.clips) for s in (annotations.train, annotations.val, annotations.test)] == [8, 2, 2]
    assert [len(s.captions) for s in (annotations.train, annotations.val, annotations.test)] == [24, 2, 2]
    assert annotations.notes == ()
    entry = json.loads((root / "MSRVTT_data.json").read_text())["videos"][0]
    assert set(entry) == {"video_id", "category", "id", "split", "url", "start time", "end time"}


def test_clips_are_h264_of_the_length_asked_for(root):
    for clip in load_annotations(DataConfig(layout="msrvtt", root=root)).train.clips:
        with av.open(str(clip.path)) as container:
            stream = container.streams.video[0]
            frames = list(container.decode(stream))
            assert (stream.codec_context.name, frames[0].format.name) == ("h264", "yuv420p")
            assert [frame.time for frame in frames] == [0, 0.25, 0.5, 0.75]
            assert (frames[0].width, frames[0].height) == (32, 32)


def test_the_file_shows_what_was_drawn(root):
    for clip in plan_clips(TINY)[:4]:
        with av.open(str(root / "videos" / f"{clip.video_id}.mp4")) as container:
            decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        drawn = np.stack([np.asarray(image) for image in draw_frames(clip, TINY)])
        assert np.abs(decoded.astype(int) - drawn).mean() < 8


def test_rendering_again_gives_the_same_bytes(root, tmp_path):
    render_shapes(tmp_path / "again", TINY)
    assert content_of(tmp_path / "again") == content_of(root)


def test_processes_give_the_same_bytes_as_one(root, tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "_cpu_count", lambda: 2)
    monkeypatch.setattr(shapes, "CLIPS_PER_PROCESS", 6)
    render_shapes(tmp_path / "again", TINY)
    assert content_of(tmp_path / "again") == content_of(root)


def test_another_seed_gives_another_set():
    assert plan_clips(ShapesConfig(**{**vars(TINY), "seed": 1}))[0].captions != plan_clips(TINY)[0].captions


def test_a_finished_set_is_not_touched(root, monkeypatch):
    monkeypatch.setattr(shapes, "_write", lambda *_: pytest.fail("it was written again"))
    render_shapes(root, TINY)


def test_an_interrupted_set_is_completed(root, tmp_path, monkeypatch):
    folder, write, written = tmp_path / "set", shapes._write, []

    def killed_at_the_fifth_file(path, content):
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(path)
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(shapes, "_write", killed_at_the_fifth_file)
        with pytest.raises(KeyboardInterrupt):
            render_shapes(folder, TINY)
    assert not (folder / "shapes.json").exists()
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "videos").iterdir()}
    assert len(before) == 4
    render_shapes(folder, TINY)
    assert content_of(folder) == content_of(root)
    assert before == {name: (folder / "videos" / name).stat().st_mtime_ns for name in before}


def test_a_set_of_other_settings_is_kept(root):
    before = content_of(root)
    other = ShapesConfig(**{**vars(TINY), "size": 48})
    with pytest.raises(UserError, match=r"holds a shapes set of other settings \(size 32, not 48\); delete it, or"):
        render_shapes(root, other)
    assert content_of(root) == before


def test_a_full_disk_is_one_error(tmp_path, monkeypatch):
    def full(path, _):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(shapes, "_write", full)
    with pytest.raises(UserError, match=r"cannot write .*: No space left on device; free space there"):
        render_shapes(tmp_path / "set", TINY)


def test_no_combination_is_shown_twice_in_any_split(plan):
    combinations = [frozenset(clip.shapes) for clip in plan]
    assert len(set(combinations)) == len(combinations) == 400


def test_every_attribute_of_the_test_clips_is_seen_in_training(plan):
    def shown(split):
        shown = [shape for clip in plan if clip.split == split for shape in clip.shapes]
        return {(shape.color, shape.shape) for shape in shown} | {shape.motion for shape in shown}

    assert shown("test") <= shown("train")


def test_no_two_clips_of_a_split_share_a_caption(plan):
    for split in ("train", "validate", "test"):
        captions = [caption for clip in plan if clip.split == split for caption in clip.captions]
        assert len(set(captions)) == len(captions)


def test_captions_name_every_object_and_the_first_every_motion(plan):
    for clip in plan:
        for shape in clip.shapes:
            assert all(f"{shape.color} {shape.shape}" in caption for caption in clip.captions)
            assert any(f"{shape.color} {shape.shape} {verb}" in clip.captions[0] for verb in MOTIONS[shape.motion])


def test_every_caption_is_true_of_one_clip_of_its_split(plan):
    """Read back from its words alone, a caption describes one clip."""
    motion_of = {verb: motion for motion, verbs in MOTIONS.items() for verb in verbs}
    verbs = "|".join(sorted(map(re.escape, motion_of), key=len, reverse=True))
    pattern = re.compile(rf"({'|'.join(COLORS)}) ({'|'.join(shapes.SHAPES)})(?: ({verbs}))?")
    test = [clip for clip in plan if clip.split == "test"]
    for clip in test:
        for caption in clip.captions:
            said = [(color, shape, motion_of.get(verb)) for color, shape, verb in pattern.findall(caption)]
            fits = [
                other
                for other in test
                if len(other.shapes) == len(said)
                and all(any(_fits(shape, *words) for shape in other.shapes) for words in said)
            ]
            assert fits == [clip]


def _fits(shape, color, form, motion):
    return (shape.color, shape.shape) == (color, form) and motion in (None, shape.motion)


@pytest.mark.parametrize(("motion", "axis", "sign"), [("left", 1, -1), ("right", 1, 1), ("up", 0, -1), ("down", 0, 1)])
def test_objects_move_the_way_that_is_said(motion, axis, sign):
    centers = np.array([np.argwhere(mask).mean(0) for mask in red(frames_of(motion))])
    assert (sign * np.diff(centers[:, axis]) > 0).all()
    assert np.ptp(centers[:, 1 - axis]) < 0.5


def test_objects_grow_shrink_appear_and_cross():
    def areas(motion):
        return red(frames_of(motion, size=64)).sum((1, 2))

    assert (np.diff(areas("grow")) > 0).all()
    assert (np.diff(areas("shrink")) < 0).all()
    assert areas("appear")[0] == 0
    assert areas("appear")[-1] > 0
    centers = np.array([np.argwhere(mask).mean(0) for mask in red(frames_of("cross"))])
    assert (np.ptp(centers, axis=0) > 16).all()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="MALLOC_PERTURB_ is glibc's")
def test_bytes_do_not_depend_on_what_fresh_memory_holds():
    script = (
        "import hashlib, sys; from emcl_train.data.shapes import ShapesConfig, _encode, plan_clips;"
        f"config = ShapesConfig(**{vars(TINY)!r});"
        "print(*[hashlib.md5(_encode(clip, config)).hexdigest() for clip in plan_clips(config)])"
    )
    outputs = set()
    for fill in ("1", "85", "255"):
        environment = {**os.environ, "MALLOC_PERTURB_": fill}
        run = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        outputs.add(run.stdout)
    assert len(outputs) == 1
