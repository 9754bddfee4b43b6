"""Checkpoints as the authors of CE save them: read without their classes, every key accounted for."""

import argparse
import sys
import types
from collections import OrderedDict
from pathlib import PosixPath

import pytest
import torch
from safetensors.torch import save_file

from emcl_train.errors import UserError
from emcl_train.experts.ce import CE, CEExpert, CESizes, CEText
from emcl_train.models.experts.ce import CollaborativeExperts
from emcl_train.weights.ce import ce_to_authors, read_ce
from emcl_train.weights.training_files import read_training_file

SIZES = CESizes(
    {"rgb": CEExpert(3), "ocr": CEExpert(4, max_steps=3, clusters=2, flaky=True), "i3d.i3d.0": CEExpert(5)},
    CEText(4, max_words=5, clusters=2, ghost_clusters=1),
    width=4,
)
ran = []
"""What a class of the checkpoint did when it was built."""


class ConfigParser:
    """As programs have one: with objects of other classes in it, and filled by a function of its own."""

    def __init__(self):
        self.args = argparse.Namespace(device="0", config="configs/msrvtt/train.json")
        self.save_dir = PosixPath("data/saved")
        self.settings = OrderedDict(n_gpu=1, arch={"type": "CENet"})
        self.levels = {PosixPath("a"): 1}

    def __setstate__(self, state):
        ran.append("setstate")


class Runs:
    """Unpickled as usual, it calls a function."""

    def __reduce__(self):
        return note, ("reduce",)


def note(what):
    ran.append(what)


class Listed(list):
    """A list of the program's own, which a pickle fills item by item."""


@pytest.fixture(autouse=True)
def nothing_ran(monkeypatch):
    """The classes are there to be found, in a module of the authors' name, and nothing of them runs."""
    module = types.ModuleType("parse_config")
    for made in (ConfigParser, Runs, Listed, note):
        monkeypatch.setattr(made, "__module__", "parse_config")
        setattr(module, made.__name__, made)
    monkeypatch.setitem(sys.modules, "parse_config", module)
    ran.clear()
    yield
    assert ran == []


def model(seed=0):
    torch.manual_seed(seed)
    made = CollaborativeExperts(SIZES)
    for value in made.state_dict().values():
        if value.is_floating_point():
            torch.nn.init.normal_(value)
    return made


def theirs(made):
    state = OrderedDict(ce_to_authors(made.state_dict(), SIZES.names))
    state._metadata = OrderedDict({"": {"version": 1}})  # as state_dict() gives it
    return state


def checkpoint(state):
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([weight], lr=0.1)
    weight.sum().backward()
    optimizer.step()
    return {
        "arch": "CENet",
        "epoch": 100,
        "state_dict": state,
        "monitor_best": 0.5,
        "config": ConfigParser(),
        "optimizer": optimizer.state_dict(),
        "callbacks": Listed([Runs(), ConfigParser()]),
    }


def saved(path, content, *, old):
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    return path


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before 1.6"])
def test_a_checkpoint_is_read_and_none_of_its_classes_runs(tmp_path, old):
    wanted = model()
    path = saved(tmp_path / "trained_model.pth", checkpoint(theirs(wanted)), old=old)
    other = model(seed=1)
    state, dropped = read_ce(path, other.state_dict(), SIZES.names)
    other.load_state_dict(state)
    assert dropped == []
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in wanted.state_dict().items())

    # As usual they would have run: the file is what it is said to be.
    torch.load(path, weights_only=False)
    assert {"setstate", "reduce"} <= set(ran)
    ran.clear()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("old", [False, True], ids=["zip", "before 1.6"])
def test_pickles_of_every_protocol(tmp_path, old, protocol):
    wanted = theirs(model())
    path = tmp_path / "c.pth"
    torch.save(checkpoint(wanted), path, _use_new_zipfile_serialization=not old, pickle_protocol=protocol)
    assert all(torch.equal(value, wanted[name]) for name, value in read_training_file(path).items())


@pytest.mark.parametrize("kind", ["state_dict alone", "safetensors", "DataParallel"])
def test_other_files_of_the_same_weights(tmp_path, kind):
    wanted = theirs(model())
    path = tmp_path / ("c.safetensors" if kind == "safetensors" else "c.pth")
    if kind == "safetensors":
        save_file({name: value.contiguous() for name, value in wanted.items()}, path)
    elif kind == "DataParallel":
        saved(path, checkpoint({f"module.{name}": value for name, value in wanted.items()}), old=True)
    else:
        saved(path, wanted, old=True)
    assert read_training_file(path).keys() == wanted.keys()


def test_views_and_half_precision(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    state = {"a.part": whole[1:, ::2], "a.half": whole.half(), "a.none": torch.empty(0), "a.again": whole.T}
    for old in (False, True):
        found = read_training_file(saved(tmp_path / "c.pth", {"state_dict": state, "config": Runs()}, old=old))
        assert all(torch.equal(found[name], value.float()) for name, value in state.items())
    ran.clear()


def test_names_are_those_of_the_authors():
    with torch.device("meta"):
        made = CollaborativeExperts(CE["msrvtt"])
    state = ce_to_authors(made.state_dict(), CE["msrvtt"].names)
    expected = {
        "pooling.ocr.clusters": (300, 43),
        "pooling.ocr.clusters2": (1, 300, 43),
        "pooling.audio.batch_norm.num_batches_tracked": (),
        "text_pooling.clusters": (768, 29),
        "text_pooling.clusters2": (1, 768, 28),
        "text_pooling.batch_norm.running_var": (29,),
        "ce.moe_fc.weight": (9, 21504),
        "ce.video_dim_reduce.5.fc.weight": (768, 12900),
        "ce.video_dim_reduce.8.fc.bias": (768,),
        "ce.g_reason_1.weight": (768, 1536),
        "ce.g_reason_shared.0.running_mean": (768,),
        "ce.g_reason_shared.3.weight": (768,),
        "ce.g_reason_shared.5.weight": (768, 768),
        "ce.video_GU.8.cg.batch_norm2.bias": (768,),
        "ce.text_GU.0.fc.weight": (768, 21504),
        "ce.text_GU.0.cg.batch_norm.weight": (768,),
    }
    assert {name: tuple(state[name].shape) for name in expected} == expected
    assert len(state) == len(made.state_dict())


def test_what_old_checkpoints_have_besides_is_dropped_and_said(tmp_path):
    state = theirs(model())
    for name in ("moe_fc_bottleneck1", "moe_cg.fc", "moe_fc_proj"):
        state[f"ce.{name}.weight"] = torch.zeros(2, 2)
    path = saved(tmp_path / "c.pth", checkpoint(state), old=True)
    _, dropped = read_ce(path, model().state_dict(), SIZES.names)
    assert dropped == ["ce.moe_cg.fc.weight", "ce.moe_fc_bottleneck1.weight", "ce.moe_fc_proj.weight"]


def test_keys_that_do_not_fit_are_one_error(tmp_path):
    state = theirs(model())
    del state["ce.moe_fc.bias"]
    state["ce.video_GU.0.cg.batch_norm3.weight"] = torch.zeros(4)
    state["pooling.ocr.clusters"] = torch.zeros(4, 3)
    path = saved(tmp_path / "c.pth", checkpoint(state), old=False)
    with pytest.raises(UserError) as error:
        read_ce(path, model().state_dict(), SIZES.names)
    for said in (
        str(path),
        "ce.moe_fc.bias is missing",
        "ce.video_GU.0.cg.batch_norm3.weight is unknown",
        "pooling.ocr.clusters is [4, 3], expected [4, 2]",
        "trained on these experts",
    ):
        assert said in str(error.value)


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


BAD = {
    "no file": (lambda path: None, "is no file"),
    "empty": (lambda path: path.write_bytes(b""), "it is empty"),
    "text": (lambda path: path.write_text("hello"), "it is no file of torch.save"),
    "no weights": (lambda path: saved(path, {"config": ConfigParser()}, old=True), "no tensor"),
    "an object": (lambda path: saved(path, ConfigParser(), old=True), "holds no named tensors"),
    "no tensors": (lambda path: saved(path, {"state_dict": {"a.b": 3}}, old=False), "'a.b' is no tensor"),
    "cut": (lambda path: cut(saved(path, {"a.b": torch.ones(7)}, old=True)), "cannot be read as a checkpoint"),
    "cut zip": (lambda path: cut(saved(path, {"a.b": torch.ones(7)}, old=False)), "it is cut short"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_is_no_checkpoint_is_called_what_it_is(tmp_path, case):
    make, said = BAD[case]
    path = tmp_path / "c.pth"
    make(path)
    with pytest.raises(UserError, match=said) as error:
        read_training_file(path)
    assert str(path) in str(error.value)
