"""Data sets of experts in the files of each system: readers, lists, batches, tables; faults of every kind."""

import re
import shutil
from pathlib import Path

import expert_files
import numpy as np
import pytest
import torch
from expert_files import BARE_LSMDC, h5_of, write_ce, write_jsfusion, write_mmt, write_own, write_pickle

from emcl_train.config import DataConfig
from emcl_train.data.bert_tokens import word_pieces
from emcl_train.data.experts import tables
from emcl_train.data.experts.ce_inputs import ce_texts, ce_videos
from emcl_train.data.experts.ce_pickles import CEFeatures, CEWords
from emcl_train.data.experts.features import ExpertReader, ExpertSteps, ShapeFault, ValueFault, WidthError
from emcl_train.data.experts.jsfusion_hdf5 import read_vocabulary
from emcl_train.data.experts.mmt_captions import TimedCaption
from emcl_train.data.experts.mmt_h5 import counted_times
from emcl_train.data.experts.mmt_inputs import (
    drawn_steps,
    joined,
    mmt_videos,
    sentence_of,
)
from emcl_train.data.experts.split import ExpertFiles, open_expert_data
from emcl_train.errors import UserError

pytest.importorskip("h5py")

SETS = [
    ("ce", "msrvtt"), ("ce", "activitynet"), ("ce", "lsmdc"), ("mmt", "msrvtt"), ("mmt", "activitynet"),
    ("mmt", "lsmdc"), ("jsfusion", "msrvtt"), ("jsfusion", "lsmdc"), ("own", "own"),
]  # fmt: skip


def write(system: str, dataset: str, root: Path, **settings):
    if system == "own":
        return write_own(root, **settings)
    return getattr(expert_files, f"write_{system}")(root, dataset, **settings)


def opened(system: str, dataset: str, root: Path, split: str = "1k-A"):
    return open_expert_data(ExpertFiles(system, dataset, root, split, cache_dir=root / "cache"))


@pytest.mark.parametrize(("system", "dataset"), SETS)
def test_a_whole_set(system, dataset, tmp_path):
    made = write(system, dataset, tmp_path)
    data = opened(system, dataset, tmp_path)
    assert isinstance(data.reader, ExpertReader)
    assert dict(data.reader.widths) == made.widths
    assert list(data.reader.experts) == sorted(made.widths)
    assert set(data.train.ids) | set(data.val.ids) | set(data.test.ids) == {*made.train, *made.val, *made.test}
    assert list(data.test.ids) == made.test
    assert set(data.reader.ids()) >= set(data.test.ids)

    for split in data.splits:
        for query in split.queries():
            video_id = split.ids[query.clip]
            assert split.text(query) == " ".join(made.captions[video_id][number] for number in query.captions)
    per_clip = 1 if made.chosen or data.test.joined else len(made.captions[made.test[0]])
    assert len(data.test.queries()) == per_clip * len(made.test)

    missing = 0
    for video_id in data.train.ids:
        for expert, steps in data.reader.read(video_id).items():
            missing += steps is None
            if steps is not None:
                assert steps.values.dtype == np.float32
                assert steps.values.shape[1] == made.widths[expert]
    assert (missing > 0) == (system != "jsfusion")


FAULTY = [
    ("wrong-width", WidthError, r"{expert} of {clip} is {came} wide, expected {width}"),
    ("nan-inside", ValueFault, r"{expert} of {clip} has 1 values of \d+ that are NaN or infinite, the first in step 1"),
]


@pytest.mark.parametrize(("system", "dataset", "expert"), [
    ("ce", "msrvtt", "audio"), ("mmt", "lsmdc", "s3d"), ("jsfusion", "lsmdc", "resnet"), ("own", "own", "motion"),
])  # fmt: skip
@pytest.mark.parametrize(("fault", "kind", "said"), FAULTY)
def test_features_that_cannot_be_used(system, dataset, expert, fault, kind, said, tmp_path):
    made = write(system, dataset, tmp_path, faults={fault})
    data = opened(system, dataset, tmp_path)
    clip = made.faulty[fault]
    width = made.widths[expert]
    with pytest.raises(kind, match=said.format(expert=expert, clip=clip, came=width + 1, width=width)):
        data.reader.read(clip)
    assert list(data.reader.examine(clip).faults) == [expert]


@pytest.mark.parametrize(("system", "dataset"), SETS)
@pytest.mark.parametrize(("fault", "said"), [
    ("no-features", r"line \d+: {fault} has no features"),
    ("no-caption", r"line \d+: {fault} has no caption"),
    ("missing-list", r"{fault}"),
])  # fmt: skip
def test_lists_that_do_not_fit(system, dataset, fault, said, tmp_path):
    made = write(system, dataset, tmp_path, faults={fault})
    if (system, fault) == ("mmt", "no-caption"):
        assert opened(system, dataset, tmp_path).train.captions[made.faulty[fault]] == []
        return
    with pytest.raises(UserError, match=said.format(fault=re.escape(made.faulty[fault]))):
        opened(system, dataset, tmp_path)


@pytest.mark.parametrize(
    ("system", "dataset"), [("ce", "msrvtt"), ("mmt", "msrvtt"), ("jsfusion", "lsmdc"), ("own", "own")]
)
def test_hostile_files(system, dataset, tmp_path):
    made = write(system, dataset, tmp_path, faults={"hostile"})

    def read_all() -> None:
        data = opened(system, dataset, tmp_path)
        for video_id in data.train.ids:
            data.reader.read(video_id)

    with pytest.raises(UserError, match=re.escape(Path(made.faulty["hostile"]).name)):
        read_all()
    assert not (tmp_path / "code-was-run").exists()


# --- CE -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [0, 2, 4, 5, "python2"])
def test_ce_of_any_python(protocol, tmp_path):
    made = write_ce(tmp_path, protocol=protocol)
    assert opened("ce", "msrvtt", tmp_path).test.chosen == made.chosen


def test_ce_splits(tmp_path):
    made = write_ce(tmp_path)
    full = opened("ce", "msrvtt", tmp_path, "full")
    assert list(full.val.ids) == made.val
    assert len(full.test.queries()) == 20 * len(made.test) - 1  # one clip has 19 captions
    assert len(opened("ce", "msrvtt", tmp_path, "1k-B").train) == len(made.train)


def test_the_chosen_captions_by_index_and_by_sentence(tmp_path):
    made = write_ce(tmp_path)
    by_sentence = opened("ce", "msrvtt", tmp_path).test.chosen
    (tmp_path / "MSRVTT_JSFUSION_test.csv").unlink()
    with pytest.raises(UserError, match=r"neither jsfusion_val_caption_idx.pkl nor MSRVTT_JSFUSION_test.csv"):
        opened("ce", "msrvtt", tmp_path)

    path = tmp_path / "structured-symlinks" / "jsfusion_val_caption_idx.pkl"
    write_pickle(path, made.chosen, "python2")
    assert opened("ce", "msrvtt", tmp_path).test.chosen == by_sentence == made.chosen
    write_pickle(path, made.chosen | {made.test[1]: 20})
    with pytest.raises(UserError, match=f"has 20 for {made.test[1]} of .*val_list_jsfusion.txt, line 2"):
        opened("ce", "msrvtt", tmp_path)


def test_a_repeated_caption_is_the_first_of_them(tmp_path):
    made = write_ce(tmp_path)
    path = tmp_path / "MSRVTT_JSFUSION_test.csv"
    clip = made.test[1]
    assert made.captions[clip][19] == made.captions[clip][0]
    lines = path.read_text().splitlines()
    lines[2] = f"ret1,x,{clip},{made.captions[clip][19].capitalize()}!"
    path.write_text("\n".join(lines))
    assert opened("ce", "msrvtt", tmp_path).test.chosen[clip] == 0
    path.write_text("\n".join([*lines[:2], f"ret1,x,{clip},nobody said this", *lines[3:]]))
    with pytest.raises(UserError, match=f'line 3: "nobody said this" is none of the 20 captions of {clip}'):
        opened("ce", "msrvtt", tmp_path)


def test_ce_batches(tmp_path):
    made = write_ce(tmp_path)
    data = opened("ce", "msrvtt", tmp_path)
    ids = data.train.ids
    videos = ce_videos(ids, data.reader, max_steps={"audio": 3, "ocr": 2, "speech": 7})
    assert list(videos.experts) == sorted(made.widths)
    assert videos.experts["speech"].shape == (len(ids), 7, made.widths["speech"])
    assert videos.experts["face"].shape == (len(ids), made.widths["face"])
    for row, video_id in enumerate(ids):
        for expert, steps in data.reader.read(video_id).items():
            values = videos.experts[expert][row]
            assert bool(videos.available[expert][row]) == (steps is not None)
            if steps is None:
                assert values.isnan().all()
            elif values.ndim == 1:
                assert np.array_equal(values, steps.values[0])
            else:
                kept = min(len(values), len(steps.values))
                assert np.array_equal(values[:kept], steps.values[:kept])
                assert not values[kept:].any()

    face = next(i for i in ids if data.reader.read(i)["face"] is None)
    with pytest.raises(UserError, match=f"face has nothing on {face}"):
        ce_videos(ids, data.reader, max_steps={"audio": 3, "ocr": 2, "speech": 7}, always_available=("face",))
    several = next(i for i in ids if (found := data.reader.read(i)["audio"]) is not None and len(found.values) > 1)
    with pytest.raises(UserError, match=f"audio has . steps on {several}, expected one"):
        ce_videos([several], data.reader, max_steps={"ocr": 2, "speech": 7})


def test_ce_words(tmp_path):
    made = write_ce(tmp_path, "activitynet")
    data = opened("ce", "activitynet", tmp_path)
    assert data.words.width == made.text_width
    first, second = made.train[:2]
    texts = ce_texts([[(first, (0, 1, 2))], [(second, (0,)), (second, (2,))]], data.words, max_words=5)
    joined = np.concatenate(data.words.read(first))
    assert texts.words.shape == (2, 2, 5, made.text_width)
    assert np.array_equal(texts.words[0, 0], joined[:5])
    assert texts.present.tolist() == [[True, False], [True, True]]
    assert not texts.words[0, 1].any()
    with pytest.raises(UserError, match=f"{first} has 3 captions, and caption 3"):
        data.words.read(first, 3)
    with pytest.raises(UserError, match="no words of word2vec for activitynet"):
        CEWords(tmp_path, "activitynet", DataConfig(root=tmp_path), "word2vec")


def test_a_large_pickle_is_converted_once(tmp_path, monkeypatch, capsys):
    write_ce(tmp_path)
    config = DataConfig(root=tmp_path, cache_dir=tmp_path / "cache")
    plain = CEWords(tmp_path, "msrvtt", config)
    expected = {i: plain.read(i) for i in ("video0", "video11")}
    monkeypatch.setattr(tables, "CONVERTED_FROM", 1)

    capsys.readouterr()
    CEFeatures(tmp_path, "msrvtt", config)
    words = CEWords(tmp_path, "msrvtt", config)
    said = capsys.readouterr()
    assert "w2v_MSRVTT_openAIGPT.pickle is converted into a table" in " ".join((said.out + said.err).split())
    for video_id, arrays in expected.items():
        assert all(map(np.array_equal, words.read(video_id), arrays))

    # The second time, no pickle is read.
    monkeypatch.setattr(tables, "read_arrays", lambda path: pytest.fail(f"{path} is read again"))
    assert all(map(np.array_equal, CEWords(tmp_path, "msrvtt", config).read("video0"), expected["video0"]))
    assert CEFeatures(tmp_path, "msrvtt", config).read("video1")["face"] is None
    monkeypatch.undo()
    monkeypatch.setattr(tables, "CONVERTED_FROM", 1)

    # A table that was changed is made again.
    for table in (tmp_path / "cache").glob("experts-*.npy"):
        data = bytearray(table.read_bytes())
        data[-2] ^= 1
        table.write_bytes(bytes(data))
    again = CEWords(tmp_path, "msrvtt", config)
    assert "is damaged" in "".join(capsys.readouterr())
    assert all(map(np.array_equal, again.read("video0"), expected["video0"]))


def test_ce_files(tmp_path):
    write_ce(tmp_path)
    config = DataConfig(root=tmp_path)
    folder = tmp_path / "structured-symlinks"
    with pytest.raises(UserError, match="no expert rgb on msrvtt"):
        CEFeatures(tmp_path, "msrvtt", config, {"rgb": 3})
    shutil.copytree(folder / "aggregated_scene_25fps_256px_stride1_offset0", folder / "aggregated_scene_x")
    with pytest.raises(UserError, match="several files of the expert scene"):
        CEFeatures(tmp_path, "msrvtt", config)
    shutil.rmtree(folder / "aggregated_face_feats")
    with pytest.raises(UserError, match=r"no file of the expert face, aggregated_face_feats/facefeats-avg.pickle"):
        CEFeatures(tmp_path, "msrvtt", config)


# --- MMT ----------------------------------------------------------------------------------------------------------


def test_lsmdc_leaves_out_five_clips_without_captions(tmp_path):
    made = write_mmt(tmp_path, "lsmdc")
    data = opened("mmt", "lsmdc", tmp_path)
    assert not set(data.train.ids) & set(BARE_LSMDC)
    assert "left out 5 clips that have no captions" in data.notes[0]
    h5_of(tmp_path, made.train[3]).unlink()
    with pytest.raises(UserError, match=f"training.csv, line 4: {re.escape(made.train[3])} has no features"):
        opened("mmt", "lsmdc", tmp_path)


def test_mmt_times(tmp_path):
    made = write_mmt(tmp_path, steps=4)
    data = opened("mmt", "msrvtt", tmp_path)
    found = data.reader.read(made.train[3])
    assert found["s3d"].times.tolist() == [[n, n + 1] for n in range(4)]  # the file has two rows more
    assert found["rgb"].times == pytest.approx(counted_times(4, 0.2))
    assert found["rgb"].times[3] == pytest.approx([0.6, 0.8])
    assert found["face"] is None or found["face"].times is None

    videos = mmt_videos([made.train[3]], data.reader, max_steps=6)
    assert videos.times["s3d"].tolist() == [[2.5, 3.5, 4.5, 5.5, 1, 1]]
    assert videos.times["ocr"].tolist() == [[1] * 6]
    assert videos.present["s3d"].tolist() == [[True] * 4 + [False] * 2]


def test_mmt_batches_with_missing_experts(tmp_path):
    write_mmt(tmp_path)
    data = opened("mmt", "msrvtt", tmp_path)
    ids = data.train.ids
    videos = mmt_videos(ids, data.reader, max_steps=30)
    for row, video_id in enumerate(ids):
        for expert, steps in data.reader.read(video_id).items():
            if steps is None:
                for part in (videos.features, videos.maxpool, videos.present):
                    assert not part[expert][row].any()
            else:
                assert np.array_equal(videos.maxpool[expert][row], steps.values.max(0))
    assert all(tensor.isfinite().all() for tensor in videos.features.values())


def test_steps_are_drawn_as_numpy_draws_them():
    steps = ExpertSteps(np.arange(50, dtype=np.float32)[:, None], counted_times(50, 1.0))
    expected = np.sort(np.random.RandomState(0).choice(50, size=30, replace=False))
    for _ in range(2):  # each video anew
        values, times = drawn_steps(steps, 30, 1, None)
        assert values[:, 0].tolist() == expected.tolist()
        assert times.tolist() == [n + 2.5 for n in expected]

    np.random.seed(3)
    first = np.sort(np.random.choice(50, size=30, replace=False))
    second = np.sort(np.random.choice(50, size=30, replace=False))
    random = np.random.RandomState(3)
    assert drawn_steps(steps, 30, 1, random)[0][:, 0].tolist() == first.tolist()
    assert drawn_steps(steps, 30, 1, random)[0][:, 0].tolist() == second.tolist()


def caption(text: str, start: float = 0.0) -> TimedCaption:
    words = tuple(text.split())
    return TimedCaption(words, np.full((len(words), 2), start, np.float32))


def test_mmt_sentences():
    assert sentence_of(caption("a dog  Runs"), 30) == "A dog runs."
    assert sentence_of(caption("is it ?"), 30) == "Is it ?"
    assert sentence_of(caption("a dog runs"), 2) == "A dog."
    late = TimedCaption(("a", "dog", "runs"), np.array([[0, 1], [500, 501], [501, 502]], np.float32))
    assert sentence_of(late, 30) == "A dog."


def test_captions_of_mmt_are_joined_in_their_order():
    whole = joined([caption("a"), caption("b c", 3.0)])
    assert whole.words == ("a", "b", "c")
    assert whole.times[:, 0].tolist() == [0, 3, 3]


def test_mmt_tokens():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "cafe", "##s", "."]
    tokenizer = word_pieces({word: number for number, word in enumerate(words)}, 6)
    captions = [caption("A dog"), caption("Caf\u00e9s a dog a dog a dog")]
    input_ids, attention_mask = tokenizer.encode([sentence_of(one, 6) for one in captions])
    assert input_ids.tolist() == [[2, 4, 5, 8, 3, 0], [2, 6, 7, 4, 5, 3]]
    assert attention_mask.tolist() == [[1, 1, 1, 1, 1, 0], [1] * 6]


# --- JSFusion and own ---------------------------------------------------------------------------------------------


def test_vocabulary(tmp_path):
    write_jsfusion(tmp_path)
    hickle = read_vocabulary(tmp_path)
    assert hickle.index["<START>"] == 1
    assert len(hickle) == len(hickle.index)

    folder = tmp_path / "Vocabulary"
    (folder / "words.txt").write_text("\n".join(hickle.index))
    np.save(folder / "word_matrix.npy", hickle.matrix)
    plain = read_vocabulary(tmp_path)
    assert np.array_equal(plain.matrix, hickle.matrix)
    np.save(folder / "word_matrix.npy", hickle.matrix[:4])
    with pytest.raises(UserError, match="rows outside the 4"):
        read_vocabulary(tmp_path)
    (folder / "words.txt").unlink()
    (folder / "common_word_to_index.hkl").write_bytes(b"cos\nsystem\n")
    with pytest.raises(UserError, match=r"word_to_index.hkl cannot be read: it is no file of HDF5.*words.txt"):
        read_vocabulary(tmp_path)


def test_jsfusion_has_msrvtt_and_lsmdc(tmp_path):
    with pytest.raises(UserError, match="no lists of activitynet"):
        opened("jsfusion", "activitynet", tmp_path)


def test_own_experts(tmp_path):
    made = write_own(tmp_path)
    data = opened("own", "own", tmp_path)
    with_times = data.reader.read("clip1")["motion"]
    assert with_times.times.shape == (len(with_times.values), 2)
    assert data.reader.read("clip0")["sound"] is None

    from safetensors.torch import save_file

    path = tmp_path / "features" / "motion" / "clip1.safetensors"
    save_file({"features": torch.ones(2, made.widths["motion"], dtype=torch.bfloat16)}, path)
    assert data.reader.read("clip1")["motion"].values.tolist() == [[1.0] * made.widths["motion"]] * 2
    np.save(path.with_suffix(".npy"), np.ones(3))
    with pytest.raises(UserError, match=r"two files of clip1, clip1.npy and clip1.safetensors"):
        opened("own", "own", tmp_path)
    path.unlink()
    np.save(path.with_suffix(".npy"), np.ones((2, 2, 2)))
    with pytest.raises(ShapeFault, match=r"motion of clip1 has the shape \[2, 2, 2\]"):
        opened("own", "own", tmp_path).reader.read("clip1")


def test_own_lists_without_validation(tmp_path):
    write_own(tmp_path)
    (tmp_path / "val.jsonl").unlink()
    data = opened("own", "own", tmp_path)
    assert len(data.val) == 1
    assert not set(data.val.ids) & set(data.train.ids)
    assert "held out" in data.notes[0]
