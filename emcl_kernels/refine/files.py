"""Files of a refiner's map: safetensors, with its settings, or ONNX."""

import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

FORMAT = "emcl-refiner-1"
TENSORS = ("left", "right", "offset_text", "offset_video")
OPSET = 17
IR_VERSION = 8  # every onnxruntime since 1.12 reads these two


def save(path: Path, fitted: dict[str, Tensor], settings: dict[str, Any], notes: Mapping[str, str]) -> None:
    """Write a map and its settings.

    Args:
        path: file to write.
        fitted: the tensors named in `TENSORS`.
        settings: the arguments that the refiner was made with.
        notes: more texts for the file's metadata, by names of their own.
    """
    own = {"format": FORMAT, "settings": json.dumps(settings)}
    data = to_bytes(
        {name: fitted[name].contiguous() for name in TENSORS},
        metadata={**notes, **own},
    )
    _write(path, lambda partial: partial.write_bytes(_with_sorted_metadata(data)))


def _with_sorted_metadata(data: bytes) -> bytes:
    """The same safetensors file with its metadata in the order of their names: the library's own order is by chance.

    Args:
        data: all bytes of a file that has metadata.

    Returns:
        The bytes, which are the same for the same tensors and metadata.
    """
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))

    # The tensors begin at a multiple of 8 bytes.
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def load(path: Path, *, expected: Iterable[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a map and its settings.

    Args:
        path: a file that `save` wrote.
        expected: names of the settings.

    Returns:
        The tensors of the map, and the settings that it was fitted with.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is something else than a saved map, or damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; pass a file that EMRefiner.save wrote")

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = set(file.keys())
            if metadata.get("format") != FORMAT or names != set(TENSORS):
                raise ValueError(
                    f"{path} is a safetensors file but no map of an EMRefiner: it holds {', '.join(sorted(names))} in "
                    f"format {metadata.get('format')!r}, not {FORMAT!r}; pass a file that EMRefiner.save wrote"
                )
            fitted = {name: file.get_tensor(name) for name in TENSORS}
            said = metadata.get("settings", "{}")
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file ({error}); pass a file that EMRefiner.save wrote") from error

    try:
        settings = json.loads(said)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} has settings that are no JSON ({error}); fit and save it again") from error

    # The tensors must fit the settings, and each other.
    if not isinstance(settings, dict) or set(settings) != set(expected):
        found = sorted(settings) if isinstance(settings, dict) else type(settings).__name__
        raise ValueError(f"{path} has settings {found}; expected {sorted(expected)}; fit and save it again")
    for name in ("num_bases", "num_starts"):
        if type(settings[name]) is not int:
            kind = type(settings[name]).__name__
            raise ValueError(f"{path} has {name} of type {kind}, expected a whole number; fit and save it again")
    shapes = {name: list(tensor.shape) for name, tensor in fitted.items()}
    width = next(iter(shapes["left"]), 0)
    of_map = [width, settings["num_bases"] * settings["num_starts"]]
    if shapes != {"left": of_map, "right": of_map, "offset_text": [width], "offset_video": [width]}:
        raise ValueError(f"{path} has tensors of shapes {shapes}, which do not make one map; fit and save it again")
    return fitted, settings


def write_onnx(path: Path, matrix: Float[Tensor, "D D"], bias: Float[Tensor, " D"], *, normalize: bool) -> None:
    """Write a model of refined = rows · matrix + bias, from `features` [N, D] to `refined` [N, D], in float32.

    Args:
        path: file to write.
        matrix: `[D, D]`.
        bias: `[D]`.
        normalize: whether the model brings `features` to length one first.

    Raises:
        ImportError: the package onnx is missing.
    """
    try:
        from onnx import TensorProto, helper, numpy_helper, save_model
    except ImportError as error:
        raise ImportError("to_onnx needs the package onnx; pip install 'emcl[onnx]'") from error

    # Lengths in two steps, because the square of the largest number may overflow.
    constants = {"matrix": matrix, "bias": bias}
    nodes = []
    rows = "features"
    if normalize:
        constants["tiny"] = torch.tensor([torch.finfo(torch.float32).tiny])
        nodes = [
            helper.make_node("Abs", ["features"], ["sizes"]),
            helper.make_node("ReduceMax", ["sizes"], ["largest"], axes=[-1], keepdims=1),
            helper.make_node("Max", ["largest", "tiny"], ["divisor"]),
            helper.make_node("Div", ["features", "divisor"], ["scaled"]),
            helper.make_node("ReduceL2", ["scaled"], ["length"], axes=[-1], keepdims=1),
            helper.make_node("Max", ["length", "tiny"], ["length_or_tiny"]),
            helper.make_node("Div", ["scaled", "length_or_tiny"], ["unit"]),
        ]
        rows = "unit"
    nodes += [
        helper.make_node("MatMul", [rows, "matrix"], ["mapped"]),
        helper.make_node("Add", ["mapped", "bias"], ["refined"]),
    ]

    shape: list[str | int | None] = ["N", len(bias)]
    graph = helper.make_graph(
        nodes,
        "EMRefiner",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("refined", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.asarray(value, dtype=np.float32), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="emcl")
    model.ir_version = IR_VERSION
    _write(path, lambda partial: save_model(model, str(partial)))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write next to the file and rename, so that the file is there whole or not at all.

    Nobody can know the name beforehand, and put a link there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.partial")
    try:
        partial.touch(exist_ok=False)
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
