"""The maps of Refiner: each by its formula, and what all of them have: streams, files, layers, models."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import normalize

from emcl_kernels import EMRefiner, Refiner
from emcl_kernels.refine import EM, Mean, Unchanged, Whitening, maps
from emcl_kernels.testing import assert_close, clustered_rows

MAPS = {
    "whitening": Whitening(strength=0.5, mean_share=0.3),
    "em": EM(num_bases=5, weight=-0.3),
    "mean": Mean(0.4),
    "none": Unchanged(),
}
each_map = pytest.mark.parametrize("map", MAPS.values(), ids=MAPS)


def two_sides(texts: int = 41, videos: int = 63, width: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    sides = clustered_rows(texts, width) + 0.3, clustered_rows(videos, width) - 0.2
    return tuple(side * torch.linspace(0.5, 4.0, len(side), dtype=torch.float64)[:, None] for side in sides)


def test_whitening_is_its_formula():
    text, video = two_sides()
    refiner = Refiner().fit(text, video)

    sides = [normalize(side, dim=-1) for side in (text, video)]
    second = torch.zeros(24, 24, dtype=torch.float64)
    for side in sides:
        rows = side - 0.7 * side.mean(0)
        second += rows.T @ rows / len(rows)
    values, directions = torch.linalg.eigh(
        torch.eye(24).double() + second / (50 * torch.linalg.eigvalsh(second).mean())
    )
    root = directions @ torch.diag(values**-0.5) @ directions.T

    assert_close("matrix", refiner.matrix, root, 1e-12)
    assert_close("text", refiner.transform_text(text), sides[0] @ root - 0.4 * sides[0].mean(0), 1e-12)
    assert_close("video", refiner.transform_video(video), sides[1] @ root - 0.4 * sides[1].mean(0), 1e-12)


def test_whitening_by_hand():
    # Rows ±2e1 and ±1e2 of length one: no mean, second moments of ½ on each axis and side, all eigenvalues alike.
    rows = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    refiner = Refiner(Whitening(strength=3.0)).fit(rows, rows)
    assert_close("matrix", refiner.matrix, torch.diag(torch.tensor([0.5, 0.5], dtype=torch.float64)))

    # Without the norm the first axis varies four times as much: eigenvalues 4 and 1 of C, whose mean is 2.5.
    refiner = Refiner(Whitening(strength=2.5), normalize=False).fit(rows, rows)
    expected = torch.diag(torch.tensor([5.0, 2.0], dtype=torch.float64) ** -0.5)
    assert_close("matrix", refiner.matrix, expected)


def test_eigenvalues_are_of_one_thread(monkeypatch):
    """Several wait for each other, on a busy machine a hundred times as long as one takes."""
    text, video = two_sides()
    seen = []
    eigh = torch.linalg.eigh

    def noted(moments):
        seen.append(torch.get_num_threads())
        return eigh(moments)

    monkeypatch.setattr(torch.linalg, "eigh", noted)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        Refiner().fit(text, video).transform_text(text)
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(maps, "WIDEST_IN_ONE_THREAD", 23)  # where one thread would take too long
        Refiner().fit(text, video).transform_text(text)

        monkeypatch.setattr(torch.linalg, "eigh", lambda moments: 1 / 0)
        monkeypatch.setattr(maps, "WIDEST_IN_ONE_THREAD", 24)
        with pytest.raises(ZeroDivisionError):
            Refiner().fit(text, video).transform_text(text)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 2]


def test_a_share_of_the_mean_and_nothing_at_all():
    text, video = two_sides()
    unit = normalize(text, dim=-1)
    assert_close("mean", Refiner("mean").fit(text, video).transform_text(text), unit - 0.7 * unit.mean(0))
    assert_close("none", Refiner("none").fit(text, video).transform_text(text), unit)


def test_em_is_what_its_own_name_gives():
    text, video = two_sides(width=64)
    named = Refiner("em").fit(text, video)
    own = EMRefiner().fit(text, video)
    assert torch.equal(named.transform_text(text), own.transform_text(text))
    assert torch.equal(named.transform_video(video), own.transform_video(video))
    assert isinstance(own, Refiner)


@each_map
def test_no_split_of_a_stream_changes_the_map(map):
    text, video = two_sides()
    at_once = Refiner(map).fit(text, video)
    stream = Refiner(map)
    for part in torch.randperm(len(text)).chunk(7):
        stream.partial_fit(text[part])
    stream.partial_fit(video=video)
    assert_close("matrix", stream.matrix, at_once.matrix, 1e-9)
    assert_close("offset", stream.offset_text, at_once.offset_text, 1e-9)

    halves = Refiner(map).partial_fit(text[::2], video[::2])
    halves.all_reduce(lambda vector: 2 * vector)
    assert_close("as in two processes", halves.matrix, Refiner(map).fit(text[::2], video[::2]).matrix, 1e-9)


@each_map
def test_a_row_alone_has_the_bits_it_has_in_a_batch(map):
    refiner = Refiner(map).fit(*two_sides())
    for dtype in (torch.float16, torch.float32, torch.float64):
        x = torch.randn(130, 24).to(dtype)
        alone = torch.cat([refiner.transform_video(row[None]) for row in x])
        assert torch.equal(alone, refiner.transform_video(x))


@each_map
@pytest.mark.parametrize("normalize_rows", [True, False])
def test_a_file_has_the_same_bits_and_settings(map, normalize_rows, tmp_path):
    refiner = Refiner(map, normalize=normalize_rows, num_neighbors=3, bank_weight=0.75).fit(*two_sides())
    refiner.save(tmp_path / "map.safetensors", notes={"files": "{}"})
    loaded = Refiner.load(tmp_path / "map.safetensors")
    x = torch.randn(41, 24)
    assert torch.equal(loaded.transform_text(x), refiner.transform_text(x))
    assert repr(loaded) == repr(refiner)
    with pytest.raises(
        ValueError, match="a loaded map has no moments to add rows to; call fit, or start from a new Ref"
    ):
        loaded.partial_fit(x)


@each_map
@pytest.mark.parametrize("side", ["text", "video"])
def test_the_layer_and_the_model_agree(map, side, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    refiner = Refiner(map).fit(*two_sides())
    x = 3 * torch.randn(41, 24)
    right = refiner.transform_text(x) if side == "text" else refiner.transform_video(x)
    assert_close("layer", refiner.to_linear(side)(x).detach(), right)

    refiner.to_onnx(tmp_path / "map.onnx", side)
    session = onnxruntime.InferenceSession(tmp_path / "map.onnx", providers=["CPUExecutionProvider"])
    assert_close("model", torch.from_numpy(session.run(None, {"features": x.numpy()})[0]), right)


def of_version_one(path: Path, refiner: EMRefiner) -> None:
    """A file as versions wrote it whose one map was EM's."""
    fitted = refiner._fitted()
    settings = {**vars(refiner.map), "normalize": refiner.normalize}
    metadata = {"format": "emcl-refiner-1", "settings": json.dumps(settings)}
    save_file({name: value.contiguous() for name, value in fitted.items()}, path, metadata=metadata)


@pytest.mark.parametrize("kind", [Refiner, EMRefiner])
def test_files_of_earlier_versions_load(kind, tmp_path):
    refiner = EMRefiner(num_bases=5, seed=3).fit(*two_sides())
    of_version_one(tmp_path / "map", refiner)
    x = torch.randn(7, 24)
    assert torch.equal(kind.load(tmp_path / "map").transform_text(x), refiner.transform_text(x))


def test_the_name_of_em_loads_no_other_map(tmp_path):
    Refiner().fit(*two_sides()).save(tmp_path / "map")
    with pytest.raises(ValueError, match=r'map holds the map "whitening"; Refiner.load takes every map'):
        EMRefiner.load(tmp_path / "map")


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "map"

    def saved(**changed: Any) -> None:
        described = {"map": "whitening", "strength": 0.02, "mean_share": 0.4, "fit_mean_share": 0.7, "normalize": True}
        described |= {"num_neighbors": 10, "bank_weight": 0.5}
        tensors = {"change": torch.eye(4).double(), "offset_text": torch.ones(4).double()}
        tensors |= {"offset_video": torch.ones(4).double()}
        tensors |= changed.pop("tensors", {})
        metadata = {"format": "emcl-refiner-2", "settings": json.dumps(described | changed)}
        save_file(tensors, path, metadata=metadata)

    saved()
    assert Refiner.load(path).transform_text(torch.zeros(1, 4)).tolist() == [[-1.0] * 4]

    for change, message in (
        ({"map": "wide"}, "names no map of"),
        ({"strength": "much"}, "settings that make no map"),
        ({"strength": -1.0}, "settings that make no map"),
        ({"extra": 1}, "has settings"),
        ({"num_neighbors": 2.5}, "num_neighbors of type float, expected a whole number"),
        ({"tensors": {"change": torch.eye(3).double()}}, "which do not make one map"),
        ({"tensors": {"change": torch.eye(4)}}, "which do not make one map"),
        ({"tensors": {"change": torch.full((4, 4), np.nan).double()}}, "NaN or infinite values in change"),
        ({"tensors": {"bank_text": torch.ones(3, 5)}}, "a bank of texts of shape"),
        ({"tensors": {"more": torch.ones(3)}}, "which do not make one map"),
    ):
        saved(**change)
        with pytest.raises(ValueError, match=message):
            Refiner.load(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Refiner("wide"), "map is 'wide'; expected one of 'whitening', 'em', 'mean', 'none', or such a map"),
        (lambda: Refiner(num_neighbors=0), "num_neighbors is 0; expected at least 1, a whole number"),
        (lambda: Refiner(bank_weight=float("nan")), "bank_weight is nan; expected a finite number"),
        (lambda: Whitening(strength=-0.1), "strength is -0.1; expected 0 or more"),
        (lambda: Whitening(mean_share=float("inf")), "mean_share is inf; expected a finite number"),
        (lambda: Mean(float("nan")), "mean_share is nan; expected a finite number"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["coco500_clip_vitb16", "msrvtt100_videoclip", "things200_openclip_vith14"])
def test_the_default_improves_retrieval_on_real_embeddings(shared_data, name):
    video, text = np.load(shared_data / "embeddings" / f"{name}.npy")

    def recall(similarity: torch.Tensor) -> float:
        own = similarity.diagonal()
        return 50 * sum(float((similarity.transpose(0, d) <= own).all(0).double().mean()) for d in (0, 1))

    plain = normalize(torch.from_numpy(text), dim=-1) @ normalize(torch.from_numpy(video), dim=-1).T
    assert recall(Refiner().fit(text, video).scores(text, video)) > recall(plain) + 3
