"""A refiner's map elsewhere: saved and loaded, as a linear layer, and as an ONNX model."""

import json
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save, save_file
from torch import nn
from torch.nn.functional import normalize

from emcl_kernels import EMRefiner
from emcl_kernels.refine.files import _with_sorted_metadata
from emcl_kernels.testing import assert_close, clustered_rows

SIDES = ("text", "video")


def fitted(**settings: object) -> EMRefiner:
    torch.manual_seed(0)
    return EMRefiner(**{"num_bases": 9, "weight": -0.4} | settings).fit(
        clustered_rows(130, 41) + 0.2, 3 * clustered_rows(63, 41)
    )


def refine(refiner: EMRefiner, side: str, x: torch.Tensor) -> torch.Tensor:
    return refiner.transform_text(x) if side == "text" else refiner.transform_video(x)


def test_the_same_map_is_the_same_file_each_time(tmp_path):
    refiner = fitted()
    for number in range(8):
        refiner.save(tmp_path / f"{number}.safetensors")

    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_sorted_metadata_change_neither_metadata_nor_tensors(tmp_path):
    tensors = {"a": torch.randn(3, 5), "b": torch.arange(7)}
    metadata = {"z": "\u00e9", "a": "1", "m": "x" * 13}
    (tmp_path / "map").write_bytes(_with_sorted_metadata(save(tensors, metadata)))

    with safe_open(tmp_path / "map", framework="pt") as file:
        assert file.metadata() == metadata
        assert all(torch.equal(file.get_tensor(name), value) for name, value in tensors.items())


def test_a_loaded_map_refines_to_the_same_bits(tmp_path):
    refiner, x = fitted(seed=5, normalize=False), torch.randn(63, 41)
    refiner.save(tmp_path / "deeper" / "map.safetensors")
    loaded = EMRefiner.load(tmp_path / "deeper" / "map.safetensors")
    for side in SIDES:
        assert torch.equal(refine(loaded, side, x), refine(refiner, side, x))
    assert repr(loaded) == repr(refiner)
    assert [path.name for path in (tmp_path / "deeper").iterdir()] == ["map.safetensors"]


def test_a_file_holds_every_setting(tmp_path):
    fitted(seed=5).save(tmp_path / "map.safetensors")
    with safe_open(tmp_path / "map.safetensors", framework="pt") as file:
        settings = json.loads(file.metadata()["settings"])
    assert settings == {
        "num_bases": 9, "num_starts": 4, "num_iters": 5, "temperature": 0.6, "weight": -0.4, "mean_share": 0.58,
        "fit_mean_share": 0.7, "seed": 5, "normalize": True, "eps": 1e-6, "map": "em", "num_neighbors": 10,
        "bank_weight": 0.5,
    }  # fmt: skip


def test_files_of_something_else_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*absent; pass a file that Refiner.save wrote"):
        EMRefiner.load(tmp_path / "absent")
    np.save(tmp_path / "rows.npy", np.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"rows.npy is no safetensors file .* pass a file that Refiner.save wrote"):
        EMRefiner.load(tmp_path / "rows.npy")
    save_file({"weight": torch.zeros(3)}, tmp_path / "weights")
    with pytest.raises(ValueError, match=r"weights is a safetensors file but no map of a refiner: it holds weight in"):
        EMRefiner.load(tmp_path / "weights")


def test_a_file_whose_tensors_do_not_fit_together_is_refused(tmp_path):
    refiner = fitted()
    refiner._fitted()["offset_text"] = torch.zeros(40, dtype=torch.float64)
    refiner.save(tmp_path / "map")
    with pytest.raises(ValueError, match=r"map has tensors of shapes .* which do not make one map"):
        EMRefiner.load(tmp_path / "map")


@pytest.mark.parametrize("normalize_rows", [True, False])
@pytest.mark.parametrize("side", SIDES)
def test_the_linear_layer_agrees(side, normalize_rows):
    refiner, x = fitted(normalize=normalize_rows), 3 * torch.randn(63, 41)
    layer = refiner.to_linear(side)
    assert isinstance(layer, nn.Linear)
    assert layer.weight.dtype == torch.float32
    assert_close("layer", layer(x).detach(), refine(refiner, side, x))


def test_weight_and_bias_fold_into_a_projection_behind_the_norm():
    refiner, x = fitted(), torch.randn(63, 41)
    layer, head = refiner.to_linear("text"), nn.Linear(41, 8)
    folded = nn.Linear(41, 8)
    with torch.no_grad():
        folded.weight.copy_(head.weight @ layer.weight)
        folded.bias.copy_(head.weight @ layer.bias + head.bias)
    expected = head(refiner.transform_text(x)).detach()
    assert_close("folded", folded(normalize(x, dim=-1)).detach(), expected)


@pytest.mark.parametrize("normalize_rows", [True, False])
@pytest.mark.parametrize("side", SIDES)
def test_the_onnx_model_agrees_in_onnxruntime(side, normalize_rows, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    refiner, x = fitted(normalize=normalize_rows), 3 * torch.randn(63, 41)
    refiner.to_onnx(tmp_path / "map.onnx", side)
    session = onnxruntime.InferenceSession(tmp_path / "map.onnx", providers=["CPUExecutionProvider"])
    for rows in (x, x[:1], torch.zeros(1, 41)):
        (refined,) = session.run(None, {"features": rows.numpy()})
        assert_close("model", torch.from_numpy(refined), refine(refiner, side, rows))


def test_layer_and_model_bear_rows_of_any_length(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    refiner = fitted()
    refiner.to_onnx(tmp_path / "map.onnx", "text")
    session = onnxruntime.InferenceSession(str(tmp_path / "map.onnx"), providers=["CPUExecutionProvider"])
    rows = torch.randn(63, 41)
    right = refine(refiner, "text", rows)
    for length in (1e-30, 1e-14, 1e25):  # whose squares are no float32
        x = (rows.double() * length).float()
        assert_close(f"layer {length}", refiner.to_linear("text")(x).detach(), right, 1e-6)
        assert_close(f"model {length}", torch.from_numpy(session.run(None, {"features": x.numpy()})[0]), right, 2e-6)
    zero = refiner.to_linear("text")(torch.zeros(1, 41)).detach()
    assert_close(
        "zero", torch.from_numpy(session.run(None, {"features": np.zeros((1, 41), np.float32)})[0]), zero, 1e-6
    )


def test_without_onnx_the_error_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"pip install 'emcl\[onnx\]'"):
        fitted().to_onnx(tmp_path / "map.onnx", "text")
    assert list(tmp_path.iterdir()) == []
