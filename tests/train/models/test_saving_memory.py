"""Towers in less memory: layers that are computed again, and compiled parts, train as the towers themselves do."""

import io
import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from several_processes import one_step, step_config
from small_towers import FAMILIES, config_of, write_towers
from stopped_training import stopped_after
from tiny_run import tiny_run
from torch._dynamo.testing import CompileCounterWithBackend

from emcl_train.config import check_config
from emcl_train.encoder import load
from emcl_train.errors import UserError
from emcl_train.models.towers import Towers
from emcl_train.recipes import load_recipe
from emcl_train.runs.records import MEASURED
from emcl_train.training import compiling, trainer

QUIET = {"console": Console(file=io.StringIO())}
EVERY = ("clip", *FAMILIES)

pytestmark = pytest.mark.usefixtures("one_thread", "quick")


@pytest.fixture
def quick(monkeypatch):
    """The report's plots take longer than all the rest."""
    monkeypatch.setattr(trainer, "write_report", lambda out: out)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("towers")
    return {family: write_towers(family, root / family) for family in FAMILIES}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("set") / "shapes"


def config_for(family, folders, root, out, **train):
    """A run of any family; EM is off, whose start would hide small differences behind its softmax."""
    train = {"max_steps": 3, "epochs": 1, "save_every": 1, "tracker": "none"} | train
    if family == "clip":
        return tiny_run(root, out, **train)
    parts = {"head": "mean", "temporal": "mean"} if family == "xclip" else {}
    return config_of(folders[family], root, out, **parts, **train)


def times_begun(run):
    """How often the inner maps of every layer of the towers begin in what follows, by their names."""
    counts = {}

    def count(name):
        def hook(module, inputs):
            counts[name] = counts.get(name, 0) + 1

        return hook

    for name, module in run.model.towers.named_modules():
        if name.endswith((".mlp", ".intermediate")) and ".head" not in name and "prompts" not in name:
            module.register_forward_pre_hook(count(name))
    return counts


@pytest.mark.parametrize("family", EVERY)
def test_layers_that_are_computed_again_have_the_same_gradients(family, folders, root, tmp_path):
    plain = one_step(config_for(family, folders, root, tmp_path / "plain"), frozen=True)
    seen = []
    found = one_step(
        config_for(family, folders, root, tmp_path / "again", gradient_checkpointing=True),
        lambda run: seen.append(times_begun(run)),
        frozen=True,
    )
    assert found["loss"] == plain["loss"]
    for name, gradient in plain["gradients"].items():
        torch.testing.assert_close(found["gradients"][name], gradient, rtol=1e-6, atol=1e-8, msg=name)
    assert len(seen[0]) >= 2
    assert set(seen[0].values()) == {2}


def record(run):
    """Everything that does not depend on how the towers were computed."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        for name in MEASURED:
            line.pop(name, None)
    files = [(run / name).read_bytes() for name in ("model.safetensors", "clip_config.json", "tokenizer.json")]
    return lines, files, json.loads((run / "results.json").read_text())


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_run_is_the_same_and_may_go_on_in_less_memory(family, folders, root, tmp_path):
    config = config_for(family, folders, root, tmp_path / "plain")
    plain = record(trainer.train(config, **QUIET))
    again = replace(config, out=tmp_path / "again", train=replace(config.train, gradient_checkpointing=True))
    assert record(trainer.train(again, **QUIET)) == plain

    # One that was ended goes on in either way.
    ended = replace(config, out=tmp_path / "ended")
    with stopped_after(1):
        trainer.train(ended, **QUIET)
    less = replace(ended, resume=True, train=replace(ended.train, gradient_checkpointing=True))
    assert record(trainer.train(less, **QUIET)) == plain


def test_chunks_and_layers_that_are_computed_again_go_together(root, tmp_path):
    plain = one_step(step_config(root, tmp_path / "plain", "relative-full"))
    both = one_step(step_config(root, tmp_path / "both", "relative-full", chunks=3, gradient_checkpointing=True))
    assert both["loss"] == pytest.approx(plain["loss"], rel=1e-6)
    whole = torch.cat([gradient.flatten() for gradient in plain["gradients"].values()]).norm()
    for name, gradient in plain["gradients"].items():
        error = (both["gradients"][name] - gradient).norm()
        assert error <= 1e-5 * gradient.norm() + 1e-8 * whole, name


def test_a_library_without_it_is_named():
    class Other(torch.nn.Module):
        supports_gradient_checkpointing = False

        def activation_checkpointing_enable(self, settings):
            raise AssertionError("it was called")

    towers = type("OtherTowers", (Towers,), {"inner": Other()})
    with pytest.raises(UserError, match=r"library of Other cannot compute its layers again; leave out --train.grad"):
        towers.recompute_layers(towers)


# ---- compiled parts --------------------------------------------------------------------------------------------------


def encoded(towers, size, config):
    """Features of so many drawn captions and clips."""
    draw = torch.Generator().manual_seed(size)
    ids = torch.randint(5, 20, (size, config.data.max_words), generator=draw)
    shape = (size, config.data.num_frames, 3, config.data.image_size, config.data.image_size)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)
    mask = {"frame_mask": torch.ones(shape[:2], dtype=torch.bool)} if "frame_mask" in towers.frame_inputs else {}
    return towers.encode_text(ids, torch.ones_like(ids))[0], towers.encode_frames(frames=frames, **mask)


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_are_traced_once_for_batches_of_any_size(family, folders, monkeypatch):
    """Not by inductor, whose C++ takes seconds a graph: here its graphs are counted, and run as they are."""
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("eager")
    monkeypatch.setattr(compiling, "BACKEND", graphs)
    encoder = load(folders[family])
    towers = encoder._model.towers.eval()
    sizes = (8, 7, 5, 3)
    expected = [encoded(towers, size, encoder.config) for size in sizes]
    names = list(towers.state_dict())

    compiling.compile_parts(towers)
    assert list(towers.state_dict()) == names
    counts = []
    for size, features in zip(sizes, expected, strict=True):
        for found, there in zip(encoded(towers, size, encoder.config), features, strict=True):
            torch.testing.assert_close(found, there, rtol=1e-5, atol=1e-6)
        counts.append(graphs.frame_count)
    assert counts[0] >= 2
    assert counts[0] < counts[1] <= 2 * counts[0]
    assert counts[1] == counts[-1]

    with compiling.without_compiling():
        encoded(towers, 4, encoder.config)
    assert graphs.frame_count == counts[-1]


def test_a_run_with_compiled_towers_is_an_ordinary_one(root, tmp_path):
    config = tiny_run(root, tmp_path / "plain", max_steps=2, epochs=1, tracker="none")
    plain = trainer.train(config, **QUIET)
    compiled = replace(config, out=tmp_path / "compiled", train=replace(config.train, compile_towers=True))
    run = trainer.train(compiled, **QUIET)
    found, expected = load_file(run / "model.safetensors"), load_file(plain / "model.safetensors")
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=name)
    losses = [line["loss"] for line in record(run)[0] if line["kind"] == "train"]
    assert losses == pytest.approx([line["loss"] for line in record(plain)[0] if line["kind"] == "train"], rel=1e-4)
    load(run)


def test_a_machine_that_cannot_compile_is_told_so(monkeypatch):
    def no_compiler(graph, inputs):
        raise RuntimeError("no compiler was found\nand more")

    monkeypatch.setattr(compiling, "BACKEND", no_compiler)
    with pytest.raises(
        UserError, match=r"compile does not work here \(.*no compiler was found\); install a C\+\+ .*--train.c"
    ):
        compiling.require_compiler(torch.device("cpu"))


@pytest.mark.parametrize(
    ("recipe", "change", "message"),
    [
        (
            "jsonl",
            {"gradient_checkpointing": True, "clip_lr_factor": 0.0},
            "is True, expected False, since frozen towers",
        ),
        ("jsonl", {"lora": -1}, "train.lora is -1, expected 0 or more"),
        ("jsonl", {"lora": 4, "frozen": "conv1"}, "train.frozen is conv1, expected none, since with adapters"),
        (
            "jsonl",
            {"lora": 4, "frozen": "none", "clip_lr_factor": 0.0},
            "train.clip_lr_factor is 0.0, expected None or",
        ),
        (
            "shapes",
            {"lora": 4},
            "train.lora is 4, expected 0, since adapters change trained weights little, and random",
        ),
        ("jsonl", {"lora_dropout": 1.0}, "train.lora_dropout is 1.0, expected a share"),
        ("jsonl", {"lora_alpha": 0.0}, "train.lora_alpha is 0.0, expected a positive number"),
        ("jsonl", {"lora_alpha": 8.0}, "train.lora_alpha is 8.0, expected 16.0, since there are no adapters"),
        ("jsonl", {"lora_dropout": 0.1}, "train.lora_dropout is 0.1, expected 0.0, since there are no adapters"),
        ("mmt-msrvtt", {"lora": 4}, "train.lora is 4, and for MMT it can be 0 alone, since it has no towers"),
        (
            "ce-msrvtt",
            {"compile_towers": True},
            "for CE it can be False alone, since it has no towers; leave out --train.c",
        ),
        ("mmt-msrvtt", {"gradient_checkpointing": True}, "it has no towers; leave out --train.gradient-checkpointing"),
    ],
)
def test_what_would_make_no_sense_is_refused(recipe, change, message):
    config = load_recipe(recipe)
    with pytest.raises(UserError, match=message):
        check_config(replace(config, train=replace(config.train, **change)))


@pytest.mark.parametrize("change", [{"gradient_checkpointing": True}, {"compile_towers": True}, {"lora": 4}])
def test_stored_features_have_no_towers_to_save_memory_of(change, tmp_path):
    config = replace(load_recipe("jsonl"), from_features=tmp_path)
    config = replace(config, train=replace(config.train, clip_lr_factor=None, frozen="none", **change))
    with pytest.raises(UserError, match="since no towers run on stored features"):
        check_config(config)
