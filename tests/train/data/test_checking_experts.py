"""Clips of experts are checked before a run: what is wrong is said or left out, and remembered; `prepare_experts`."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from expert_files import CE_FILES, Made, h5_of, write_ce, write_jsfusion, write_mmt, write_own, write_pickle

from emcl_train.config import RunConfig, check_config
from emcl_train.data.experts import checking, tables
from emcl_train.data.experts.mmt_captions import KeptCaptions, TimedCaption
from emcl_train.data.experts.mmt_h5 import MMTFeatures
from emcl_train.data.experts.prepare import prepare_experts
from emcl_train.data.experts.split import ExpertFiles
from emcl_train.errors import UserError
from emcl_train.recipes import in_mode, load_recipe
from emcl_train.report.published import protocol_of
from emcl_train.tools.doctor_experts import examine_experts

pytest.importorskip("h5py")


def config_of(recipe: str, root: Path, **data) -> RunConfig:
    config = load_recipe(recipe)
    config.data = replace(config.data, root=root, cache_dir=root.parent / "cache", workers=0, **data)
    config.experts = replace(config.experts, widths="files")
    return config


def spoiled_ce(root: Path) -> Made:
    """A training clip without an expert that is firm, one with a scene of two steps, and a test clip with a NaN."""
    import pickle

    made = write_ce(root, protocol=4)
    path = root / "structured-symlinks" / CE_FILES["scene.densenet161.0"]
    scene = pickle.loads(path.read_bytes())
    scene[made.train[0]] = float("nan")
    scene[made.train[1]] = np.stack([scene[made.train[1]]] * 2)
    scene[made.test[0]] = np.where(np.arange(9) == 3, np.nan, scene[made.test[0]]).astype(np.float32)
    scene[made.test[1]] = float("nan")  # which evaluation takes for missing
    write_pickle(path, scene, 4)
    return made


def spoiled_jsfusion(root: Path) -> Made:
    import h5py

    made = write_jsfusion(root, "lsmdc")
    with h5py.File(root / "LSMDC16_features" / "RESNET_pool5wav.hdf5", "r+") as file:
        del file[made.test[0]]
        file[made.test[0]] = np.full((3, 12), np.nan, np.float32)
    return made


def test_what_is_wrong_inside_clips_is_found_before_a_run(tmp_path):
    made = spoiled_ce(tmp_path / "ce")
    with pytest.raises(UserError) as error:
        prepare_experts(config_of("ce-msrvtt", tmp_path / "ce"))
    first, second, third = made.train[0], made.train[1], made.test[0]
    assert "3 clips of the lists cannot be used" in str(error.value)
    assert f"scene.densenet161.0 has nothing on {first}, and CE takes it for available" in str(error.value)
    assert f"{second} (several steps: scene.densenet161.0); {third} (NaN or infinite: " in str(error.value)
    assert "--data.on-bad-video skip" in str(error.value)

    left = prepare_experts(config_of("ce-msrvtt", tmp_path / "ce", on_bad_video="skip"))
    assert set(left.left_out) == {first, second, third}
    assert left.left_out[first] == "missing: scene.densenet161.0"
    assert not {first, second, third} & {clip.video_id for split in (left.train, left.test) for clip in split.clips}
    assert made.test[1] in {clip.video_id for clip in left.test.clips}
    assert "3 clips of the lists cannot be used, and are left out: 1 missing" in left.notes[-1]


def test_jsfusion_needs_its_only_expert(tmp_path):
    made = spoiled_jsfusion(tmp_path / "set")
    with pytest.raises(UserError, match=f"{made.test[0]} has nothing of resnet"):
        prepare_experts(config_of("jsfusion-lsmdc", tmp_path / "set"))


def test_doctor_finds_the_same(tmp_path):
    made = spoiled_ce(tmp_path / "ce")
    report = examine_experts(ExpertFiles("ce", "msrvtt", tmp_path / "ce", cache_dir=tmp_path / "cache"))
    assert {(fault.video_id, fault.kind.partition(":")[0]) for fault in report.faults} == {
        (made.train[0], "missing"), (made.train[1], "several steps"), (made.test[0], "NaN or infinite"),
    }  # fmt: skip
    assert "audio 4, expected 128" in report.problems[0]
    assert "the text 10, expected 768" in report.problems[0]
    assert "--experts.widths files" in report.problems[0]

    made = spoiled_jsfusion(tmp_path / "jsfusion")
    report = examine_experts(ExpertFiles("jsfusion", "lsmdc", tmp_path / "jsfusion"))
    assert [(fault.video_id, fault.kind) for fault in report.faults] == [(made.test[0], "missing: resnet")]


@pytest.mark.parametrize(
    ("recipe", "write"),
    [("ce-lsmdc", write_ce), ("mmt-lsmdc", write_mmt), ("jsfusion-lsmdc", write_jsfusion), ("mmt-own", write_own)],
)
def test_a_second_check_examines_what_has_changed_alone(recipe, write, tmp_path, monkeypatch):
    dataset = () if write is write_own else ("lsmdc",)
    write(tmp_path / "set", *dataset, faults={"wrong-width"})
    config = config_of(recipe, tmp_path / "set", on_bad_video="skip")
    first = prepare_experts(config)

    examined: list[str] = []
    of = checking._Examinations._of
    monkeypatch.setattr(checking._Examinations, "_of", lambda self, i: examined.append(i) or of(self, i))
    second = prepare_experts(config)
    assert examined == []
    assert (second.left_out, second.train, second.test) == (first.left_out, first.train, first.test)
    assert len(first.left_out) == 1

    clip = first.train.clips[1].video_id
    of_clip = list((tmp_path / "set").rglob(f"{clip}.*"))
    for path in of_clip or (tmp_path / "set").rglob("*.*"):
        os.utime(path, ns=(1, 1))
    prepare_experts(config)
    assert examined == [clip] if of_clip else len(examined) == 12


def test_processes_examine_many_clips(tmp_path, monkeypatch):
    monkeypatch.setattr(checking, "MANY", 2)
    made = write_mmt(tmp_path / "set", faults={"nan-inside"})
    config = config_of("mmt-msrvtt", tmp_path / "set")
    config.data.workers = 1
    with pytest.raises(UserError, match=rf"s3d of {made.faulty['nan-inside']} has 1 values"):
        prepare_experts(config)
    names = {path.name for path in (tmp_path / "cache").iterdir()}
    assert "checked-v1-captions.json" in names
    assert len(names) == 2


def test_damaged_memory_is_as_if_absent(tmp_path):
    write_mmt(tmp_path / "set")
    config = config_of("mmt-msrvtt", tmp_path / "set")
    first = prepare_experts(config)
    for path in (tmp_path / "cache").glob("checked-*.json"):
        path.write_text(path.read_text().replace("{", "[", 2).replace('"captions": [', '"captions": [3, '))
    assert prepare_experts(config).train.captions == first.train.captions


def test_kept_captions_are_those_of_the_files(tmp_path):
    made = write_mmt(tmp_path / "set", "activitynet")
    config = config_of("mmt-activitynet", tmp_path / "set").data
    kept = KeptCaptions(config)
    reader = MMTFeatures(tmp_path / "set", "activitynet", None, kept)
    expected = {i: reader.captions(i) for i in made.train}
    odd = TimedCaption(("a\nb",), np.zeros((1, 2), np.float32))
    kept.add("odd", [1, 2], [odd])
    kept.save()

    again = KeptCaptions(config)
    for video_id, captions in expected.items():
        read = again.read(video_id, h5_of(tmp_path / "set", video_id))
        assert [caption.words for caption in read] == [caption.words for caption in captions]
        assert all(np.array_equal(a.times, b.times) for a, b in zip(read, captions, strict=True))
    assert not again.knows("odd", h5_of(tmp_path / "set", made.train[0]))


def test_captions_of_a_file_that_changed_are_read_anew(tmp_path):
    import h5py

    made = write_mmt(tmp_path / "set", "activitynet")
    config = config_of("mmt-activitynet", tmp_path / "set").data
    changed, same = made.train[:2]
    kept = KeptCaptions(config)
    before = {name: MMTFeatures(tmp_path / "set", "activitynet", None, kept).captions(name) for name in (changed, same)}
    kept.save()

    path = h5_of(tmp_path / "set", changed)
    with h5py.File(path, "r+") as file:
        words = [word.decode() for word in file["raw_captions.0"][()]]
        file["raw_captions.0"][0] = "changed"
    again = KeptCaptions(config)
    assert not again.knows(changed, path)
    assert again.read(changed, path) is None
    assert again.knows(same, h5_of(tmp_path / "set", same))

    reader = MMTFeatures(tmp_path / "set", "activitynet", None, again)
    assert reader.captions(changed)[0].words == ("changed", *words[1:])
    assert [one.words for one in reader.captions(same)] == [one.words for one in before[same]]


@pytest.mark.parametrize(("recipe", "write"), [("mmt-own", write_own), ("mmt-msrvtt", write_mmt)])
def test_blocks_of_em_need_a_caption_a_clip(recipe, write, tmp_path):
    write(tmp_path / "set")
    split = "9k" if recipe == "mmt-own" else "full"
    config = in_mode(config_of(recipe, tmp_path / "set", test_captions="all", msrvtt_split=split), "train")
    with pytest.raises(UserError, match=r"--eval.em-block None --eval.em-rows 64 .* --data.test-captions one"):
        prepare_experts(config)
    config.data.test_captions = "one"
    prepare_experts(config)
    config.data.test_captions = "all"
    config.eval = replace(config.eval, em_block=None, em_rows=64)
    prepare_experts(config)


def test_features_without_dimensions_are_a_fault_of_their_clip(tmp_path):
    made = write_own(tmp_path / "set")
    path = tmp_path / "set/features/motion" / f"{made.train[2]}.npy"
    np.save(path, np.float32(1))
    with pytest.raises(UserError, match=rf"motion of {made.train[2]} has the shape \[\]"):
        prepare_experts(config_of("mmt-own", tmp_path / "set"))


def test_a_plan_writes_nothing_and_says_what_would_be_converted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tables, "CONVERTED_FROM", 1)
    write_ce(tmp_path / "set")
    assert len(prepare_experts(config_of("ce-msrvtt", tmp_path / "set"), only_read=True).test.clips) == 3
    assert not (tmp_path / "cache").exists()
    said = " ".join(capsys.readouterr().err.split())
    assert "w2v_MSRVTT_openAIGPT.pickle would be converted once into a table of 0.00 GB in" in said


def test_a_plan_says_how_large_the_table_would_be(tmp_path, monkeypatch, capsys):
    """In float32, whatever the pickle has."""
    monkeypatch.setattr(tables, "CONVERTED_FROM", 1)
    path = tmp_path / "features.pickle"
    write_pickle(path, {"video0": np.zeros((6000, 1000), np.float16), "video1": np.zeros(500_000, np.float16)}, 4)
    tables.open_table(path, config_of("ce-msrvtt", tmp_path / "set").data, convert=False)
    said = " ".join(capsys.readouterr().err.split())
    assert f"{path} would be converted once into a table of 0.03 GB in {tmp_path / 'cache'}" in said
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("recipe", "write"), [("mmt-msrvtt", write_mmt), ("ce-msrvtt", write_ce)])
def test_files_behind_links_can_be_refused(recipe, write, tmp_path):
    write(tmp_path / "set")
    config = config_of(recipe, tmp_path / "set", outside_root="refuse")
    prepare_experts(config)
    found = h5_of(tmp_path / "set", "video0")
    if recipe == "ce-msrvtt":
        found = tmp_path / "set/structured-symlinks/aggregated_text_feats/w2v_MSRVTT_openAIGPT.pickle"
    found.rename(tmp_path / "elsewhere")
    found.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=rf"1 files outside of it: \S*{found.name}"):
        prepare_experts(config)


def test_frames_of_experts_are_not_kept(tmp_path):
    with pytest.raises(UserError, match=r"CE reads features and no frames; pass --data.no-cache-frames"):
        check_config(config_of("ce-msrvtt", tmp_path, cache_frames=True))


def test_jsfusion_is_tested_on_the_clips_of_its_task(tmp_path):
    write_jsfusion(tmp_path / "set")
    for split in ("train", "val", "test"):
        (tmp_path / "set/DataFrame" / f"LSMDC16_RET_{split}.csv").unlink()
    with pytest.raises(UserError, match=r"has no LSMDC16_RET_test\.csv, which names the clips that are tested"):
        prepare_experts(config_of("jsfusion-lsmdc", tmp_path / "set"))
    folder = tmp_path / "set/DataFrame"
    (folder / "LSMDC16_CAP_test.csv").rename(folder / "LSMDC16_RET_test.csv")
    notes = prepare_experts(config_of("jsfusion-lsmdc", tmp_path / "set")).notes
    assert any("LSMDC16_CAP_val.csv stands in for it" in note for note in notes)


@pytest.mark.parametrize(("recipe", "write"), [("mmt-msrvtt", write_mmt), ("ce-msrvtt", write_ce)])
def test_1k_b_is_a_split_of_experts_alone(recipe, write, tmp_path):
    made = write(tmp_path / "set")
    config = config_of(recipe, tmp_path / "set", msrvtt_split="1k-B")
    check_config(config)
    found = prepare_experts(config)
    assert [clip.path.name for clip in (found.train.clips[0], found.test.clips[0])] == [
        "train_list_miech.txt", "test_list_miech.txt",
    ]  # fmt: skip
    assert len(found.train.clips) == len(made.train)
    assert (
        protocol_of({"split": "test", "protocol": {"layout": "msrvtt", "msrvtt_split": "1k-B"}}).split == "MSR-VTT 1k-B"
    )
    with pytest.raises(UserError, match=r"data\.msrvtt_split is 1k-B, expected 9k, 7k or full"):
        check_config(replace(load_recipe("msrvtt-9k"), data=config.data))
