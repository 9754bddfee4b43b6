"""Bad inputs of metrics, re-ranking, evaluation and report: one clear error each, with the way out."""

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake_run import make_run
from safetensors.torch import load_file
from tiny_evaluation import TinyTokenizer, tiny_config, tiny_data, tiny_model

from emcl_train import cli
from emcl_train.data.annotations import Split
from emcl_train.errors import UserError
from emcl_train.evaluation.encode import embed_split
from emcl_train.evaluation.metrics import ranks, retrieval_metrics, text_to_video, video_to_text_best_rank
from emcl_train.evaluation.rerank import inverted_softmax
from emcl_train.evaluation.run import evaluate_run
from emcl_train.report import report_runs, write_report
from emcl_train.runs.checksums import CHECKSUMS
from emcl_train.runs.contents import save_config
from emcl_train.runs.state import save_tensors_atomic

__all__ = ["tiny_data"]  # a fixture

Place = SimpleNamespace  # folder: an empty Path; split: a Split that the loaders know
NAN = torch.tensor([[0.1, float("nan")], [0.2, 0.3]])
PAIRS = torch.arange(2)


def with_weight(place: Place, key: str, value: float) -> None:
    """Embed with one weight that is not a number."""
    config = tiny_config()
    model = tiny_model(config)
    with torch.no_grad():
        model.get_parameter(key).fill_(value)
    embed_split(model, place.split, TinyTokenizer(), config)


def with_block(place: Place, block: int) -> None:
    save_config(place.folder, tiny_config())
    cli.main(["eval", str(place.folder), "--em-block", str(block), "--debug"])


def with_state(place: Place, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Evaluate a run whose weights were changed."""
    config = tiny_config()
    state = tiny_model(config).state_dict()
    change(state)
    save_config(place.folder, config)
    save_tensors_atomic(place.folder / "model.safetensors", state)
    evaluate_run(place.folder)


def without_weights(place: Place, content: bytes | None) -> None:
    save_config(place.folder, tiny_config())
    if content is not None:
        (place.folder / "model.safetensors").write_bytes(content)
    evaluate_run(place.folder)


def without(place: Place, *names: str) -> None:
    """Report on a run that lacks files."""
    make_run(place.folder)
    for name in names:
        (place.folder / name).unlink()
    write_report(place.folder)


def with_content(place: Place, name: str, content: bytes, *, checksums: bool = True) -> None:
    """Report on a run with a damaged file."""
    make_run(place.folder)
    (place.folder / name).write_bytes(content)
    if not checksums:
        (place.folder / CHECKSUMS).unlink()
    write_report(place.folder)


def with_fewer_queries(place: Place) -> None:
    make_run(place.folder)
    path = place.folder / "queries.json"
    queries = json.loads(path.read_text())
    path.write_text(json.dumps(queries | {"captions": queries["captions"][1:]}))
    write_report(place.folder)


def with_fewer_tensors(place: Place) -> None:
    make_run(place.folder)
    path = place.folder / "embeddings.safetensors"
    tensors = load_file(path)
    del tensors["similarity_off"]
    save_tensors_atomic(path, tensors)
    write_report(place.folder)


def with_similarity(place: Place, value: float) -> None:
    """Compare two runs whose similarities are all one value."""
    runs = [place.folder / "a", place.folder / "b"]
    for run in runs:
        make_run(run)
        path = run / "embeddings.safetensors"
        tensors = load_file(path)
        tensors["similarity_on"].fill_(value)
        save_tensors_atomic(path, tensors)
    report_runs(runs)


BAD_ARGUMENTS: list[tuple[str, Callable[[], object], str]] = [
    ("NaN similarity", lambda: ranks(NAN, PAIRS), r"similarity must not hold NaN, got 1 of 4.*diverged"),
    (
        "target outside the gallery",
        lambda: text_to_video(torch.eye(3)[:, :2], torch.arange(3)),
        r"target must be in \[0, 1\].*from 0 to 2.*transposed",
    ),
    (
        "fewer targets than rows",  # the shapes in the annotations see it first where they are executed
        lambda: inspect.unwrap(ranks)(torch.eye(3), torch.tensor([0])),
        r"target must hold one index per row.*expected shape \[3\].*got \[1\] beside \[3, 3\]",
    ),
    (
        "clip without caption",
        lambda: video_to_text_best_rank(torch.eye(3)[:2], PAIRS),
        r"no caption for 1 of 3 clips \(first: \[2\]\); leave clips without captions out",
    ),
    ("no queries", lambda: retrieval_metrics(torch.tensor([])), r"expected at least one rank, got none"),
    (
        "zero temperature",
        lambda: inverted_softmax(torch.eye(2), 0.0, 0),
        r"must be a positive number, got 0.0; .*0.01",
    ),
    (
        "NaN temperature",
        lambda: inverted_softmax(torch.eye(2), float("nan"), 0),
        r"must be a positive number, got nan",
    ),
    ("axis 2", lambda: inverted_softmax(torch.eye(2), 0.01, 2), r"axis must be 0 .* or 1 .*got 2"),
    ("NaN in the inverted softmax", lambda: inverted_softmax(NAN, 0.01, 0), r"similarity must be finite.*whole axis"),
]


BAD_INPUTS: list[tuple[str, Callable[[Place], object], str]] = [
    (
        "NaN in the video tower",
        lambda place: with_weight(place, "towers.clip.visual_projection.weight", float("nan")),
        r"the video tower gave NaN, infinity, .* for 7 of 7 clips.*first for 'video0'.*lower train.lr",
    ),
    (
        "infinity in the text tower",
        lambda place: with_weight(place, "towers.clip.text_projection.weight", float("inf")),
        r"the text tower gave NaN, infinity, .* for \d of 7 captions.*'caption 0'",
    ),
    (
        "squares that overflow in the video tower",
        lambda place: with_weight(place, "towers.clip.visual_projection.weight", 1e30),
        r"the video tower gave .* numbers whose squares overflow, for 7 of 7 clips.*first for 'video0'",
    ),
    (
        "squares that overflow in the text tower",
        lambda place: with_weight(place, "towers.clip.text_projection.weight", 1e30),
        r"the text tower gave .* numbers whose squares overflow, for \d of 7 captions.*'caption 0'",
    ),
    ("block of zero", lambda place: with_block(place, 0), r"em.block.* 0.*1 or more"),
    ("evaluate no run", lambda place: evaluate_run(place.folder), r"is not a run folder.*config.json"),
    (
        "evaluate before the first epoch",
        lambda place: without_weights(place, None),
        r"no model.safetensors yet.*emcl-train resume",
    ),
    ("damaged weights", lambda place: without_weights(place, b"cut"), r"cannot be read as safetensors.*copy it again"),
    (
        "weight missing",
        lambda place: with_state(place, lambda state: state.pop("emcl.bases")),
        r"do not fit the model.*: emcl.bases is missing\. Use the weights and the configuration of one",
    ),
    (
        "weight unknown",
        lambda place: with_state(place, lambda state: state.update({"head.weight": torch.zeros(1)})),
        r"head.weight is unknown",
    ),
    (
        "weight of another shape",
        lambda place: with_state(place, lambda state: state.update({"emcl.bases": torch.zeros(9)})),
        r"emcl.bases is \[9\], expected \[4\]",
    ),
    (
        "weights of another model",
        lambda place: with_state(place, lambda state: state.clear()),
        r"is missing; .* is missing; and \d+ more\.",
    ),
    ("report on no folder", lambda place: write_report(place.folder / "no"), r"is not a run folder: no such folder"),
    (
        "report on an empty folder",
        lambda place: write_report(place.folder),
        r"config.json, environment.json, .* missing",
    ),
    (
        "report before the evaluation",
        lambda place: without(place, "results.json", "embeddings.safetensors"),
        r"results.json, embeddings.safetensors missing; `emcl-train eval .*` writes results.json",
    ),
    (
        "one of several runs missing",
        lambda place: (make_run(place.folder / "a"), report_runs([place.folder / "a", place.folder / "b"])),
        r"/b is not a run folder",
    ),
    (
        "broken results",
        lambda place: with_content(place, "results.json", b'{"rows": ['),
        r"results.json cannot be read as JSON: .*`emcl-train eval .*` writes it again",
    ),
    (
        "results that are a list",
        lambda place: with_content(place, "results.json", b"[]"),
        r"results.json must hold a JSON object with .*lacks .*'rows'",
    ),
    ("results that lack a key", lambda place: with_content(place, "results.json", b"{}"), r"it lacks .*'split'"),
    (
        "queries that are not UTF-8",
        lambda place: with_content(place, "queries.json", b'{"captions": ["caf\xe9"]}'),
        r"queries.json cannot be read as JSON: .*utf-8",
    ),
    (
        "broken record",
        lambda place: with_content(place, "metrics.jsonl", b'{"kind": "train"}\n{"kind'),
        r"metrics.jsonl, line 2, is not readable.*emcl-train resume",
    ),
    (
        "record without kind",
        lambda place: with_content(place, "metrics.jsonl", b'{"kind": "train"}\n[]\n'),
        r"metrics.jsonl, line 2, .*\"kind\"",
    ),
    (
        "damaged embeddings",
        lambda place: with_content(place, "embeddings.safetensors", b"cut"),
        r"embeddings.safetensors is damaged or was replaced.*`emcl-train eval .*` writes it again",
    ),
    (
        "damaged embeddings of an earlier version",
        lambda place: with_content(place, "embeddings.safetensors", b"cut", checksums=False),
        r"embeddings.safetensors cannot be read as safetensors.*`emcl-train eval .*` writes it again",
    ),
    ("embeddings of other queries", with_fewer_queries, r"expected similarity_off of shape \[39, 40\], got \[40, 40\]"),
    (
        "similarities that are not numbers",
        lambda place: with_similarity(place, float("nan")),
        r"^\S+: similarity must not hold NaN, got 1600 of 1600; .*diverged",
    ),
    ("embeddings that lack a tensor", with_fewer_tensors, r"got no similarity_off; `emcl-train eval"),
]


@pytest.mark.parametrize(
    ("call", "message"), [case[1:] for case in BAD_ARGUMENTS], ids=[case[0] for case in BAD_ARGUMENTS]
)
def test_mathematics_names_the_argument(call, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        call()


@pytest.mark.parametrize(("call", "message"), [case[1:] for case in BAD_INPUTS], ids=[case[0] for case in BAD_INPUTS])
def test_bad_input_is_told_with_the_way_out(call, message, tmp_path: Path, tiny_data: Split):
    with pytest.raises(UserError) as raised:
        call(Place(folder=tmp_path, split=tiny_data))
    assert re.search(message, str(raised.value), re.DOTALL), str(raised.value)
