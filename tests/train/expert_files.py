"""Tiny data sets in the very files of CE, MMT and JSFusion, and a folder of own experts, with faults on demand.

    made = write_ce(folder, "msrvtt", faults={"nan-inside"})

Widths are small and names are the real ones. The features of a clip and those of its captions come from one vector, so
that a model can learn which belong together. Faults concern one clip each, which `Made` names.
"""

import csv
import json
import pickle
import struct
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

LATENT = 8
NAN = float("nan")
TIMES = "\t".join(["00.01.02.345", "00.01.04.678"] * 2)
"""The four times of a line of LSMDC."""

CE_WIDTHS: dict[str, int] = {
    "audio": 4, "face": 6, "i3d.i3d.0": 7, "imagenet.resnext101_32x48d.0": 8, "imagenet.senet154.0": 8, "ocr": 5,
    "r2p1d.r2p1d-ig65m.0": 6, "scene.densenet161.0": 9, "speech": 5,
}  # fmt: skip
CE_TEXT_WIDTH = 10
CE_VARIABLE = ("audio", "ocr", "speech")
CE_FLAKY = ("audio", "face", "ocr", "speech")
FRAMES = "25fps_256px_stride1_offset0"
CE_FILES: dict[str, str] = {
    "imagenet.resnext101_32x48d.0": f"aggregated_imagenet_{FRAMES}/resnext101_32x48d-avg.pickle",
    "imagenet.senet154.0": f"aggregated_imagenet_{FRAMES}/senet154-avg.pickle",
    "scene.densenet161.0": f"aggregated_scene_{FRAMES}/densenet161-avg.pickle",
    "r2p1d.r2p1d-ig65m.0": "aggregated_r2p1d_30fps_256px_stride32_offset0_inner_stride1/r2p1d-ig65m-avg.pickle",
    "i3d.i3d.0": "aggregated_i3d_25fps_256px_stride25_offset0_inner_stride1/i3d-avg.pickle",
}
CE_FLAKY_FILES: dict[str, dict[str, str]] = {
    "msrvtt": {
        "face": "aggregated_face_feats/facefeats-avg.pickle",
        "ocr": "aggregated_ocr_feats/ocr-raw.pickle",
        "audio": "aggregated_audio_feats/Audio_MSRVTT_new.pickle",
        "speech": "aggregated_speech/speech-w2v.pickle",
    },
    "activitynet": {
        "face": "aggregated_facefeats_25fps_256px_stride1/face-avg.pickle",
        "ocr": "aggregated_ocr_feats/ocr-w2v.pkl",
        "audio": "aggregated_audio/vggish-audio-raw.pickle",
        "speech": "aggregated_speech/goog_w2v-speech-raw.pickle",
    },
    "lsmdc": {
        "face": "antoine/face-max-with-blank-val.pickle",
        "ocr": "aggregated_ocr_feats/ocr-w2v.pkl",
        "audio": "aggregated_audio/vggish-raw.pickle",
        "speech": "aggregated_speech/speech-w2v.pickle",
    },
}
CE_FOLDERS = {"msrvtt": "MSRVTT", "activitynet": "activity-net", "lsmdc": "LSMDC"}

MMT_WIDTHS: dict[str, int] = {"face": 6, "ocr": 5, "rgb": 8, "s3d": 7, "scene": 9, "speech": 5, "vggish": 4}
MMT_EXPERTS = {"msrvtt": tuple(MMT_WIDTHS), "activitynet": ("s3d", "vggish"), "lsmdc": tuple(MMT_WIDTHS)}
MMT_TIMED = ("s3d", "vggish")
MMT_FLAKY = ("face", "ocr", "speech", "vggish")

JSFUSION_WIDTH = 12
JSFUSION_WORD_WIDTH = 6
BARE_LSMDC = (
    "0024_THE_LORD_OF_THE_RINGS_00.31.10.217-00.31.10.706",
    "1014_2012_00.01.21.399-00.01.23.997",
    "1014_2012_00.27.58.174-00.27.59.021",
    "1018_Body_Of_Lies_00.42.15.677-00.42.18.534",
    "1037_The_Curious_Case_Of_Benjamin_Button_02.25.14.743-02.25.17.312",
)
"""Like the five training clips that have no captions; how their names go on is made up."""

WORDS = [
    "someone", "walks", "runs", "sings", "cooks", "drives", "near", "a", "red", "blue", "green", "house", "river",
    "street", "dog", "child",
]  # fmt: skip


@dataclass
class Made:
    """What was written."""

    root: Path
    """The folder to pass as that of the data set."""
    widths: dict[str, int]
    text_width: int
    """Of the features of words; 0 if captions are stored as words."""
    train: list[str]
    val: list[str]
    test: list[str]
    captions: dict[str, list[str]]
    """Of each clip, words joined by blanks."""
    chosen: dict[str, int] = field(default_factory=dict)
    """Of test clips: which of the captions is the query, where the split says it."""
    faulty: dict[str, str] = field(default_factory=dict)
    """The clip, or the file, that each fault is in."""


# --- Clips and captions -------------------------------------------------------------------------------------------


def clip_ids(dataset: str, number: int) -> list[str]:
    names: Mapping[str, Callable[[int], str]] = {
        "msrvtt": lambda n: f"video{n}",
        "activitynet": lambda n: f"v_a-b_{n:02}xyz",
        "lsmdc": lambda n: f"{n:04}_Some_Film_00.{n // 60:02}.{n % 60:02}.926-00.{n // 60:02}.{n % 60:02}.987",
    }
    return [names[dataset](n) for n in range(number)]


def shares(ids: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Two thirds to train on, a few to validate, a quarter to test."""
    test = max(2, len(ids) // 4)
    val = max(1, len(ids) // 12)
    return ids[: -test - val], ids[-test - val : -test], ids[-test:]


def sentences(ids: list[str], per_clip: int) -> dict[str, list[str]]:
    """Captions that tell clips apart by their words; the last caption of a clip repeats its first."""
    size = len(WORDS)

    def say(n: int, k: int) -> str:
        return " ".join(WORDS[i % size] for i in (n, n // size + 3 * k, 5 * n + 1, 7 * n + k)[: 2 + (n + k) % 3])

    found = {i: [say(n, k) for k in range(per_clip)] for n, i in enumerate(ids)}
    for texts in found.values():
        if len(texts) > 3:
            texts[-1] = texts[0]
    return found


def latents(ids: Collection[str]) -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)
    return {i: random.normal(size=LATENT) for i in ids}


def steps_of(latent: np.ndarray, name: str, steps: int, width: int) -> np.ndarray:
    """[steps, width] float32: the clip's vector through a matrix of the expert, with a little noise."""
    random = np.random.default_rng(sum(map(ord, name)))
    matrix = random.normal(size=(LATENT, width))
    noise = 0.1 * np.random.default_rng(int(abs(latent[0]) * 1e6)).normal(size=(steps, width))
    return (latent @ matrix + noise).astype(np.float32)


# --- Pickles ------------------------------------------------------------------------------------------------------


def python2_pickle(value: Any) -> bytes:
    """A pickle as Python 2 with its NumPy wrote them, protocol 2: raw bytes in strings, NumPy's names of then."""
    out = BytesIO()
    memo = 0

    def put() -> None:
        nonlocal memo
        out.write(pickle.LONG_BINPUT + struct.pack("<I", memo))
        memo += 1

    def text(data: bytes) -> None:
        short = len(data) < 256
        code, size = (pickle.SHORT_BINSTRING, "<B") if short else (pickle.BINSTRING, "<i")
        out.write(code + struct.pack(size, len(data)) + data)
        put()

    def number(n: int) -> None:
        out.write(pickle.BININT + struct.pack("<i", n))

    def array(a: np.ndarray) -> None:
        out.write(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n")
        number(0)
        out.write(pickle.TUPLE1)
        text(b"b")
        out.write(pickle.TUPLE3 + pickle.REDUCE)
        put()
        out.write(pickle.MARK)
        number(1)
        out.write(pickle.MARK)
        for length in a.shape:
            number(length)
        out.write(pickle.TUPLE + b"cnumpy\ndtype\n")
        text(a.dtype.str[1:].encode())
        number(0)
        number(1)
        out.write(pickle.TUPLE3 + pickle.REDUCE)
        put()
        out.write(pickle.MARK)
        number(3)
        text(b"<")
        out.write(pickle.NONE * 3)
        number(-1)
        number(-1)
        number(0)
        out.write(pickle.TUPLE + pickle.BUILD + pickle.NEWFALSE)
        text(a.tobytes())
        out.write(pickle.TUPLE + pickle.BUILD)

    def any_of(v: Any) -> None:
        if isinstance(v, dict):
            out.write(pickle.EMPTY_DICT)
            put()
            out.write(pickle.MARK)
            for key, one in v.items():
                any_of(key)
                any_of(one)
            out.write(pickle.SETITEMS)
        elif isinstance(v, (list, tuple)):
            out.write(pickle.EMPTY_LIST)
            put()
            out.write(pickle.MARK)
            for one in v:
                any_of(one)
            out.write(pickle.APPENDS)
        elif isinstance(v, np.ndarray):
            array(v)
        elif isinstance(v, str):
            text(v.encode())
        elif isinstance(v, float):
            out.write(pickle.BINFLOAT + struct.pack(">d", v))
        else:
            number(v)

    out.write(pickle.PROTO + b"\x02")
    any_of(value)
    out.write(pickle.STOP)
    return out.getvalue()


def write_pickle(path: Path, value: Any, protocol: int | str = 4) -> None:
    """`protocol` is a number, or "python2"."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(python2_pickle(value) if protocol == "python2" else pickle.dumps(value, int(protocol)))


def hostile_pickle(mark: Path) -> bytes:
    """A pickle that would write a file if it were run."""
    return b"cos\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR."


def write_lines(path: Path, lines: Collection[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


# --- Faults -------------------------------------------------------------------------------------------------------

FAULTS = {
    "wrong-width": "an expert of a training clip is one wider",
    "nan-inside": "one value of an expert that is there is NaN",
    "no-features": "a test clip has no features at all",
    "unlisted": "features of a clip that no list names",
    "no-caption": "a training clip has no caption",
    "missing-list": "the list of the training clips is not there",
    "hostile": "a file of features would run code",
}


def _spoil(features: dict[str, dict[str, Any]], made: Made, faults: Collection[str], expert: str) -> None:
    """Put faults into features, by experts and ids; `expert` is one with steps."""
    unknown = set(faults) - set(FAULTS)
    assert not unknown, f"{unknown}: known faults are {', '.join(FAULTS)}"
    if "wrong-width" in faults:
        made.faulty["wrong-width"] = made.train[0]
        values = np.atleast_2d(next(e[made.train[0]] for name, e in features.items() if name == expert))
        features[expert][made.train[0]] = np.zeros((len(values), made.widths[expert] + 1), np.float32)
    if "nan-inside" in faults:
        made.faulty["nan-inside"] = made.train[1]
        features[expert][made.train[1]] = np.ones((3, made.widths[expert]), np.float32)
        features[expert][made.train[1]][1, 2] = np.nan
    if "no-features" in faults:
        made.faulty["no-features"] = made.test[-1]
        for of_expert in features.values():
            of_expert.pop(made.test[-1], None)
    if "unlisted" in faults:
        made.faulty["unlisted"] = "video_of_nobody"
        for name, of_expert in features.items():
            of_expert["video_of_nobody"] = np.ones((1, made.widths[name]), np.float32)


# --- CE -----------------------------------------------------------------------------------------------------------


def write_ce(
    root: Path,
    dataset: str = "msrvtt",
    *,
    videos: int = 12,
    widths: Mapping[str, int] | None = None,
    text_width: int = CE_TEXT_WIDTH,
    protocol: int | str = "python2",
    faults: Collection[str] = (),
) -> Made:
    """`root/structured-symlinks/…` as in the archive "features-v2", for the full split, 1k-A and 1k-B of MSR-VTT.

    Experts that may be missing are missing in every fourth clip. The csv of 1k-A lies in `root`; the index
    `jsfusion_val_caption_idx.pkl` does not exist, as in the archive.
    """
    folder = root / "structured-symlinks"
    ids = clip_ids(dataset, videos)
    train, val, test = shares(ids)
    per_clip = {"msrvtt": 20, "activitynet": 3, "lsmdc": 1}[dataset]
    captions = sentences(ids, per_clip)
    if dataset == "msrvtt":
        captions[test[0]] = captions[test[0]][:19]  # as two clips of the test split have
    made = Made(root, dict(widths or CE_WIDTHS), text_width, train, val, test, captions)
    vectors = latents(ids)

    features: dict[str, dict[str, Any]] = {}
    for expert, width in made.widths.items():
        features[expert] = {}
        for n, i in enumerate(ids):
            steps = steps_of(vectors[i], expert, 1 + n % 5, width)
            features[expert][i] = steps if expert in CE_VARIABLE else steps[0]
            if expert in CE_FLAKY and (n + sum(map(ord, expert))) % 4 == 0:
                features[expert][i] = NAN
    _spoil(features, made, faults, "audio")

    files = CE_FILES | CE_FLAKY_FILES[dataset]
    for expert, of_expert in features.items():
        write_pickle(folder / files[expert], of_expert, protocol)
    if "hostile" in faults:
        made.faulty["hostile"] = files["ocr"]
        (folder / files["ocr"]).write_bytes(hostile_pickle(root / "code-was-run"))

    # Words: the raw ones, and one vector for each.
    raw = {i: [text.split() for text in texts] for i, texts in captions.items()}
    if "no-caption" in faults:
        made.faulty["no-caption"] = train[2]
        del raw[train[2]]
    vectors_of_words = {
        i: [steps_of(vectors[i], f"text{k}", len(words), text_width) for k, words in enumerate(texts)]
        for i, texts in raw.items()
    }
    name = "raw-captions-train-val_1.pkl" if dataset == "activitynet" else "raw-captions.pkl"
    write_pickle(folder / name, raw, protocol)
    texts = folder / "aggregated_text_feats"
    if dataset == "msrvtt":
        write_pickle(texts / "w2v_MSRVTT_openAIGPT.pickle", vectors_of_words, protocol)
        write_pickle(texts / "w2v_MSRVTT.pickle", {i: [a[:, :5] for a in t] for i, t in vectors_of_words.items()})
    elif dataset == "activitynet":
        of_train = {i: t for i, t in vectors_of_words.items() if i not in test}
        write_pickle(texts / "openai-train.pkl", of_train, protocol)
        write_pickle(texts / "openai-val1.pkl", {i: vectors_of_words[i] for i in test}, protocol)
        write_pickle(texts / "openai-val2.pkl", {"v_other": vectors_of_words[test[0]]}, protocol)
    else:
        write_pickle(texts / "w2v.pkl", vectors_of_words, protocol)

    # Lists.
    if dataset == "msrvtt":
        lists = {
            "train_list_full": train, "val_list_full": val, "test_list_full": test,
            "train_list_jsfusion": [*train, *val], "val_list_jsfusion": test,
            "train_list_miech": train, "test_list_miech": test,
        }  # fmt: skip
        write_jsfusion_csv(root / "MSRVTT_JSFUSION_test.csv", made)
    elif dataset == "activitynet":
        lists = {"train_list": [*train, *val], "val_1_list": test}
    else:
        lists = {"train_list": train, "val_list": val, "test_list": test}
    for list_name, listed in lists.items():
        write_lines(folder / f"{list_name}.txt", listed)
    if "missing-list" in faults:
        made.faulty["missing-list"] = "train_list_jsfusion.txt" if dataset == "msrvtt" else "train_list.txt"
        for list_name in lists:
            if list_name.startswith("train"):
                (folder / f"{list_name}.txt").unlink()
    return made


def write_jsfusion_csv(path: Path, made: Made) -> None:
    """The field's list of split 1k-A: clip n has its caption n modulo 4 as the query, in the words of a sentence."""
    made.chosen = {i: n % min(4, len(made.captions[i])) for n, i in enumerate(made.test)}
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["key", "vid_key", "video_id", "sentence"])
        for n, (i, k) in enumerate(made.chosen.items()):
            rows.writerow([f"ret{n}", f"msr{i.removeprefix('video')}", i, made.captions[i][k]])


# --- MMT ----------------------------------------------------------------------------------------------------------


def write_mmt(
    root: Path,
    dataset: str = "msrvtt",
    *,
    videos: int = 12,
    widths: Mapping[str, int] | None = None,
    steps: int = 9,
    faults: Collection[str] = (),
) -> Made:
    """`root/symlinked-feats` and `root/vid_feat_files/mult_h5`, one h5 a clip; `steps` at most for an expert.

    LSMDC's training list also names the five clips without captions, which have no file.
    """
    import h5py

    ids = clip_ids(dataset, videos)
    train, val, test = shares(ids)
    per_clip = {"msrvtt": 20, "activitynet": 3, "lsmdc": 1}[dataset]
    given = {expert: MMT_WIDTHS[expert] for expert in MMT_EXPERTS[dataset]}
    made = Made(root, dict(widths or given), 0, train, val, test, sentences(ids, per_clip))
    vectors = latents(ids)

    features: dict[str, dict[str, Any]] = {}
    for expert, width in made.widths.items():
        features[expert] = {i: steps_of(vectors[i], expert, 1 + n % steps, width) for n, i in enumerate(ids)}
        for n, i in enumerate(ids):
            if expert in MMT_FLAKY and (n + sum(map(ord, expert))) % 4 == 0:
                # The three ways in which an expert is missing.
                gone = (None, np.full((1, width), np.nan, np.float32), np.zeros((0, width), np.float32))
                features[expert][i] = gone[n % 3]
    _spoil(features, made, faults, "s3d")

    every = [*ids, *(["video_of_nobody"] if "unlisted" in faults else [])]
    if "no-caption" in faults:
        made.faulty["no-caption"] = train[2]
    for i in every:
        if made.faulty.get("no-features") == i:
            continue
        path = h5_of(root, i)
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            texts = [] if made.faulty.get("no-caption") == i else made.captions.get(i, ["someone walks"])
            for k, text in enumerate(texts):
                words = text.split()
                file[f"raw_captions.{k}"] = np.array([word.encode() for word in words], dtype=h5py.string_dtype())
                if dataset == "activitynet":
                    starts = 2.0 * k + np.arange(len(words))
                    file[f"raw_captions_t.{k}"] = np.stack([starts, starts + 1], 1)
            for expert, of_expert in features.items():
                values = of_expert.get(i)
                if values is None:
                    continue
                file[f"features.{expert}"] = values
                if expert in MMT_TIMED:  # two rows more than there are steps
                    starts = np.arange(len(values) + 2, dtype=np.float32)
                    file[f"features_t.{expert}"] = np.stack([starts, starts + 1], 1)
    if "hostile" in faults:
        made.faulty["hostile"] = h5_of(root, train[3]).name
        h5_of(root, train[3]).write_bytes(hostile_pickle(root / "code-was-run"))

    lists = root / "symlinked-feats"
    if dataset == "msrvtt":
        write_lines(lists / "train_list_jsfusion.txt", [*train, *val])
        write_lines(lists / "val_list_jsfusion.txt", test)
        write_lines(lists / "train_list_miech.txt", train)
        write_lines(lists / "test_list_miech.txt", test)
        write_lines(lists / "train_list.txt", train)
        write_lines(lists / "val_list.txt", val)
        write_lines(lists / "test_list.txt", test)
        made.chosen = {i: n % 4 for n, i in enumerate(test)}
        write_pickle(lists / "jsfusion_val_caption_idx.pkl", made.chosen, "python2")
    elif dataset == "activitynet":
        write_lines(lists / "train_list.txt", [*train, *val])
        write_lines(lists / "val_1_list.txt", test)
    else:
        lines = {i: f"{i}\t{TIMES}\t{(made.captions.get(i) or [''])[0]}" for i in (*ids, *BARE_LSMDC)}
        write_lines(lists / "LSMDC16_annos_training.csv", [lines[i] for i in (*train, *val, *BARE_LSMDC)])
        write_lines(lists / "LSMDC16_challenge_1000_publictect.csv", [lines[i] for i in test])
    if "missing-list" in faults:
        for path in sorted(lists.glob("*train*")):
            path.unlink()
            if dataset != "msrvtt" or path.name == "train_list_jsfusion.txt":
                made.faulty["missing-list"] = path.name
    return made


def h5_of(root: Path, video_id: str) -> Path:
    return root / "vid_feat_files" / "mult_h5" / video_id[0] / video_id[1] / video_id[2] / f"{video_id}.h5"


# --- JSFusion -----------------------------------------------------------------------------------------------------


def write_jsfusion(
    root: Path,
    dataset: str = "lsmdc",
    *,
    videos: int = 12,
    width: int = JSFUSION_WIDTH,
    steps: int = 50,
    faults: Collection[str] = (),
) -> Made:
    """The authors' folders under `root`: hdf5 of features, tab-separated lists, hickle files of the vocabulary."""
    import h5py

    if dataset == "msrvtt":
        ids = [f"msr{n}" for n in range(videos)]
        path = root / "LSMDC16_features" / "MSR_RESNET_pool5.hdf5"
    else:
        ids = [f"vid{n}" for n in range(videos)]
        path = root / "LSMDC16_features" / "RESNET_pool5wav.hdf5"
    train, val, test = shares(ids)
    made = Made(root, {"resnet": width}, 0, train, val, test, sentences(ids, 2 if dataset == "msrvtt" else 1))
    vectors = latents(ids)
    features = {"resnet": {i: steps_of(vectors[i], "x", 1 + 7 * n % steps, width) for n, i in enumerate(ids)}}
    _spoil(features, made, faults, "resnet")

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for i, values in features["resnet"].items():
            file[i] = values
    if "hostile" in faults:
        made.faulty["hostile"] = path.name
        path.write_bytes(hostile_pickle(root / "code-was-run"))

    if "no-caption" in faults:
        made.faulty["no-caption"] = train[2]
    frames = root / "DataFrame"
    frames.mkdir(parents=True, exist_ok=True)
    names = {"train": train, "val": val, "test": test}
    prefix = "MSR" if dataset == "msrvtt" else "LSMDC16"
    for split, listed in names.items():
        if dataset == "msrvtt" and split == "val":
            continue
        of_split = [*train, *val] if dataset == "msrvtt" and split == "train" else listed
        rows = [
            (f"{split}{n}", i, "" if made.faulty.get("no-caption") == i else text)
            for n, i in enumerate(of_split)
            for text in made.captions[i]
        ]
        for task in ("CAP", "RET") if dataset == "lsmdc" else ("CAP",):
            lines = ["key\tvid_key\tdescription", *("\t".join(row) for row in rows)]
            write_lines(frames / f"{prefix}_{task}_{split}.csv", lines)
    if dataset == "msrvtt":
        made.chosen = dict.fromkeys(test, 0)
        lines = ["key,vid_key,video_id,sentence"]
        lines += [f"ret{n},{i},video{i[3:]},{made.captions[i][0]}" for n, i in enumerate(test)]
        write_lines(root / "MSRVTT_JSFUSION_test.csv", lines)
    if "missing-list" in faults:
        for found in frames.glob("*train.csv"):
            made.faulty["missing-list"] = found.name
            found.unlink()

    write_vocabulary(root / "Vocabulary", ["<pad>", "<START>", "<eos>", *WORDS])
    return made


def write_vocabulary(folder: Path, words: list[str], width: int = JSFUSION_WORD_WIDTH) -> None:
    """A matrix and two dictionaries as hickle 2 writes them: a group for each key, and in it a data set."""
    import h5py

    folder.mkdir(parents=True, exist_ok=True)
    matrix = np.random.default_rng(3).normal(size=(len(words), width)).astype(np.float32)
    for name in ("word_matrix", "word_to_index", "index_to_word"):
        with h5py.File(folder / f"common_{name}.hkl", "w") as file:
            file.attrs["CLASS"] = b"hickle"
            file.attrs["VERSION"] = 2
            if name == "word_matrix":
                file["data_0"] = matrix
                file["data_0"].attrs["type"] = [b"ndarray"]
                continue
            group = file.create_group("data_0")
            group.attrs["type"] = [b"dict"]
            for index, word in enumerate(words):
                item = group.create_group(word if name == "word_to_index" else str(index))
                item.attrs["type"] = [b"dict_item"]
                item["data_0"] = index if name == "word_to_index" else [word.encode()]


# --- Own experts --------------------------------------------------------------------------------------------------


def write_own(
    root: Path,
    *,
    videos: int = 12,
    widths: Mapping[str, int] | None = None,
    faults: Collection[str] = (),
) -> Made:
    """`root/features/<expert>/<id>.npy` or `.safetensors`, and lists of clips and captions as JSON lines."""
    from safetensors.numpy import save_file

    ids = [f"clip{n}" for n in range(videos)]
    train, val, test = shares(ids)
    made = Made(root, dict(widths or {"motion": 6, "sound": 4}), 0, train, val, test, sentences(ids, 2))
    vectors = latents(ids)
    features: dict[str, dict[str, Any]] = {
        expert: {i: steps_of(vectors[i], expert, 1 + n % 5, width) for n, i in enumerate(ids)}
        for expert, width in made.widths.items()
    }
    last = list(made.widths)[-1]
    features[last].pop(ids[0])  # an expert that a clip does not have
    _spoil(features, made, faults, next(iter(made.widths)))

    for expert, of_expert in features.items():
        folder = root / "features" / expert
        folder.mkdir(parents=True, exist_ok=True)
        for n, (i, values) in enumerate(of_expert.items()):
            if n % 2:
                starts = np.arange(len(values), dtype=np.float32)
                save_file({"features": values, "times": np.stack([starts, starts + 1], 1)}, folder / f"{i}.safetensors")
            else:
                np.save(folder / f"{i}.npy", values.astype(np.float16) if expert == last else values)
    if "hostile" in faults:
        expert = next(iter(made.widths))
        path = root / "features" / expert / f"{train[2]}.npy"
        path.unlink(missing_ok=True)
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
        made.faulty["hostile"] = path.name

    for split, listed in (("train", train), ("val", val), ("test", test)):
        lines = [json.dumps({"id": i, "captions": made.captions[i]}) for i in listed]
        if split == "train" and "no-caption" in faults:
            made.faulty["no-caption"] = train[2]
            lines[2] = json.dumps({"id": train[2], "captions": []})
        write_lines(root / f"{split}.jsonl", lines)
    if "missing-list" in faults:
        made.faulty["missing-list"] = "train.jsonl"
        (root / "train.jsonl").unlink()
    return made
