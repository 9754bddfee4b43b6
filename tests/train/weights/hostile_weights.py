"""Files of weights, configurations and tokenizers as a stranger could send them, each made by a function.

`CASES` has those that were thought of, by the reader that they are for; `random_case` any number more, by a seed.
"""

import copy
import io
import json
import os
import pickle
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hostile import HOSTILE_VALUES, MARK, Make, Read, places_in, spoiled, with_value
from safetensors.torch import save
from small_clip import config, random_model, save_torchscript
from torch import Tensor

from emcl_train.config import DataConfig, ModelConfig, RunConfig
from emcl_train.data.text import CaptionTokenizer, load_tokenizer, word_tokenizer
from emcl_train.models import look_at_clip
from emcl_train.models.clip import build_towers
from emcl_train.models.clip_file import Vocabulary
from emcl_train.models.clip_folder import pretrained_clip
from emcl_train.runs.clip_config import build_clip, clip_config_of_fields, read_clip_config
from emcl_train.weights.files import clip_config_beside, read_state
from emcl_train.weights.openai import clip_to_openai
from emcl_train.weights.training_files import read_training_file

ENDLESS = 40
"""Values that each refer twice to the one before: 2⁴⁰ paths."""
HUGE = 10**12


class RunsCode:
    """Unpickled as usual, it would write a file beside the one that is read."""

    def __init__(self, folder: Path) -> None:
        self.command = f"touch {folder / MARK}"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (self.command,)


@cache
def good_state() -> dict[str, Tensor]:
    """Weights of a small CLIP under OpenAI's names."""
    return clip_to_openai(random_model(config("mean", "mean")).towers.clip.state_dict())


@cache
def good_config() -> str:
    return json.dumps(random_model(config("mean", "mean")).towers.clip.config.to_dict())


@cache
def good_tokenizer() -> str:
    return word_tokenizer(["a dog runs", "a cat, sleeping"], 7).backend.to_str()


# --- TorchScript's look-alikes -----------------------------------------------------------------------------------

MODULE = b"c__torch__\nX\n)\x81"
EMPTY = b"\x80\x02"
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n("


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    data = value.to_bytes(9, "little", signed=True)
    return b"\x8a\x09" + data


def tensor(size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    shape = b"(" + b"".join(map(number, size)) + b"t"
    steps = b"(" + b"".join(map(number, stride)) + b"t"
    return REBUILD + STORAGE + number(offset) + shape + steps + b"\x89ccollections\nOrderedDict\n)RtR"


def module_of(name: str, value: bytes) -> bytes:
    return MODULE + b"}" + text(name) + value + b"sb"


def archive(program: bytes, *, packed: bool = False, storages: dict[str, bytes] | None = None) -> Make:
    """An archive of TorchScript's form whose pickle is this program."""

    def make(folder: Path) -> Path:
        kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
        with zipfile.ZipFile(folder / "s.pt", "w", kind) as file:
            file.writestr("a/data.pkl", EMPTY + program + b".")
            file.writestr("a/constants.pkl", b"\x80\x02K\x00.")
            file.writestr("a/version", "3\n")
            for name, data in (storages or {"0": bytes(16)}).items():
                file.writestr(f"a/data/{name}", data)
        return folder / "s.pt"

    return make


def endless_modules() -> bytes:
    program = MODULE + b"r" + struct.pack("<I", 0) + b"}b"
    for at in range(1, ENDLESS + 1):
        before = b"j" + struct.pack("<I", at - 1)
        program += MODULE + b"}(" + text("a") + before + text("b") + before + b"ubr" + struct.pack("<I", at)
    return program


def runs_code(folder: Path) -> Path:
    program = b"cos\nsystem\n(" + text(f"touch {folder / MARK}") + b"tR"
    return archive(program)(folder)


def called_by_inst(folder: Path) -> Path:
    return archive(b"(" + text(f"touch {folder / MARK}") + b"ios\nsystem\n")(folder)


TORCHSCRIPT: dict[str, Make] = {
    "modules without end": archive(endless_modules()),
    "a module that holds itself": archive(MODULE + b"r\x00\x00\x00\x00}(" + text("a") + b"j\x00\x00\x00\x00ub"),
    "modules in modules": archive(
        b"".join(MODULE + b"}" + text("a") for _ in range(5000)) + MODULE + b"}b" + b"sb" * 5000
    ),
    "tuples in tuples": archive(b")" * 1 + b"\x85" * 20000),
    "an early value of a great number": archive(MODULE + b"r\xf0\xff\xff\xff}b"),
    "bytes that are not there": archive(b"\x8e" + struct.pack("<Q", 2**62)),
    "an array that is not there": archive(b"\x96" + struct.pack("<Q", 2**36)),
    "a text that is not there": archive(b"\x8d" + struct.pack("<Q", 2**62)),
    "a frame that is not there": archive(b"\x95" + struct.pack("<Q", 2**62)),
    "a number of many digits": archive(b"L" + b"9" * 200000 + b"\n"),
    "a number repeated": archive(module_of("a.b", tensor((10**6, 10**6), (0, 0)))),
    "a negative size": archive(module_of("a.b", tensor((-1, 5), (1, 1)))),
    "a size that overflows": archive(module_of("a.b", tensor((2**62, 2**62), (0, 0)))),
    "behind its storage": archive(module_of("a.b", tensor((4,), (1,), offset=2**40))),
    "a negative offset": archive(module_of("a.b", tensor((4,), (1,), offset=-8))),
    "a count of storage": archive(module_of("a", STORAGE.replace(b"K\x04tQ", b"J\xff\xff\xff\x7ftQ"))),
    "attributes of a function": archive(b"ctorch._utils\n_rebuild_tensor_v2\nN}" + text("__defaults__") + b")s\x86b"),
    "attributes of a class": archive(b"c__torch__\nX\n}" + text("attributes") + b"}sb"),
    "an extension": archive(b"\x82\x01"),
    "code": runs_code,
    "code by another instruction": called_by_inst,
    "a packed pickle": archive(b"N" * (8 * 10**7), packed=True),
    "a packed storage": archive(module_of("a.b", tensor((4,), (1,))), packed=True, storages={"0": bytes(2 * 10**8)}),
    "nothing": archive(b""),
    "no module": archive(b"K\x01"),
}


# --- Files of torch.save -----------------------------------------------------------------------------------------


def saved(content: Callable[[], Any], *, name: str = "w.pt", **options: Any) -> Make:
    def make(folder: Path) -> Path:
        torch.save(content(), folder / name, **options)
        return folder / name

    return make


def shared_dicts() -> dict[str, Any]:
    inner: dict[str, Any] = {"a": 1}
    for _ in range(8):
        inner = {str(number): inner for number in range(40)}
    return inner


def deep_dicts() -> dict[str, Any]:
    inner: dict[str, Any] = {"a.b": torch.ones(1)}
    for _ in range(300):
        inner = {"a": inner}
    return inner


def itself() -> dict[str, Any]:
    content: dict[str, Any] = {"a.b": torch.ones(1)}
    content["again"] = content
    return content


def saved_code(folder: Path) -> Path:
    torch.save({"a.b": torch.ones(1), "c": RunsCode(folder)}, folder / "w.pt")
    return folder / "w.pt"


def pickled_code(folder: Path) -> Path:
    (folder / "w.pt").write_bytes(pickle.dumps(RunsCode(folder)))
    return folder / "w.pt"


def legacy(program: bytes, numbers: bytes = bytes(24)) -> Make:
    """A file of the form before archives: three pickles, keys of storages, storages."""

    def make(folder: Path) -> Path:
        magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
        versions = pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True, "type_sizes": {}}, 2)
        (folder / "w.pt").write_bytes(magic + versions + EMPTY + program + b"." + pickle.dumps(["0"], 2) + numbers)
        return folder / "w.pt"

    return make


def packed_again(folder: Path) -> Path:
    """An archive of torch.save whose storage is 200 MB of zeros, packed."""
    data = io.BytesIO()
    torch.save({"a.b": torch.zeros(4)}, data)
    with zipfile.ZipFile(data) as source, zipfile.ZipFile(folder / "w.pt", "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, bytes(2 * 10**8) if name.endswith("/data/0") else source.read(name))
    return folder / "w.pt"


def old_tar(folder: Path) -> Path:
    with tarfile.open(folder / "w.pt", "w") as file:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(name)
            info.size = 4
            file.addfile(info, io.BytesIO(b"\x80\x02N."))
    return folder / "w.pt"


STORAGE_OF_SAVE = STORAGE.replace(b"K\x04tQ", number(2**40) + b"tQ")
TORCH: dict[str, Make] = {
    "dicts without end": saved(shared_dicts),
    "dicts in dicts": saved(deep_dicts),
    "a dict that holds itself": saved(itself),
    "a number repeated": saved(lambda: {"a.b": torch.ones(1, dtype=torch.float16).expand(10**6, 10**6)}),
    "a number repeated in the old form": saved(
        lambda: {"a.b": torch.ones(1).expand(10**6, 10**6)}, _use_new_zipfile_serialization=False
    ),
    "no weights": saved(lambda: {"a": 1, 2: torch.ones(1)}),
    "a list": saved(lambda: [torch.ones(1)] * 3),
    "complex numbers": saved(lambda: {"a.b": torch.ones(3, dtype=torch.complex64)}),
    "a sparse tensor": saved(
        lambda: {"a.b": torch.sparse_coo_tensor([[0], [0]], [1.0], (10**6, 10**6), check_invariants=True)}
    ),
    "a tensor without values": saved(lambda: {"a.b": torch.empty(10**6, 10**6, device="meta")}),
    "no numbers of a great size": saved(lambda: {"a.b": torch.empty(0, 2**40)}),
    "code": saved_code,
    "code in a pickle": pickled_code,
    "a storage that is not there": legacy(b"}" + text("a.b") + STORAGE_OF_SAVE + b"s"),
    "a text that is not there": legacy(b"}X" + struct.pack("<I", 2**32 - 1)),
    "a packed storage": packed_again,
    "a tar": old_tar,
    "an empty archive": lambda folder: _written(folder / "w.pt", b"PK\x05\x06" + bytes(18)),
    "two ends of an archive": lambda folder: _written(
        folder / "w.pt", b"PK\x05\x06" + bytes(18) + b"PK\x05\x06" + b"\xff" * 18
    ),
    "a named pipe": lambda folder: (os.mkfifo(folder / "w.pt"), folder / "w.pt")[1],
    "a folder": lambda folder: ((folder / "w.pt").mkdir(), folder / "w.pt")[1],
}


# --- Checkpoints of training programs -----------------------------------------------------------------------------

OBJECT = b"cparse_config\nConfigParser\n"
WEIGHT = text("a.b") + tensor((4,), (1,)).replace(b"tQ", b"NtQ")


def checkpoint(program: bytes) -> Make:
    """The form before archives, with four numbers in one storage."""
    return legacy(program, struct.pack("<Q", 4) + bytes(16))


def called_with(values: int, times: int) -> bytes:
    """One tuple of many values, handed many times to a function that is not on the list."""
    return b"(" + b"N" * values + b"tq\x00" + (b"0" + OBJECT + b"h\x00R") * times


TRAINING = {name: make for name, make in TORCH.items() if name != "a folder"} | {
    "an object": checkpoint(b"}(" + WEIGHT + text("c.d") + OBJECT + b")\x81}" + text("x") + b"K\x01sbu"),
    "an object with code": checkpoint(b"}(" + WEIGHT + text("c.d") + b"cos\nsystem\n(" + text("exit") + b"tRu"),
    "a call of many values": checkpoint(called_with(200_000, 5_000)),
    "a key of tuples": checkpoint(b"}" + b")" + b"\x85" * 200_000 + b"Ns"),
    "a storage of tuples": checkpoint(
        b"}" + text("a.b") + REBUILD + b"(" + text("storage") + b"ctorch\nFloatStorage\n)" + b"\x85" * 200_000
        + text("cpu") + b"K\x04NtQ" + number(0) + b"(K\x04t(K\x01t\x89)tRs"
    ),
    "an object as a tensor": checkpoint(b"}" + text("a.b") + REBUILD + OBJECT + b"K\x00(t(t\x89)tRs"),
    "a size of texts": checkpoint(b"}" + text("a.b") + tensor((4,), (1,)).replace(number(4), text("4")) + b"s"),
}  # fmt: skip
EVERYTHING = b"}" + text("state_dict") + b"}" + WEIGHT + b"ss" + text("c") + OBJECT + b")R}(" + text("d") + b"Nubs"
"""Weights, and an object that is called and filled."""


# --- safetensors --------------------------------------------------------------------------------------------------


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def safetensors(header: Any, body: bytes = b"", *, length: int | None = None) -> Make:
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    return lambda folder: _written(
        folder / "w.safetensors", struct.pack("<Q", len(data) if length is None else length) + data + body
    )


def one(shape: list[Any], offsets: list[Any], dtype: str = "F32") -> dict[str, Any]:
    return {"a.b": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def with_metadata(value: str) -> Make:
    return lambda folder: _written(folder / "w.safetensors", save(good_state(), {"clip_config": value}))


SAFETENSORS: dict[str, Make] = {
    "a header without end": safetensors(b"{}", length=2**63 - 1),
    "a header longer than the file": safetensors(b"{}", length=10**6),
    "a header that is nested": safetensors(b"[" * 10**6),
    "a header of spaces": safetensors(b" " * 10**6),
    "a shape without values": safetensors(one([10**6, 10**6], [0, 4]), bytes(4)),
    "a shape that overflows": safetensors(one([2**63, 2**63], [0, 4]), bytes(4)),
    "an empty shape of a great size": safetensors(one([0, 2**62, 2**62], [0, 0])),
    "a negative shape": safetensors(one([-1], [0, 4]), bytes(4)),
    "offsets behind the end": safetensors(one([4], [0, 2**40]), bytes(16)),
    "offsets backwards": safetensors(one([4], [16, 0]), bytes(16)),
    "an unknown type": safetensors(one([4], [0, 16], "F99"), bytes(16)),
    "a small type": safetensors(one([16], [0, 16], "F8_E4M3"), bytes(16)),
    "no name": safetensors({"": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "no tensors": safetensors({}),
    "a nested configuration": with_metadata("[" * 10**5),
    "a configuration of a great number": with_metadata("9" * 10**5),
    "a configuration that is a list": with_metadata("[[1, 2]]"),
    "a configuration of many layers": with_metadata(json.dumps({"text_config": {"num_hidden_layers": HUGE}})),
    "empty": lambda folder: _written(folder / "w.safetensors", b""),
}


# --- Configurations -----------------------------------------------------------------------------------------------


def changed_config(place: tuple[Any, ...], value: Any) -> Make:
    def make(folder: Path) -> Path:
        content = json.loads(good_config())
        for name in place[:-1]:
            if not isinstance(content.get(name), dict):
                content[name] = {}
        if len(place) == 1:
            content[place[0]] = value
        else:
            content[place[0]] = dict(content[place[0]]) | {place[1]: value}
        (folder / "clip_config.json").write_text(json.dumps(content))
        (folder / "model.safetensors").write_bytes(save(good_state()))
        return folder / "clip_config.json"

    return make


FOREIGN = ("attn_implementation", "_attn_implementation", "experts_implementation", "auto_map", "quantization_config",
           "torch_dtype", "dtype", "transformers_weights", "architectures", "id2label", "problem_type")  # fmt: skip
"""Settings that lead transformers to code, kernels or other files."""
OF_TEXT = ("hidden_size", "intermediate_size", "num_hidden_layers", "projection_dim", "num_attention_heads",
           "vocab_size", "max_position_embeddings", "hidden_act", "layer_norm_eps", "eos_token_id",
           "attention_dropout")  # fmt: skip
SIZES: list[tuple[str, ...]] = [("text_config", name) for name in OF_TEXT]
SIZES += [("vision_config", name) for name in ("image_size", "patch_size", "num_channels", "num_hidden_layers")]
SIZES += [("projection_dim",), ("logit_scale_init_value",), ("text_config",), ("text_config_dict",)]
CONFIGS: dict[str, Make] = {
    f"{'.'.join(place)} {str(value)[:12]!r} {number}": changed_config(place, value)
    for place in (*SIZES, *((name,) for name in FOREIGN), *(("text_config", name) for name in FOREIGN[:6]))
    for number, value in enumerate(HOSTILE_VALUES)
}
CONFIGS |= {
    "nested": lambda folder: _written(folder / "clip_config.json", b'{"a":' * 10**5),
    "nested a little": lambda folder: _written(folder / "clip_config.json", b'{"a":' * 500 + b"1" + b"}" * 500),
    "a number of many digits": lambda folder: _written(folder / "clip_config.json", b'{"a":' + b"9" * 10**5 + b"}"),
    "a list": lambda folder: _written(folder / "clip_config.json", b"[]"),
    "zeros": lambda folder: _written(folder / "clip_config.json", bytes(1000)),
    "a named pipe": lambda folder: (os.mkfifo(folder / "clip_config.json"), folder / "clip_config.json")[1],
    "a large file": lambda folder: _sparse(folder / "clip_config.json"),
}


def _sparse(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(1 << 33)
    return path


def read_config(path: Path) -> None:
    """As `eval` takes the towers of a run."""
    found = read_clip_config(path.parent)
    if found is not None:
        build_towers(ModelConfig(), Vocabulary(30, 29, 0), image_size=16, max_words=7, clip_config=found)


# --- Folders of transformers --------------------------------------------------------------------------------------


def clip_folder(change: Callable[[Path], object]) -> Make:
    def make(folder: Path) -> Path:
        place = folder / "clip"
        build_clip(clip_config_of_fields(json.loads(good_config()), "")).save_pretrained(place)
        change(place)
        return place

    return make


def edited(name: str, **changes: Any) -> Callable[[Path], object]:
    def change(place: Path) -> None:
        file = place / name
        content = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps(content | changes))

    return change


def replaced(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda place: (place / name).write_bytes(data)


def packed_bin(place: Path) -> None:
    (place / "model.safetensors").unlink()
    packed_again(place)
    (place / "w.pt").rename(place / "pytorch_model.bin")


def code_in_bin(place: Path) -> None:
    (place / "model.safetensors").unlink()
    saved_code(place)
    (place / "w.pt").rename(place / "pytorch_model.bin")


def shards_elsewhere(place: Path) -> None:
    (place / "model.safetensors").rename(place.parent / "other.safetensors")
    names = dict.fromkeys(good_state(), "../other.safetensors")
    (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


FOLDERS: dict[str, Make] = {
    "a kernel": clip_folder(edited("config.json", attn_implementation="attacker/evil")),
    "code": clip_folder(edited("config.json", auto_map={"AutoModel": "evil.M", "AutoConfig": "evil.C"})),
    "a type that is a list": clip_folder(edited("config.json", model_type=["clip"])),
    "quantization": clip_folder(edited("config.json", quantization_config={"quant_method": "gptq", "bits": 4})),
    "other weights": clip_folder(edited("config.json", transformers_weights="/etc/passwd")),
    "adapters": clip_folder(edited("adapter_config.json", base_model_name_or_path="attacker/evil")),
    "pictures": clip_folder(edited("preprocessor_config.json", image_mean="x", image_std=[1e999])),
    "pictures that are a list": clip_folder(replaced("preprocessor_config.json", b"[]")),
    "weights that are packed": clip_folder(packed_bin),
    "weights with code": clip_folder(code_in_bin),
    "weights elsewhere": clip_folder(shards_elsewhere),
    "an index that is a list": clip_folder(replaced("model.safetensors.index.json", b"[]")),
    "nested": clip_folder(replaced("config.json", b'{"a":' * 10**5)),
    "many layers": clip_folder(edited("config.json", text_config={"num_hidden_layers": 1000, "hidden_size": 60000})),
    "weights of zeros": clip_folder(replaced("model.safetensors", bytes(1000))),
}


def read_folder(path: Path) -> None:
    look_at_clip(ModelConfig(clip=str(path)))
    pretrained_clip(str(path))


# --- Tokenizers ---------------------------------------------------------------------------------------------------


def tokenizer_with(**changes: Any) -> Make:
    def make(folder: Path) -> Path:
        content = json.loads(good_tokenizer()) | changes
        return _written(folder / "tokenizer.json", json.dumps(content).encode())

    return make


def padded_to(value: Any) -> dict[str, Any]:
    padding = json.loads(good_tokenizer())["padding"]
    return {"padding": padding | {"strategy": {"Fixed": value}}}


TEMPLATE = {"type": "TemplateProcessing", "pair": [], "special_tokens": {}}
TOKENIZERS: dict[str, Make] = {
    "a normalizer that is cut short": tokenizer_with(
        normalizer={"type": "Precompiled", "precompiled_charsmap": "/////w=="}
    ),
    "a template of a second text": tokenizer_with(
        post_processor=TEMPLATE | {"single": [{"Sequence": {"id": "B", "type_id": 0}}]}
    ),
    "a template of a token that is not there": tokenizer_with(
        post_processor=TEMPLATE | {"single": [{"SpecialToken": {"id": "X", "type_id": 0}}]}
    ),
    "padded without end": tokenizer_with(**padded_to(HUGE)),
    "padded to nothing": tokenizer_with(**padded_to(0)),
    "padded to less than nothing": tokenizer_with(**padded_to(-1)),
    "padded to much": tokenizer_with(**padded_to(10**6)),
    "not padded": tokenizer_with(padding=None),
    "padding that is a list": tokenizer_with(padding=[1]),
    "padded to a multiple": tokenizer_with(
        padding=padded_to(7)["padding"] | {"pad_to_multiple_of": HUGE, "pad_id": 2**32 - 1}
    ),
    "cut without end": tokenizer_with(
        truncation={"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": HUGE}
    ),
    "a word of a great number": tokenizer_with(
        model={"type": "WordLevel", "vocab": {"[UNK]": 2**32 - 1}, "unk_token": "[UNK]"}
    ),
    "a pattern that takes for ever": tokenizer_with(
        normalizer={"type": "Replace", "pattern": {"Regex": "(x+x+)+y"}, "content": "z"}
    ),
    "a replacement that grows": tokenizer_with(
        normalizer={"type": "Sequence", "normalizers": [
            {"type": "Replace", "pattern": {"Regex": "."}, "content": "x" * 1000}] * 4}
    ),
    "normalizers in normalizers": lambda folder: _written(
        folder / "tokenizer.json", good_tokenizer().encode().replace(
            b'"normalizer":', b'"normalizer":' + b'{"type":"Sequence","normalizers":[' * 40 + b"]}" * 40 + b',"x":', 1)
    ),
    "an unknown model": tokenizer_with(model={"type": "Evil"}),
    "no model": tokenizer_with(model=None),
    "merges of what is not there": tokenizer_with(
        model={"type": "BPE", "vocab": {"a": 0}, "merges": [["x", "y"]], "unk_token": "a"}
    ),
    "a Unigram of nothing": tokenizer_with(model={"type": "Unigram", "vocab": [], "unk_id": 5}),
    "a Unigram of one infinity": tokenizer_with(model={"type": "Unigram", "vocab": [["a", -1e308]], "unk_id": 0}),
    "nested": lambda folder: _written(folder / "tokenizer.json", b'{"a":' * 10**5),
    "a list": lambda folder: _written(folder / "tokenizer.json", b"[]"),
    "no text": lambda folder: _written(folder / "tokenizer.json", b"\xff\xfe\x00"),
    "a named pipe": lambda folder: (os.mkfifo(folder / "tokenizer.json"), folder / "tokenizer.json")[1],
    "large": lambda folder: _sparse(folder / "tokenizer.json"),
}  # fmt: skip


def read_tokenizer(path: Path) -> None:
    tokenizer = CaptionTokenizer.load(path)
    tokenizer.encode(["a dog runs far away from here, as ever", "", "x" * 3000])


EVIL = """
from pathlib import Path
Path({!r}).touch()
from transformers import PreTrainedTokenizerFast
class T(PreTrainedTokenizerFast): pass
class C: pass
"""


def tokenizer_folder(settings: Any = None, model: Any = None, special: Any = None, **files: bytes) -> Make:
    def make(folder: Path) -> Path:
        place = folder / "tok"
        place.mkdir()
        (place / "tokenizer.json").write_text(good_tokenizer())
        (place / "evil.py").write_text(EVIL.format(str(folder / MARK)))
        contents = {"tokenizer_config.json": settings, "config.json": model, "special_tokens_map.json": special}
        for name, content in contents.items():
            if content is not None:
                (place / name).write_text(json.dumps(content))
        for name, data in files.items():
            (place / f"{name}.json").write_bytes(data)
        return place

    return make


PAD = {"pad_token": "[PAD]"}
OWN_CODE = {"AutoTokenizer": ["evil.T", "evil.T"], "AutoConfig": "evil.C"}
TOKENIZER_FOLDERS: dict[str, Make] = {
    "a class of its own": tokenizer_folder(PAD | {"tokenizer_class": "evil.T", "auto_map": OWN_CODE}),
    "code beside a known class": tokenizer_folder(PAD | {"tokenizer_class": "CLIPTokenizer", "auto_map": OWN_CODE}),
    "code for its model": tokenizer_folder(PAD, {"model_type": "evilclip", "auto_map": OWN_CODE}),
    "code as a list": tokenizer_folder(PAD | {"auto_map": ["evil.T", None]}),
    "a class of other files": tokenizer_folder(PAD | {"tokenizer_class": "RagTokenizer"}),
    "a class that runs programs": tokenizer_folder(PAD | {"tokenizer_class": "BertJapaneseTokenizer"}),
    "a class that is a list": tokenizer_folder(PAD | {"tokenizer_class": ["CLIPTokenizer"]}),
    "a token of many": tokenizer_folder({"pad_token": {"content": ["x"]}}),
    "a token of a great number": tokenizer_folder(PAD | {"added_tokens_decoder": {"99999999999": "x"}}),
    "tokens that are a list": tokenizer_folder(PAD | {"added_tokens_decoder": [1]}),
    "another folder": tokenizer_folder(PAD | {"name_or_path": "/etc", "tokenizer_file": "/etc/passwd"}),
    "special tokens that are numbers": tokenizer_folder(PAD, special={"bos_token": 5}),
    "nested settings": tokenizer_folder(PAD, tokenizer_config=b'{"a":' * 10**5),
    "settings that are a list": tokenizer_folder([1]),
    "a tokenizer that ends the process": tokenizer_folder(
        PAD, tokenizer=json.dumps(json.loads(good_tokenizer()) | padded_to(HUGE)).encode()
    ),
    "a vocabulary of great numbers": tokenizer_folder(
        PAD | {"tokenizer_class": "CLIPTokenizer"}, vocab=b'{"a": 99999999999}'
    ),
}


def read_tokenizer_folder(path: Path) -> None:
    data = DataConfig(max_words=7)
    load_tokenizer(RunConfig(data=data, model=ModelConfig(clip="random", tokenizer=str(path)))).encode(["a dog"])


def read_weights_and_config(path: Path) -> None:
    clip_config_beside(path)
    read_state(path)


CASES: dict[str, tuple[Read, dict[str, Make]]] = {
    "torchscript": (read_state, TORCHSCRIPT),
    "torch": (read_state, TORCH),
    "training": (read_training_file, TRAINING),
    "safetensors": (read_weights_and_config, SAFETENSORS),
    "configuration": (read_config, CONFIGS),
    "folder": (read_folder, FOLDERS),
    "tokenizer": (read_tokenizer, TOKENIZERS),
    "tokenizer folder": (read_tokenizer_folder, TOKENIZER_FOLDERS),
}
"""Each reader with the files that it is tried on."""


def good_torchscript(folder: Path) -> Path:
    save_torchscript(good_state(), folder / "s.pt", traced=True)
    return folder / "s.pt"


GOOD: dict[str, Make] = {
    "torchscript": good_torchscript,
    "torch": saved(lambda: {"state_dict": good_state(), "epoch": 3}),
    "training": checkpoint(EVERYTHING),
    "safetensors": with_metadata(good_config()),
    "configuration": changed_config(("projection_dim",), json.loads(good_config())["projection_dim"]),
    "folder": clip_folder(lambda _: None),
    "tokenizer": tokenizer_with(),
    "tokenizer folder": tokenizer_folder(PAD | {"tokenizer_class": "PreTrainedTokenizerFast"}),
}
"""For each reader, a file that it must read."""

REFUSED: dict[str, tuple[str, ...]] = {
    "torchscript": ("code", "code by another instruction", "attributes of a function", "modules without end",
                    "a number repeated", "behind its storage", "a packed storage"),
    "torch": ("code", "code in a pickle", "a text that is not there", "dicts without end",
              "a number repeated", "a packed storage", "a tar"),
    "training": ("code", "code in a pickle", "a text that is not there", "dicts without end", "a number repeated",
                 "a packed storage", "a tar", "an object", "an object with code", "a call of many values",
                 "a key of tuples", "a storage of tuples", "an object as a tensor"),
    "safetensors": ("a header that is nested", "a shape without values", "offsets behind the end",
                    "a configuration of many layers"),
    "configuration": ("nested", "a number of many digits", "a list", "a named pipe", "a large file"),
    "folder": ("adapters", "weights elsewhere", "weights with code", "weights that are packed", "many layers"),
    "tokenizer": ("padded without end", "a pattern that takes for ever", "normalizers in normalizers", "nested",
                  "a named pipe", "large"),
    "tokenizer folder": ("a class that is a list", "nested settings", "a tokenizer that ends the process",
                         "a vocabulary of great numbers"),
}  # fmt: skip
"""For each reader, those of its files that must not be read; what others are read as does no harm."""


# --- Any number more ----------------------------------------------------------------------------------------------


def random_case(seed: int) -> tuple[str, Make, Read]:
    """A hostile file of any kind, by a number: what it is, what makes it, and what reads it."""
    drawn = random.Random(seed)
    kind = drawn.choice(("torchscript", "torch", "old torch", "safetensors", "configuration", "tokenizer", "training"))
    if kind in ("configuration", "tokenizer"):
        content = json.loads(good_config() if kind == "configuration" else good_tokenizer())
        changed = copy.deepcopy(content)
        for _ in range(drawn.choice((1, 1, 2, 4))):
            changed = with_value(changed, drawn.choice(places_in(changed)), drawn.choice(HOSTILE_VALUES))
        data = json.dumps(changed).encode("utf-8", "surrogatepass")
        if drawn.random() < 0.2:
            data = spoiled(data, drawn)
        name = "clip_config.json" if kind == "configuration" else "tokenizer.json"
        return kind, lambda folder: _written(folder / name, data), read_config if name[0] == "c" else read_tokenizer

    data = spoiled(_good_file(kind), drawn)
    suffix = ".safetensors" if kind == "safetensors" else ".pt"
    read = read_training_file if kind == "training" else read_weights_and_config
    return kind, lambda folder: _written(folder / f"w{suffix}", data), read


@cache
def _good_file(kind: str) -> bytes:
    if kind == "safetensors":
        return save(good_state(), {"clip_config": good_config()})
    if kind == "torchscript":
        import tempfile

        with tempfile.TemporaryDirectory() as place:
            save_torchscript(good_state(), Path(place) / "s.pt", traced=True)
            return (Path(place) / "s.pt").read_bytes()
    data = io.BytesIO()
    torch.save({"state_dict": good_state(), "epoch": 3}, data, _use_new_zipfile_serialization=kind == "torch")
    return data.getvalue()
