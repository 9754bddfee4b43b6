"""Files of a refiner's map: safetensors, with its settings, or ONNX."""

import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from emcl_kernels.refine.maps import EM, KINDS, Fitted, Map

FORMAT = "emcl-refiner-2"
EM_ALONE = "emcl-refiner-1"
"""Of versions whose one map was EM's. Their settings are in one list with those of all maps."""
OFFSETS = ("offset_text", "offset_video")
BANKS = {"text": "bank_text", "video": "bank_video"}
OF_ALL_MAPS = ("normalize", "num_neighbors", "bank_weight")
OPSET = 17
IR_VERSION = 8  # every onnxruntime since 1.12 reads these two
QUERY_EPS = 1e-12
"""Least length that a query is divided by, as torch has it."""


@dataclass(frozen=True)
class Saved:
    """What a file holds."""

    map: Map
    fitted: Fitted
    banks: dict[str, Tensor]
    settings: dict[str, Any]
    """Arguments of `Refiner` besides the map."""


def save(
    path: Path,
    map: Map,
    fitted: Fitted,
    banks: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    notes: Mapping[str, str],
) -> None:
    """Write a map, its settings and its banks.

    Args:
        path: file to write.
        map: the settings of the map.
        fitted: its tensors.
        banks: rows of the bank of a side, by the side.
        settings: the other arguments that the refiner was made with.
        notes: more texts for the file's metadata, by names of their own.
    """
    described = {"map": map.name, **asdict(map), **settings}
    own = {"format": FORMAT, "settings": json.dumps(described)}
    tensors = {name: fitted[name] for name in (*map.linear, *OFFSETS)}
    tensors |= {BANKS[side]: rows for side, rows in banks.items()}
    data = to_bytes({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata={**notes, **own})
    write_whole(path, lambda partial: partial.write_bytes(_with_sorted_metadata(data)))


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


def load(path: Path) -> Saved:
    """Read what `save` wrote, in this version or in one whose only map was EM's.

    Args:
        path: the file.

    Returns:
        The map, fitted, with its banks and settings.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is something else than a saved map, or damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; pass a file that Refiner.save wrote")

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = set(file.keys())
            if metadata.get("format") not in (FORMAT, EM_ALONE) or not names >= set(OFFSETS):
                raise ValueError(
                    f"{path} is a safetensors file but no map of a refiner: it holds {', '.join(sorted(names))} in "
                    f"format {metadata.get('format')!r}, not {FORMAT!r}; pass a file that Refiner.save wrote"
                )
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file ({error}); pass a file that Refiner.save wrote") from error

    # The settings, of which those of the map make the map.
    described = _settings_in(path, metadata.get("settings", "{}"))
    if metadata["format"] == EM_ALONE:
        described = {"map": EM.name, **described}
    kind = KINDS.get(str(described.pop("map", None)))
    if kind is None:
        raise ValueError(f"{path} names no map of {sorted(KINDS)}; fit and save it again")
    own = {field.name for field in fields(kind)}
    expected = own | ({"normalize"} if metadata["format"] == EM_ALONE else set(OF_ALL_MAPS))
    if set(described) != expected:
        raise ValueError(f"{path} has settings {sorted(described)}; expected {sorted(expected)}; fit and save it again")
    for name in ("num_bases", "num_starts", "num_iters", "seed", "num_neighbors"):
        if type(described.get(name, 0)) is not int:
            found = type(described[name]).__name__
            raise ValueError(f"{path} has {name} of type {found}, expected a whole number; fit and save it again")
    try:
        map = kind(**{name: described.pop(name) for name in own})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} has settings that make no map ({error}); fit and save it again") from error

    # The tensors must fit the settings, and each other.
    of_banks = {side: tensors.pop(name) for side, name in BANKS.items() if name in tensors}
    _require_one_map(path, map, tensors, of_banks)
    return Saved(map, tensors, of_banks, described)


def _settings_in(path: Path, said: str) -> dict[str, Any]:
    try:
        settings = json.loads(said)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} has settings that are no JSON ({error}); fit and save it again") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} has settings of type {type(settings).__name__}; fit and save it again")
    return settings


def _require_one_map(path: Path, map: Map, fitted: Fitted, banks: Mapping[str, Tensor]) -> None:
    """Raise a ValueError unless the tensors have the shapes and dtypes of one map and its banks."""
    width = len(fitted[OFFSETS[0]]) if fitted[OFFSETS[0]].ndim == 1 else 0
    expected = {name: [width] for name in OFFSETS}
    if isinstance(map, EM):
        expected |= {name: [width, map.num_bases * map.num_starts] for name in map.linear}
    else:
        expected |= {name: [width, width] for name in map.linear}

    shapes = {name: list(tensor.shape) for name, tensor in fitted.items()}
    double = all(tensor.dtype == torch.float64 for tensor in fitted.values())
    if width == 0 or shapes != expected or not double:
        raise ValueError(f"{path} has tensors of shapes {shapes}, which do not make one map; fit and save it again")
    for side, rows in banks.items():
        if rows.ndim != 2 or rows.shape[1] != width or rows.dtype != torch.float32 or not len(rows):
            raise ValueError(
                f"{path} has a bank of {side}s of shape {list(rows.shape)} in {rows.dtype}, expected rows of {width} "
                "float32 numbers; fit and save it again"
            )
    for name, tensor in {**fitted, **{BANKS[side]: rows for side, rows in banks.items()}}.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{path} holds NaN or infinite values in {name}; fit and save it again")


def write_onnx(
    path: Path, matrix: Float[Tensor, "D D"], bias: Float[Tensor, " D"], *, normalize: bool, query: bool = False
) -> None:
    """Write a model of refined = rows · matrix + bias, from `features` [N, D] to `refined` [N, D], in float32.

    Args:
        path: file to write.
        matrix: `[D, D]`.
        bias: `[D]`.
        normalize: whether the model brings `features` to length one first.
        query: whether `refined` is brought to length one and has the number 1 behind it, `[N, D + 1]`.

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
    nodes.append(helper.make_node("MatMul", [rows, "matrix"], ["mapped"]))
    nodes.append(helper.make_node("Add", ["mapped", "bias"], ["moved" if query else "refined"]))
    if query:
        constants["least"] = torch.tensor([QUERY_EPS])
        constants["one"] = torch.ones(1)
        nodes += [
            helper.make_node("ReduceL2", ["moved"], ["moved_length"], axes=[-1], keepdims=1),
            helper.make_node("Max", ["moved_length", "least"], ["moved_length_or_least"]),
            helper.make_node("Div", ["moved", "moved_length_or_least"], ["of_length_one"]),
            helper.make_node("Shape", ["moved_length"], ["count"]),
            helper.make_node("Expand", ["one", "count"], ["ones"]),
            helper.make_node("Concat", ["of_length_one", "ones"], ["refined"], axis=-1),
        ]

    graph = helper.make_graph(
        nodes,
        "Refiner",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", len(bias)])],
        [helper.make_tensor_value_info("refined", TensorProto.FLOAT, ["N", len(bias) + query])],
        [numpy_helper.from_array(np.asarray(value, dtype=np.float32), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="emcl")
    model.ir_version = IR_VERSION
    write_whole(path, lambda partial: save_model(model, str(partial)))


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write next to the file and rename, so that the file is there whole or not at all.

    Nobody can know the name beforehand, and put a link there.

    Args:
        path: file to write; its folder is made if it does not exist.
        write: writes the file whose path it is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.partial")
    try:
        partial.touch(exist_ok=False)
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
