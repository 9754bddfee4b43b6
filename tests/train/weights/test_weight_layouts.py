"""Checkpoints of others: there and back with equal outputs, and every key accounted for."""

from pathlib import Path

import pytest
import torch
from small_clip import config, other_model, random_model, similarities

from emcl_train.config import ModelConfig
from emcl_train.errors import UserError
from emcl_train.models import look_at_clip
from emcl_train.weights.files import read_state
from emcl_train.weights.openai import clip_from_openai, clip_to_openai
from emcl_train.weights.release import load_into, model_to_layout

MODELS = [
    ("transformer", "text-conditioned"),
    ("mean", "mean"),
    ("lstm", "mean"),
    ("transformer", "wti"),
    ("difference", "aligned"),
    ("difference-mlp", "aligned"),
    ("difference", "mean"),
]
pytestmark = pytest.mark.usefixtures("one_thread")


def write(path, state, half=False):
    torch.save({name: value.half() if half else value for name, value in state.items()}, path)
    return path


def saved(path, content):
    torch.save(content, path)
    return path


@pytest.mark.parametrize("layout", ["own", "emcl"])
def test_a_model_without_a_bias_takes_the_sigmoid_loss_up(layout):
    state = random_model(config("mean", "mean")).state_dict()
    found = state if layout == "own" else model_to_layout(state, "emcl")[0]
    model = state | {"own_bias": torch.tensor(-10.0)}
    assert load_into(model, found, Path("weights.pt"))["own_bias"] == -10.0
    assert load_into(model, model | {"own_bias": torch.tensor(-7.0)}, Path("weights.pt"))["own_bias"] == -7.0
    assert load_into(state, model, Path("weights.pt")).keys() == state.keys()


@pytest.mark.parametrize(("temporal", "head"), MODELS)
@pytest.mark.parametrize("layout", ["clip4clip", "emcl"])
def test_a_whole_model_there_and_back(tmp_path, temporal, head, layout):
    run = config(temporal, head)
    model = random_model(run)
    state, left_out = model_to_layout(model.state_dict(), layout)
    assert left_out == ([] if layout == "emcl" else ["emcl.bases"])
    run.model.init_from = write(tmp_path / "pytorch_model.bin", state)
    back = other_model(run)
    for name, value in model.state_dict().items():
        if name != "emcl.bases" or layout == "emcl":
            assert torch.equal(back.state_dict()[name], value), name
    assert torch.equal(similarities(back, emcl=False), similarities(model, emcl=False))
    assert torch.equal(similarities(back, emcl=True), similarities(model, emcl=True)) == (layout == "emcl")


def test_our_own_weights_start_another_run(tmp_path):
    run = config()
    model = random_model(run)
    run.model.init_from = write(tmp_path / "weights.bin", model.state_dict())
    assert torch.equal(similarities(other_model(run), emcl=True), similarities(model, emcl=True))


def test_another_number_of_bases_is_named(tmp_path):
    run = config()
    run.model.init_from = write(tmp_path / "weights.bin", random_model(run).state_dict())
    run.emcl.num_bases = 3
    with pytest.raises(UserError, match=r"emcl.bases is \[5\], expected \[3\]. .* --emcl.num-bases"):
        other_model(run)


def test_the_release_has_its_names(tmp_path):
    names = set(model_to_layout(random_model(config()).state_dict(), "clip4clip")[0])
    assert names >= {
        "clip.logit_scale",
        "clip.visual.conv1.weight",
        "clip.visual.proj",
        "clip.visual.transformer.resblocks.1.attn.in_proj_weight",
        "clip.transformer.resblocks.0.mlp.c_fc.bias",
        "clip.token_embedding.weight",
        "clip.positional_embedding",
        "clip.ln_final.weight",
        "clip.text_projection",
        "transformerClip.resblocks.1.ln_2.bias",
        "transformerClip.resblocks.0.attn.out_proj.weight",
        "frame_position_embeddings.weight",
    }


def test_sizes_are_those_of_the_checkpoint(tmp_path):
    """Nothing of the towers is told: width, layers, patches and words are in the shapes."""
    run = config()
    model = random_model(run)
    run.model.init_from = write(tmp_path / "bin", model_to_layout(model.state_dict(), "emcl")[0])
    run.model.random_clip.width, run.model.random_clip.layers = 128, 7
    assert torch.equal(similarities(other_model(run), emcl=True), similarities(model, emcl=True))


def test_half_precision_and_what_is_not_read(tmp_path):
    """As CLIP4Clip saves: half precision, and the frame positions of all text positions."""
    run = config()
    model = random_model(run)
    state = model_to_layout(model.state_dict(), "clip4clip")[0]
    assert state["frame_position_embeddings.weight"].shape == (7, 16)
    extras = {"clip.input_resolution": torch.tensor(224), "clip.transformer.attn_mask": torch.zeros(7, 7)}
    state = {f"module.{name}": value for name, value in (state | extras).items()}
    run.model.init_from = write(tmp_path / "bin", state, half=True)
    back = other_model(run)
    assert {value.dtype for value in back.parameters()} == {torch.float32}
    expected = model.state_dict()["temporal.layers.1.mlp.fc1.weight"].half().float()
    assert torch.equal(back.state_dict()["temporal.layers.1.mlp.fc1.weight"], expected)
    torch.testing.assert_close(similarities(back, emcl=False), similarities(model, emcl=False), atol=0.02, rtol=0)


PREFIXES = [
    "module.",
    "model.",
    "_orig_mod.",
    "_forward_module.",
    "_fsdp_wrapped_module.",
    "_orig_mod.module.",
    "module._orig_mod.",
    "module.module.",
    "model.module._orig_mod.",
    "_forward_module.model._fsdp_wrapped_module._orig_mod.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_wrappers_put_before_all_names_is_taken_off(tmp_path, prefix):
    state = {"clip.visual.proj": torch.ones(2, 2), "module.inside": torch.ones(2)}
    found = read_state(write(tmp_path / "bin", {prefix + name: value for name, value in state.items()}))
    assert found.keys() == state.keys()

    # What one name alone has is part of that name.
    found = read_state(write(tmp_path / "bin", {"module.a.b": torch.ones(2), "c.d": torch.ones(2)}))
    assert found.keys() == {"module.a.b", "c.d"}


def test_wrappers_inside_names_are_taken_off_and_names_that_then_meet_are_refused(tmp_path):
    inside = {"clip.visual._orig_mod.proj": torch.ones(2), "clip._fsdp_wrapped_module.ln_final.bias": torch.ones(2)}
    assert read_state(write(tmp_path / "bin", inside)).keys() == {"clip.visual.proj", "clip.ln_final.bias"}
    with pytest.raises(UserError, match=r"bin holds clip\.proj twice.*clip\._orig_mod\.proj"):
        read_state(write(tmp_path / "bin", {"clip.proj": torch.ones(2), "clip._orig_mod.proj": torch.zeros(2)}))


OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(2)}, "a.b": {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
AROUND = {
    "two deep": lambda state: {"model": {"state_dict": state}},
    "three deep": lambda state: {"a": {"b": {"c": state}}, "args": {"lr": 0.1, "names": ["a"]}},
    "net": lambda state: {"net": state, "acc": 51.2, "epoch": 3},
    "weights": lambda state: {"weights": state, "optimizer": OPTIMIZER, "lr_scheduler": {"last_epoch": 3}},
    "model_ema alone": lambda state: {"model_ema": state},
    "an average": lambda state: {
        "model_ema": {"n_averaged": torch.tensor(3)} | {f"module.{k}": state[k] for k in state}
    },
    "numbers beside": lambda state: (
        state | {"epoch": 3, "loss": 0.5, "name": "run", "best": None, "betas": [0.9, 0.98]}
    ),
    "a tensor that is a number beside": lambda state: {"step": torch.tensor(3), "state_dict": state},
    "numbers as tensors beside": lambda state: state | {"epoch": torch.tensor(3), "step": torch.ones(1)},
    "an optimizer beside": lambda state: state | {"optimizer": OPTIMIZER, "epoch": 3},
    "an optimizer of names beside": lambda state: {"model": state, "optimizer": {"state.a.b.exp_avg": torch.ones(2)}},
    "other tensors beside": lambda state: {"state_dict": state, "rng": torch.ones(9), "queue": {"ptr": torch.ones(1)}},
}


@pytest.mark.parametrize("kind", AROUND)
def test_the_only_weights_in_a_checkpoint_are_found_wherever_they_are(tmp_path, kind):
    state = {
        "clip.visual.proj": torch.ones(2, 2),
        "clip.logit_scale": torch.tensor(4.6),
        "text_projection": torch.ones(3),
    }
    found = read_state(saved(tmp_path / "bin", AROUND[kind](state)))
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())


SEVERAL = {
    "model, model_ema": lambda state: {"model": state, "model_ema": {k: v + 1 for k, v in state.items()}, "epoch": 3},
    "state_dict, ema.module": lambda state: {"state_dict": state, "ema": {"module": state}},
    "model.visual, model.text": lambda state: {"model": {"visual": state, "text": state}},
    "its own top, model_ema": lambda state: state | {"model_ema": state},
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_of_several_weights_in_a_checkpoint_none_is_chosen(tmp_path, kind):
    path = saved(tmp_path / "bin", SEVERAL[kind]({"clip.visual.proj": torch.ones(2, 2)}))
    with pytest.raises(UserError, match="save one of them alone") as error:
        read_state(path)
    assert f"under {kind}" in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "content", [{}, [], 3, {"epoch": 3}, {"model": {"lr": 0.1}}, {"optimizer": OPTIMIZER}, {3: torch.ones(2)}]
)
def test_a_checkpoint_without_weights_is_refused(tmp_path, content):
    with pytest.raises(UserError, match="bin holds no named tensors; pass a state_dict"):
        read_state(saved(tmp_path / "bin", content))


def test_a_checkpoint_that_holds_itself_is_read(tmp_path):
    content = {"model": {"a.b": torch.ones(2)}}
    content["again"] = content
    assert read_state(saved(tmp_path / "bin", content)).keys() == {"a.b"}


@pytest.mark.parametrize(
    "name",
    [
        "clip.visual.transformer.resblocks.1.ln_1.weight",
        "transformerClip.resblocks.0.attn.in_proj_bias",
        "frame_position_embeddings.weight",
        "clip.logit_scale",
    ],
)
def test_a_renamed_key_is_named(tmp_path, name):
    run = config()
    state = model_to_layout(random_model(run).state_dict(), "emcl")[0]
    state[f"{name}_renamed"] = state.pop(name)
    run.model.init_from = write(tmp_path / "bin", state)
    with pytest.raises(UserError) as error:
        other_model(run)
    assert f"{name} is missing" in str(error.value)
    assert f"{name}_renamed is unknown" in str(error.value)


@pytest.mark.parametrize(
    ("saved", "built", "advice"),
    [
        (("transformer", "mean"), ("mean", "mean"), "--model.temporal transformer"),
        (("lstm", "mean"), ("transformer", "mean"), "--model.temporal lstm"),
        (("mean", "wti"), ("mean", "mean"), "--model.head wti"),
        (("difference", "aligned"), ("transformer", "mean"), "--model.temporal difference with --model.head aligned"),
        (("transformer", "mean"), ("difference", "aligned"), "--model.temporal difference with --model.head aligned"),
        (("difference-mlp", "aligned"), ("difference", "aligned"), "--model.temporal difference-mlp"),
    ],
)
def test_another_model_is_told_how_to_build_it(tmp_path, saved, built, advice):
    state = model_to_layout(random_model(config(*saved)).state_dict(), "emcl")[0]
    run = config(*built, init_from=write(tmp_path / "bin", state))
    with pytest.raises(UserError, match=advice):
        other_model(run)


OTHER_MODELS = {
    "CLIP4Clip's tightTransf": (
        ["cross.embeddings.position_embeddings.weight", "cross.pooler.ln_pool.weight", "similarity_dense.weight"],
        "a cross encoder over a caption and a clip together, such as CLIP4Clip's tightTransf and DRL's interaction xti",
    ),
    "a cross encoder alone": (["cross.transformer.resblocks.0.attn.in_proj_weight"], "a cross encoder over"),
    "its last layer alone": (["similarity_dense.bias"], "a cross encoder over"),
    "DRL's mlp": (["similarity_dense.0.weight", "similarity_dense.2.bias"], "DRL's interaction mlp"),
    "DRL's wti of one layer": (["text_weight_fc.weight", "video_weight_fc.bias"], "wti_arch 1"),
    "DRL's wti of three layers": (["text_weight_fc.4.weight"], "wti_arch 3"),
    "CLIP4Clip's 3d patches": (["clip.visual.conv2.weight"], "linear_patch 3d"),
}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("kind", OTHER_MODELS)
def test_a_checkpoint_of_another_similarity_is_refused_by_name(tmp_path, kind, wrapped):
    names, what = OTHER_MODELS[kind]
    run = config("mean", "mean")
    state = model_to_layout(random_model(run).state_dict(), "clip4clip")[0] | {name: torch.ones(2) for name in names}
    if wrapped:
        state = {"model": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}
    torch.save(state, tmp_path / "pytorch_model.bin")
    run.model.init_from = tmp_path / "pytorch_model.bin"

    for find in (lambda: look_at_clip(run.model), lambda: other_model(run)):
        with pytest.raises(UserError) as error:
            find()
        assert all(name in str(error.value) for name in names)
        assert what in str(error.value)
        assert "save its other weights alone and pass those" in str(error.value)


def test_a_run_that_an_earlier_version_began_from_such_a_file_goes_on(tmp_path):
    run = config("mean", "mean")
    model = random_model(run)
    state = model_to_layout(model.state_dict(), "clip4clip")[0] | {"cross.pooler.dense.weight": torch.ones(2)}
    run.model.init_from = write(tmp_path / "bin", state)
    run.resume = True
    run.out = tmp_path / "run"
    look_at_clip(run.model, goes_on=True)
    assert torch.equal(similarities(other_model(run), emcl=False), similarities(model, emcl=False))


def test_a_run_that_an_earlier_version_began_from_one_of_several_weights_goes_on(tmp_path):
    run = config("mean", "mean")
    model = random_model(run)
    state = model_to_layout(model.state_dict(), "clip4clip")[0]
    average = {name: value + 1 for name, value in state.items()}
    run.model.init_from = saved(tmp_path / "bin", {"model_ema": average, "model": state, "epoch": 3})
    with pytest.raises(UserError, match="under model_ema, model"):
        other_model(run)
    run.resume = True
    run.out = tmp_path / "run"
    assert torch.equal(similarities(other_model(run), emcl=False), similarities(model, emcl=False))


def test_weights_that_nobody_knows_are_refused_too(tmp_path):
    run = config("mean", "mean")
    state = model_to_layout(random_model(run).state_dict(), "clip4clip")[0]
    run.model.init_from = write(tmp_path / "bin", state | {"word_logit_weight": torch.ones(2)})
    with pytest.raises(UserError, match="word_logit_weight is unknown"):
        other_model(run)


def test_a_whole_model_is_no_clip(tmp_path):
    run = config("mean", "mean")
    path = write(tmp_path / "bin", model_to_layout(random_model(run).state_dict(), "clip4clip")[0])
    with pytest.raises(UserError, match=r"holds a whole retrieval model; pass it as --model\.init-from"):
        look_at_clip(ModelConfig(clip=str(path)))


def test_too_few_frame_positions(tmp_path):
    run = config()
    state = model_to_layout(random_model(run).state_dict(), "emcl")[0]
    state["frame_position_embeddings.weight"] = state["frame_position_embeddings.weight"][:3]
    run.model.init_from = write(tmp_path / "bin", state)
    with pytest.raises(UserError, match=r"expected at least \[4, 16\].*pass --data.num-frames 3 or less"):
        other_model(run)


def test_other_files_are_refused(tmp_path):
    run = config("mean", "mean")
    towers = model_to_layout(random_model(run).state_dict(), "openai")[0]
    run.model.init_from = write(tmp_path / "clip.pt", towers)
    with pytest.raises(UserError, match=r"holds CLIP alone; pass it as --model.clip"):
        other_model(run)
    run.model.init_from = write(tmp_path / "bin", {"backbone.weight": torch.ones(2)})
    with pytest.raises(UserError, match=r"a layout that is not known: it begins with backbone.weight"):
        other_model(run)


def test_names_of_openai_and_of_transformers_are_one_to_one():
    clip = random_model(config("mean", "mean")).towers.clip.state_dict()
    there = clip_to_openai(clip)
    back = clip_from_openai(there)
    assert back.keys() == clip.keys()
    assert all(torch.equal(back[name], value) for name, value in clip.items())
    assert there["text_projection"].shape == (16, 16)
    assert torch.equal(there["text_projection"], clip["text_projection.weight"].T)
