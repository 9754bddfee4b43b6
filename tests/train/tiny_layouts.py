"""Small data sets in the very schema of each data set's own files, with clips of 32 × 32 pixels and a second or two."""

import csv as csv_module
import json
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path

from PIL import Image
from tiny_videos import write_video

# Flags that make a recipe a matter of a second.
SMALL = [
    *("--model.clip", "random", "--model.random-clip.width", "16", "--model.random-clip.layers", "1"),
    *("--model.random-clip.heads", "2", "--model.temporal-layers", "1", "--emcl.num-bases", "4"),
    *("--data.image-size", "16", "--data.workers", "0", "--train.max-steps", "2", "--train.batch-size", "4"),
]

TRAIN, VAL, TEST = ([f"{split}{n}" for n in range(number)] for split, number in (("tr", 8), ("va", 2), ("te", 4)))
SPLITS = {"train": TRAIN, "val": VAL, "test": TEST}


def write_clips(folder: Path, names: Iterable[str], seconds: float = 1.5) -> None:
    """Clip n has brightness n."""
    for n, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(folder / name, [n % 40] * round(10 * seconds), size=(32, 32))


def say(video_id: str, wording: int = 0) -> str:
    return f"a person shows {video_id} in way {wording}"


def captions(ids: Iterable[str], number: int) -> dict[str, list[str]]:
    return {video_id: [say(video_id, k) for k in range(number)] for video_id in ids}


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_lists(root: Path) -> None:
    for split, ids in SPLITS.items():
        (root / f"{split}_list.txt").write_text("\n".join(ids) + "\n", encoding="utf-8")


def write_msrvtt_annotations(
    root: Path, train: list[str], test_csv: str, texts: dict[str, list[str]], splits: dict[str, str], name: str = "9k"
) -> None:
    """MSRVTT_data.json with every key that the file has, a training list, and the test file as it is given."""
    videos = [
        {"category": 9, "url": "", "video_id": i, "start time": 0.0, "end time": 9.0, "split": splits[i], "id": n}
        for n, i in enumerate(texts)
    ]
    pairs = [(i, text) for i, own in texts.items() for text in own]
    sentences = [{"caption": text, "video_id": i, "sen_id": n} for n, (i, text) in enumerate(pairs)]
    write_json(root / "MSRVTT_data.json", {"info": {"year": "2016"}, "videos": videos, "sentences": sentences})
    (root / f"MSRVTT_train.{name}.csv").write_text("\n".join(["video_id", *train]) + "\n", encoding="utf-8")
    (root / "MSRVTT_JSFUSION_test.csv").write_text(test_csv, encoding="utf-8")


def _msrvtt(root: Path, name: str) -> None:
    ids = [f"video{n}" for n in range(14)]
    splits = dict(zip(ids, ["train"] * 8 + ["validate"] * 2 + ["test"] * 4, strict=True))
    rows = [f"ret{n},msr{i[5:]},{i},{say(i)}" for n, i in enumerate(ids[10:])]
    test = "\n".join(["key,vid_key,video_id,sentence", *rows]) + "\n"
    write_msrvtt_annotations(root, ids[:8], test, captions(ids, 20), splits, name)
    write_clips(root / "videos", [f"{i}.{['mp4', 'avi', 'mkv'][n % 3]}" for n, i in enumerate(ids)])


def msrvtt_9k(root: Path) -> None:
    _msrvtt(root, "9k")


def msrvtt_7k(root: Path) -> None:
    _msrvtt(root, "7k")


def msrvtt_full(root: Path) -> None:
    _msrvtt(root, "9k")
    (root / "MSRVTT_train.9k.csv").unlink()
    (root / "MSRVTT_JSFUSION_test.csv").unlink()


def msrvtt_of_frames(root: Path) -> None:
    """Every clip as a folder of frames, five a second."""
    _msrvtt(root, "9k")
    for path in sorted((root / "videos").iterdir()):
        brightness = 10 * (int(path.stem[5:]) + 1)
        path.unlink()
        folder = root / "videos" / path.stem
        folder.mkdir()
        for n in range(8):
            Image.new("RGB", (32, 32), (brightness,) * 3).save(folder / f"{n + 1:08d}.jpg")


def write_activitynet(root: Path, train: dict[str, list[str]], test: dict[str, list[str]]) -> None:
    """Captions of sentences, by "v_" ids; files with and without the "v_"."""
    for name, content in (("train", train), ("val_1", test)):
        entries = {
            video_id: {"duration": 9.5, "timestamps": [[n, n + 1] for n in range(len(texts))], "sentences": texts}
            for video_id, texts in content.items()
        }
        write_json(root / f"{name}.json", entries)
        write_json(root / f"{name.removesuffix('_1')}_ids.json", list(content))
    ids = [*train, *test]
    write_clips(root / "videos", [f"{i if n % 2 else i[2:]}.{['mp4', 'mkv'][n % 2]}" for n, i in enumerate(ids)], 3.0)


def activitynet(root: Path) -> None:
    def of(ids: list[str]) -> dict[str, list[str]]:
        return {f"v_{i}": [f"{say(i, k)}. " for k in range(3)] for i in ids}

    write_activitynet(root, of([*TRAIN, *VAL]), of(TEST))


def lsmdc(root: Path) -> None:
    """One clip has two sentences, some clips lie in folders of their films, and one is known to be broken."""
    root.mkdir(parents=True)

    def clip_id(video_id: str) -> str:
        return f"{video_id}_Some_Film_00.01.02.345-00.01.0{video_id[-1]}.678"

    names = {"train": "annos_training", "val": "annos_val", "test": "challenge_1000_publictect"}
    files = []
    for split, ids in SPLITS.items():
        rows = [(clip_id(i), say(i)) for i in ids]
        files += [f"{i}_Some_Film/{clip_id(i)}.avi" if n % 2 else f"{clip_id(i)}.avi" for n, i in enumerate(ids)]
        if split == "train":
            rows += [(clip_id("tr0"), say("tr0", 1)), ("0017_Pianist_00.30.36.767-00.30.38.009", "SOMEONE plays.")]
        times = "00.01.02.345\t00.01.04.678\t00.01.02.345\t00.01.04.678"
        lines = [f"{clip}\t{times}\t{sentence}\n" for clip, sentence in rows]
        (root / f"LSMDC16_{names[split]}.csv").write_text("".join(lines), encoding="utf-8")
    write_clips(root / "videos", files)


def msvd(root: Path) -> None:
    root.mkdir(parents=True)
    write_lists(root)
    words = {i: [text.split() for text in texts] for i, texts in captions([*TRAIN, *VAL, *TEST, "unused"], 5).items()}
    (root / "raw-captions.pkl").write_bytes(pickle.dumps(words))
    write_clips(root / "videos", [f"{i}.avi" for i in (*TRAIN, *VAL, *TEST)])


def write_didemo(root: Path, parts: dict[str, dict[str, list[str]]]) -> None:
    """Descriptions of each video, entry by entry."""
    root.mkdir(parents=True, exist_ok=True)
    files = []
    for split, content in parts.items():
        entries = [
            {"annotation_id": n, "description": text, "times": [[0, 0], [0, 1]], "video": video, "num_segments": 6}
            for video, texts in content.items()
            for n, text in enumerate(texts)
        ]
        write_json(root / f"{split}_data.json", entries)
        (root / f"{split}_list.txt").write_text("\n".join(content) + "\n", encoding="utf-8")
        files += [f"{video}.{['mp4', 'mov', 'avi', 'm4v'][n % 4]}" for n, video in enumerate(content)]
    write_clips(root / "videos", files, 2.0)


def didemo(root: Path) -> None:
    parts = {s: {f"12@N00_{i}_ab": [say(i, k) for k in range(3)] for i in ids} for s, ids in SPLITS.items()}
    write_didemo(root, parts)


def vatex(root: Path) -> None:
    root.mkdir(parents=True)
    write_lists(root)
    texts = captions([*TRAIN, *VAL, *TEST], 10)
    write_json(root / "vatex_data.json", {i: {"enCap": own, "chCap": ["你好"] * 10} for i, own in texts.items()})
    write_clips(root / "videos", [f"{i}.mp4" for i in texts])


def jsonl(root: Path) -> None:
    """Whole files, and spans of one file."""
    root.mkdir(parents=True)
    lines = {
        s: [{"video": f"films/{i}.mkv", "captions": [say(i), say(i, 1)]} for i in ids] for s, ids in SPLITS.items()
    }
    for n, entry in enumerate(lines["test"]):
        entry |= {"video": "films/long.mp4", "start": 0.5 * n, "end": 0.5 * n + 0.5}
    for split, entries in lines.items():
        (root / f"{split}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    write_clips(root / "films", [f"{i}.mkv" for i in (*TRAIN, *VAL)])
    write_video(root / "films" / "long.mp4", range(20), size=(32, 32))


def write_csv(path: Path, header: str, *rows: tuple[object, ...]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(f"{header}\n")
        csv_module.writer(file).writerows(rows)


def csv(root: Path) -> None:
    """Everything in one file; whole videos, and spans of one."""
    root.mkdir(parents=True)
    rows: list[tuple[object, ...]] = []
    for split, ids in SPLITS.items():
        for n, i in enumerate(ids):
            file = ("films/long.mp4", 0.5 * n, 0.5 * n + 0.5) if split == "test" else (f"films/{i}.mkv", "", "")
            rows += [(file[0], say(i, k), *file[1:], split) for k in range(2)]
    write_csv(root / "clips.csv", "video,caption,start,end,split", *rows)
    write_clips(root / "films", [f"{i}.mkv" for i in (*TRAIN, *VAL)])
    write_video(root / "films" / "long.mp4", range(20), size=(32, 32))


ANSWERS = ["cat", "dog", "man", "woman"]


def msrvtt_qa(root: Path) -> None:
    """Two questions a video, one what and one who, of four listed answers; some of val and test are not listed."""
    root.mkdir(parents=True)
    write_json(root / "train_ans2label.json", {answer: label for label, answer in enumerate(ANSWERS)})
    for split, ids in SPLITS.items():
        lines = []
        for n, i in enumerate(ids):
            known = split == "train" or n % 2
            for k, kind in enumerate(("what", "who")):
                answer = ANSWERS[2 * k + n % 2] if known or k == 0 else "zebra"
                text = f"{kind} is shown in {i}?"
                lines.append({"answer": answer, "question": text, "video_id": i, "answer_type": kind})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (root / f"{split}.jsonl").write_text(text, encoding="utf-8")
    write_clips(root / "videos", [f"{i}.mp4" for i in (*TRAIN, *VAL, *TEST)])


WRITERS: dict[str, Callable[[Path], None]] = {
    "msrvtt-9k": msrvtt_9k,
    "msrvtt-7k": msrvtt_7k,
    "msrvtt-full": msrvtt_full,
    "activitynet": activitynet,
    "lsmdc": lsmdc,
    "msvd": msvd,
    "didemo": didemo,
    "vatex": vatex,
    "jsonl": jsonl,
    "csv": csv,
    "clip2video-msrvtt": msrvtt_of_frames,
    "clip2video-msrvtt-full": msrvtt_full,
    "clip2video-msvd": msvd,
    "clip2video-vatex": vatex,
}
