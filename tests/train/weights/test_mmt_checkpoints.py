"""Checkpoints of MMT and MMT + EMCL: each key has its place, old spellings too, and nothing in a file is run."""

import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hostile import MARK

from emcl_train.errors import UserError
from emcl_train.experts.mmt import BertSizes, Expert, MMTSizes, mmt_sizes
from emcl_train.models.experts.bert import build_bert
from emcl_train.models.experts.mmt import MultiModalTransformer
from emcl_train.weights.mmt import mmt_from_authors, mmt_to_authors, read_mmt

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = MMTSizes(
    {"face": Expert(4, 3), "s3d": Expert(5, 1, 1.0)},
    width=8,
    layers=2,
    heads=2,
    inner_width=12,
    max_positions=8,
    token_types=4,
    bert=BertSizes(vocab_size=11, width=8, layers=1, heads=2, inner_width=12, max_positions=9),
)
POSITIONS = "vid_bert.embeddings.position_embeddings.weight"


def model(*, gated_video=False, seed=0, sizes=SIZES):
    torch.manual_seed(seed)
    made = MultiModalTransformer(sizes, build_bert(sizes.bert), gated_video=gated_video)
    with torch.no_grad():
        for value in made.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.randn_like(value))
    return made


def of_authors(*, gated_video=False, seed=1):
    """A state_dict by their names, beside the model that it is of."""
    made = model(gated_video=gated_video, seed=seed)
    return mmt_to_authors(made.state_dict()), made.state_dict()


def same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.parametrize("gated_video", [False, True])
def test_there_and_back(gated_video):
    theirs, ours = of_authors(gated_video=gated_video)
    other = model(gated_video=gated_video)
    found, dropped, not_there = mmt_from_authors(theirs, other.state_dict(), source="file")
    assert not_there == []
    same(found, ours)
    assert dropped == []


def gated_unit(name, width_in, width):
    of_norm = f"{name}.cg.batch_norm"
    return {f"{name}.fc.weight": [width, width_in], f"{name}.fc.bias": [width], f"{name}.cg.fc.weight": [width, width],
            f"{name}.cg.fc.bias": [width], f"{of_norm}.num_batches_tracked": [],
            **{f"{of_norm}.{part}": [width] for part in ("weight", "bias", "running_mean", "running_var")}}  # fmt: skip


def linear(name, width_in, width):
    return {f"{name}.weight": [width, width_in], f"{name}.bias": [width]}


def layers(name, count, width, inner, norm):
    found = {}
    for i in range(count):
        of = f"{name}.{i}"
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            found |= linear(f"{of}.{part}", width, width)
        found |= linear(f"{of}.intermediate.dense", width, inner) | linear(f"{of}.output.dense", inner, width)
        for part in (f"attention.output.{norm}", f"output.{norm}"):
            found |= {f"{of}.{part}.weight": [width], f"{of}.{part}.bias": [width]}
    return found


WIDTHS = {"face": 512, "ocr": 300, "rgb": 2048, "s3d": 1024, "scene": 2208, "speech": 300, "vggish": 128}


@pytest.mark.parametrize("gated_video", [False, True])
def test_keys_and_shapes_of_the_authors_on_msr_vtt(gated_video):
    """As the specification of their state_dict lists them."""
    expected = {POSITIONS: [32, 512], "vid_bert.embeddings.token_type_embeddings.weight": [19, 512],
                "vid_bert.embeddings.layer_norm.weight": [512], "vid_bert.embeddings.layer_norm.bias": [512],
                "txt_bert.embeddings.word_embeddings.weight": [28996, 768],
                "txt_bert.embeddings.position_embeddings.weight": [512, 768],
                "txt_bert.embeddings.token_type_embeddings.weight": [2, 768],
                "txt_bert.embeddings.LayerNorm.weight": [768], "txt_bert.embeddings.LayerNorm.bias": [768]}  # fmt: skip
    expected |= layers("vid_bert.encoder.layer", 4, 512, 3072, "layer_norm")
    expected |= layers("txt_bert.encoder.layer", 12, 768, 3072, "LayerNorm")
    expected |= linear("vid_bert.pooler.dense", 512, 512) | linear("txt_bert.pooler.dense", 768, 768)
    for name, width in WIDTHS.items():
        expected |= linear(f"video_dim_reduce.{name}.fc", width, 512) | linear(f"moe_fc_txt.{name}", 768, 1)
        expected |= gated_unit(f"text_GU.{name}", 768, 512)
        expected |= gated_unit(f"video_GU.{name}", 512, 512) if gated_video else {}

    with torch.device("meta"):
        made = MultiModalTransformer(mmt_sizes("msrvtt"), build_bert(BertSizes()), gated_video=gated_video)
    assert {name: list(value.shape) for name, value in mmt_to_authors(made.state_dict()).items()} == expected


def test_old_spellings_and_counted_numbers():
    theirs, ours = of_authors()
    old = {name.replace("text_GU", "text_gu"): value for name, value in theirs.items()}
    old["txt_bert.embeddings.position_ids"] = torch.arange(9)[None]
    found, dropped, _ = mmt_from_authors(old, model().state_dict(), source="file")
    same(found, ours)
    assert dropped == ["txt_bert.embeddings.position_ids"]


def test_whole_experts_may_be_on_one_side_alone():
    """As where the authors go on from HowTo100M, whose weights know two experts of seven."""
    theirs, ours = of_authors(gated_video=True)
    other = model(gated_video=True, sizes=replace(SIZES, experts={"ocr": Expert(6, 2), "s3d": Expert(5, 1)}), seed=5)
    before = other.state_dict()
    found, dropped, not_there = mmt_from_authors(theirs, before, source="file")
    assert dropped == sorted(name for name in theirs if ".face." in name)
    assert not_there == ["ocr"]
    same(found, {name: before[name] if ".ocr." in name else ours[name] for name in before})

    without = model(sizes=replace(SIZES, experts={"ocr": Expert(6, 2)})).state_dict()
    with pytest.raises(UserError, match=r"video_dim_reduce\.ocr\.fc\.weight is missing"):
        mmt_from_authors(theirs, without, source="file")


def test_experts_have_any_name():
    names = ("100%", "clip.vit-b32", "type")
    sizes = replace(SIZES, experts={name: Expert(4, number) for number, name in enumerate(names, 1)})
    made = model(sizes=sizes, seed=1)
    theirs = mmt_to_authors(made.state_dict())
    same(mmt_from_authors(theirs, model(sizes=sizes).state_dict(), source="file").weights, made.state_dict())

    for name in ("video_dim_reduce.clip%2Evit-b32.fc.weight", "moe_fc_txt.%74ype.bias"):
        assert name in theirs
    last = {name: value for name, value in theirs.items() if "%74ype" not in name}
    assert mmt_from_authors(last, made.state_dict(), source="file").not_there == ["type"]


def test_a_weight_in_both_spellings():
    theirs, _ = of_authors()
    theirs["text_gu.s3d.fc.bias"] = torch.zeros(8)
    with pytest.raises(UserError, match=r"file holds text_GU\.s3d\.fc\.bias twice, in its old spelling as well"):
        mmt_from_authors(theirs, model().state_dict(), source="file")


def test_positions_are_padded_with_rows_of_zeros():
    theirs, ours = of_authors()
    theirs[POSITIONS] = theirs[POSITIONS][:5]
    found = mmt_from_authors(theirs, model().state_dict(), source="file")[0]["video.position_embedding.weight"]
    assert torch.equal(found[:5], ours["video.position_embedding.weight"][:5])
    assert found.shape == (8, 8)
    assert not found[5:].any()


def test_poolers_may_be_missing():
    theirs, ours = of_authors()
    without = {name: value for name, value in theirs.items() if "pooler" not in name}
    assert len(theirs) - len(without) == 4
    other = model()
    found = mmt_from_authors(without, other.state_dict(), source="file").weights
    expected = {name: other.state_dict()[name] if "pooler" in name else value for name, value in ours.items()}
    same(found, expected)


def changed(**changes):
    def change(state):
        for name, value in changes.items():
            name = name.replace("__", ".")
            if value is None:
                del state[name]
            else:
                state[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(moe_fc_txt__s3d__bias=None), r"moe_fc_txt\.s3d\.bias is missing"),
        (changed(moe_fc_txt__s3d__scale=torch.zeros(1)), r"moe_fc_txt\.s3d\.scale is unknown"),
        (
            changed(video_dim_reduce__face__fc__weight=torch.zeros(8, 7)),
            r"is \[8, 7\], expected \[8, 4\]\. The experts",
        ),
        (changed(vid_bert__embeddings__position_embeddings__weight=torch.zeros(9, 8)), r"\[9, 8\].*not fewer"),
        (
            changed(vid_bert__embeddings__token_type_embeddings__weight=torch.zeros(10, 8)),
            r"Token types are 19 on MSR.*--experts\.token-types",
        ),
        (changed(video_GU__s3d__fc__bias=torch.zeros(8)), r"unknown\. Gated embeddings .* are part of MMT \+ EMCL"),
        (changed(txt_bert__embeddings__LayerNorm__bias=None), "BERT of another size"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    theirs, _ = of_authors()
    change(theirs)
    with pytest.raises(UserError, match=rf"the weights in file do not fit the model: .*{message}"):
        mmt_from_authors(theirs, model().state_dict(), source="file")


def test_weights_of_mmt_are_too_few_for_mmt_with_emcl():
    theirs, _ = of_authors()
    with pytest.raises(UserError, match=r"video_GU\.face\.fc\.weight is missing"):
        mmt_from_authors(theirs, model(gated_video=True).state_dict(), source="file")


def test_another_model():
    with pytest.raises(UserError, match=r"file is no checkpoint of MMT: it begins with clip\.visual"):
        mmt_from_authors({"clip.visual": torch.zeros(1)}, model().state_dict(), source="file")


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def their_class(tmp_path, monkeypatch):
    """The class of their configurations, which leaves a mark if an object of it is built; gone when files are read."""

    class ConfigParser:
        def __init__(self):
            self.config = {"lr": 5e-5, "save_dir": Path("out")}

        def __setstate__(self, state):
            (tmp_path / MARK).touch()

    module = types.ModuleType("parse_config")
    module.ConfigParser = ConfigParser
    ConfigParser.__module__, ConfigParser.__qualname__ = "parse_config", "ConfigParser"
    monkeypatch.setitem(sys.modules, "parse_config", module)
    return ConfigParser


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("gated_video", [False, True])
def test_a_checkpoint_of_their_program(tmp_path, monkeypatch, their_class, zipped, gated_video):
    theirs, ours = of_authors(gated_video=gated_video)
    theirs["txt_bert.embeddings.position_ids"] = torch.arange(9)[None]
    content = {
        "arch": "CENet", "epoch": 50, "state_dict": theirs, "monitor_best": 24.1, "config": their_class(),
        "n_samples": 1_600_000, "n_steps": 50_000, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}},
        "lr_scheduler": {"gamma": 0.95},
    }  # fmt: skip
    path = tmp_path / "trained_model.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    monkeypatch.delitem(sys.modules, "parse_config")

    other = model(gated_video=gated_video)
    found, dropped, _ = read_mmt(path, other.state_dict())
    assert dropped == ["txt_bert.embeddings.position_ids"]
    assert not (tmp_path / MARK).exists()
    other.load_state_dict(found)
    same(found, ours)


def test_our_own_names_are_read_too(tmp_path):
    made = model(gated_video=True, seed=1)
    torch.save(made.state_dict(), tmp_path / "weights.pt")
    same(read_mmt(tmp_path / "weights.pt", model(gated_video=True).state_dict())[0], made.state_dict())
