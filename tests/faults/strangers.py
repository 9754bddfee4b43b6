"""Files from strangers: each kind of file that a command reads, changed by a seed.

Every command that gets one ends as usual, or in one line that names the file; in time and memory that its size bounds;
and nothing in the file is run, no connection is made, no other program started, nothing written elsewhere.
"""

import hashlib
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from counts import Counts
from mutations import mutated
from parts import CORPUS
from scene import TRAIN, Scene, run_in
from server import Outcome, Server, Servers
from spoken import problems_of
from strangers_by_readers import BY_READERS, by_readers

MEMORY = 2 << 30
"""Bytes that a command may take beyond what an idle one has."""
SECONDS = 30.0
"""Of one processor."""
KEPT = 1 << 16
"""Bytes of a file that the corpus takes up."""
WAS_RUN = "it-was-run"

BEGIN = (*TRAIN, "--out", "out", "--train.max-steps", "1")


@dataclass(frozen=True)
class Subject:
    """A file, and a command that reads it."""

    kind: str
    """As the table counts it."""
    file: str
    parts: tuple[str, ...]
    command: tuple[str, ...]
    share: int = 1
    """How often it is tried, beside the others of its kind."""


SUBJECTS = [
    # Weights: of whole models, of CLIP's towers, of a folder in the layout of transformers, of a run.
    Subject("weight files", "model.bin", ("set", "model.bin"), (*BEGIN, "--model.init-from", "model.bin"), 4),
    Subject("weight files", "model.safetensors", ("set", "model.safetensors"),
            (*BEGIN, "--model.init-from", "model.safetensors"), 3),
    Subject("weight files", "openai.safetensors", ("set", "openai.safetensors", "clip"),
            (*BEGIN, "--model.clip", "openai.safetensors", "--model.tokenizer", "clip"), 2),
    Subject("weight files", "clip/model.safetensors", ("set", "clip"), (*BEGIN, "--model.clip", "clip"), 2),
    Subject("weight files", "run/model.safetensors", ("set", "run"), ("eval", "run", "--out", "out"), 2),
    Subject("weight files", "half/state/latest.pt", ("set", "half"), (*TRAIN, "--out", "half", "--resume"), 3),
    Subject("weight files", "run/embeddings.safetensors", ("run",), ("report", "run"), 2),
    Subject("weight files", "features/towers.safetensors", ("set", "features"),
            (*BEGIN, "--from-features", "features")),
    # Configurations.
    Subject("configurations", "run/config.json", ("set", "run"), ("eval", "run", "--out", "out"), 3),
    Subject("configurations", "run/clip_config.json", ("set", "run"), ("eval", "run", "--out", "out"), 3),
    Subject("configurations", "clip/config.json", ("set", "clip"), (*BEGIN, "--model.clip", "clip"), 4),
    Subject("configurations", "run/environment.json", ("set", "run"), ("report", "run")),
    Subject("configurations", "run/finished.json", ("set", "run"), ("report", "run")),
    Subject("configurations", "features/features.json", ("set", "features"),
            (*BEGIN, "--from-features", "features"), 2),
    # Tokenizers.
    Subject("tokenizer files", "run/tokenizer.json", ("set", "run"), ("eval", "run", "--out", "out"), 3),
    Subject("tokenizer files", "clip/tokenizer.json", ("set", "clip"), (*BEGIN, "--model.clip", "clip"), 2),
    Subject("tokenizer files", "clip/tokenizer_config.json", ("set", "clip"), (*BEGIN, "--model.clip", "clip"), 2),
    # Annotations, of every layout.
    Subject("annotations", "msrvtt/MSRVTT_data.json", ("msrvtt",), ("data", "doctor", "msrvtt", "msrvtt"), 3),
    Subject("annotations", "msrvtt/MSRVTT_train.9k.csv", ("msrvtt",), ("data", "doctor", "msrvtt", "msrvtt")),
    Subject("annotations", "msrvtt/MSRVTT_JSFUSION_test.csv", ("msrvtt",), ("data", "doctor", "msrvtt", "msrvtt")),
    Subject("annotations", "jsonl/train.jsonl", ("jsonl",), ("data", "doctor", "jsonl", "jsonl"), 3),
    Subject("annotations", "activitynet/train.json", ("activitynet",),
            ("data", "doctor", "activitynet", "activitynet")),
    Subject("annotations", "didemo/train_data.json", ("didemo",), ("data", "doctor", "didemo", "didemo")),
    Subject("annotations", "vatex/vatex_data.json", ("vatex",), ("data", "doctor", "vatex", "vatex")),
    Subject("annotations", "lsmdc/LSMDC16_annos_training.csv", ("lsmdc",), ("data", "doctor", "lsmdc", "lsmdc")),
    Subject("pickles", "msvd/raw-captions.pkl", ("msvd",), ("data", "doctor", "msvd", "msvd"), 3),
    # What refine reads.
    Subject("files of embeddings", "text.npy", ("text.npy", "video.npy"),
            ("refine", "text.npy", "video.npy", "--out", "out"), 2),
    Subject("files of embeddings", "text.npz", ("text.npz", "video.npy"),
            ("refine", "text.npz", "video.npy", "--out", "out"), 2),
    Subject("files of embeddings", "text.safetensors", ("text.safetensors", "video.npy"),
            ("refine", "text.safetensors", "video.npy", "--out", "out"), 2),
    Subject("files of embeddings", "text.parquet", ("text.parquet", "video.npy"),
            ("refine", "text.parquet", "video.npy", "--out", "out")),
    Subject("files of embeddings", "refined/map.safetensors", ("text.npy", "video.npy", "refined"),
            ("refine", "text.npy", "video.npy", "--out", "refined")),
    Subject("files of embeddings", "pairs.txt", ("text.npy", "video.npy", "pairs.txt"),
            ("refine", "text.npy", "video.npy", "--out", "out", "--pairs", "pairs.txt")),
    Subject("files of embeddings", "features/train_frames.npy", ("set", "features"),
            (*BEGIN, "--from-features", "features"), 2),
    # Records of runs, and what is compressed.
    Subject("records of runs", "run/metrics.jsonl", ("run",), ("report", "run")),
    Subject("records of runs", "run/results.json", ("run",), ("report", "run"), 2),
    Subject("records of runs", "run/queries.json", ("run",), ("report", "run")),
    Subject("records of runs", "set/shapes.json", ("set",), BEGIN),
    Subject("videos", "videos/clip0.mp4", ("videos",), ("data", "compress", "videos", "out", "--workers", "1"), 2),
    Subject("videos", "msrvtt/videos/video0.mp4", ("msrvtt",), ("data", "doctor", "msrvtt", "msrvtt", "--deep")),
]  # fmt: skip

COUNTS = {
    "weight files": 260,
    "configurations": 80,
    "tokenizer files": 50,
    "annotations": 80,
    "pickles": 30,
    "files of embeddings": 80,
    "records of runs": 40,
    "videos": 40,
}
"""Tries of each kind in full."""


def judge(outcome: Outcome, subject: Subject, folder: Path) -> list[str]:
    """What is wrong with how a command took a stranger's file."""
    problems = []
    if outcome.code == 1 and subject.command[:2] in (("data", "doctor"), ("data", "compress")) and not outcome.err:
        pass  # its table says what it found
    elif outcome.code != 0:
        problems += problems_of(outcome, way_on=False)
    elif "Traceback" in outcome.err:
        problems.append("a traceback")
    if outcome.code not in (0, 1):
        problems.append(f"it ended with {outcome.code}: {' | '.join(outcome.lines[-2:])[:300]}")

    # By its name, the folder that it lies in, or the argument that it was given as.
    path = Path(subject.file)
    names = {path.name, path.parts[0], path.stem}
    if outcome.code == 1 and not any(name in outcome.err + outcome.out for name in names):
        problems.append(f"the file is not named: {' | '.join(outcome.lines[-1:])[:300]}")
    if any(folder.rglob(WAS_RUN)) or WAS_RUN in outcome.err:
        problems.append("CODE IN THE FILE WAS RUN")
    if outcome.reached_out:
        problems.append(f"it reached out: {outcome.reached_out[:3]}")
    if outcome.peak > MEMORY:
        problems.append(f"{outcome.peak / 1e9:.1f} GB of memory")
    if outcome.cpu > SECONDS:
        problems.append(f"{outcome.cpu:.0f} s of a processor")
    return problems


def try_file(server: Server, scene: Scene, subject: Subject, data: bytes) -> list[str]:
    """Put these bytes into the place of a subject's file, and read it."""
    folder = scene.case(part for part in subject.parts if (scene.template / part).exists())
    path = folder / subject.file
    path.write_bytes(data)
    outcome = run_in(server, folder, *subject.command, limits={"MORE": 3 * MEMORY}, stdin="/dev/null")
    problems = judge(outcome, subject, folder)
    shutil.rmtree(folder, ignore_errors=True)
    return problems


def smaller(data: bytes, fails: Callable[[bytes], bool], tries: int = 12) -> bytes:
    """A shorter beginning that still fails."""
    length = len(data)
    for _ in range(tries):
        if length < 2 or not fails(data[: length // 2]):
            break
        length //= 2
    return data[:length]


def corpus_of(subject: Subject) -> Path:
    return CORPUS / "files" / subject.file.replace("/", "__")


def kept(subject: Subject) -> Iterator[Path]:
    """What failed once."""
    folder = corpus_of(subject)
    return iter(sorted(folder.iterdir()) if folder.is_dir() else [])


def run(seed: int, share: float = 1.0, *, servers: Servers, scene: Scene, only: str = "", keep: bool = True) -> Counts:
    """First the corpus, then `share` of COUNTS."""
    counts = Counts("strangers")
    subjects = [subject for subject in SUBJECTS if only in subject.kind and (scene.template / subject.file).is_file()]

    def one(server: Server, job: tuple[Subject, int, Path | None]) -> None:
        subject, number, known = job
        if known is None:
            draw = random.Random(f"{seed} {subject.file} {number}")
            data = mutated((scene.template / subject.file).read_bytes(), subject.file, draw)
            again = f"{subject.file} in `{' '.join(subject.command[:2])}`, seed {seed}, number {number}"
        else:
            data, again = known.read_bytes(), f"{known.relative_to(CORPUS.parent)}"
        problems = try_file(server, scene, subject, data)
        if problems and known is None and keep:
            small = smaller(data, lambda part: bool(try_file(server, scene, subject, part)))
            if len(small) <= KEPT:
                path = corpus_of(subject) / hashlib.sha256(small).hexdigest()[:12]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(small)
                again += f", kept as {path.relative_to(CORPUS.parent)}"
        counts.add(f"hostile {subject.kind}", problems, again)

    jobs: list[tuple[Subject, int, Path | None]] = [
        (subject, 0, path) for subject in subjects for path in kept(subject)
    ]
    for kind in dict.fromkeys(subject.kind for subject in subjects):
        turns = [subject for subject in subjects if subject.kind == kind for _ in range(subject.share)]
        wanted = max(1, round(share * COUNTS[kind]))
        jobs += [(turns[number % len(turns)], number, None) for number in range(wanted)]
    servers.map(one, jobs)
    if only in BY_READERS:
        by_readers(counts, seed, share, servers, scene)
    return counts
