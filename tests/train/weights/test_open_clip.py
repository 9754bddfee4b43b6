"""Weights with OpenAI's names that are not OpenAI's: built as the file beside them says, or refused, never guessed."""

import copy
import json

import pytest
import torch
from safetensors.torch import save_file
from small_clip import save_torchscript
from transformers import CLIPConfig, CLIPModel

from emcl_train.config import ModelConfig
from emcl_train.errors import UserError
from emcl_train.models.clip import Vocabulary, archived_clip, build_towers, look_at_clip
from emcl_train.weights.openai import PIXEL_MEAN, PIXEL_STD, clip_to_openai

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:DeprecationWarning"),
]

VOCABULARY = Vocabulary(100, 3, 0)


def description(**changes):
    """OpenCLIP's of a small model: both towers 96 wide, of two layers, with heads of 24 and 48 channels."""
    model = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 16, "layers": 2, "width": 96, "head_width": 24, "patch_size": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 100, "width": 96, "heads": 2, "layers": 2},
    }
    for name, value in changes.items():
        section, _, inside = name.partition("__")
        if inside:
            model[section][inside] = value
        else:
            model[name] = value
    return model


def true_clip(model, act="gelu", text_act=None, eps=1e-5, text_eps=1e-5):
    """The same model in transformers, none of whose layers is near the identity."""
    torch.manual_seed(0)
    vision, text = model["vision_cfg"], model["text_cfg"]
    of_vision = {
        "hidden_size": vision["width"],
        "intermediate_size": int(vision["width"] * vision.get("mlp_ratio", 4)),
        "num_hidden_layers": vision["layers"],
        "num_attention_heads": vision["width"] // vision.get("head_width", 64),
        "image_size": 16,
        "patch_size": 8,
        "hidden_act": act,
        "layer_norm_eps": eps,
    }
    of_text = {
        "hidden_size": text["width"],
        "intermediate_size": int(text["width"] * text.get("mlp_ratio", 4)),
        "num_hidden_layers": text["layers"],
        "num_attention_heads": text["heads"],
        "vocab_size": 100,
        "max_position_embeddings": 8,
        "eos_token_id": 3,
        "pad_token_id": 0,
        "bos_token_id": None,
        "hidden_act": text_act or act,
        "layer_norm_eps": text_eps,
    }
    dims = {"projection_dim": model["embed_dim"]}
    clip = CLIPModel(CLIPConfig(text_config=of_text | dims, vision_config=of_vision | dims, **dims)).eval()
    with torch.no_grad():
        for name, value in clip.named_parameters():
            if value.dim() > 1 and "embed" not in name:
                value.normal_(std=2.5 / value.shape[-1] ** 0.5)
    return clip


def features(clip):
    generator = torch.Generator().manual_seed(1)
    pictures = torch.randn(3, 3, 16, 16, generator=generator)
    ids = torch.tensor([[9, 50, 7, 3, 0, 0], [8, 3, 0, 0, 0, 0], [5, 6, 7, 8, 9, 3]])
    with torch.no_grad():
        seen = clip.visual_projection(clip.vision_model(pixel_values=pictures).pooler_output)
        read = clip.text_model(input_ids=ids, attention_mask=(ids != 0).long()).pooler_output
        return torch.cat([seen, clip.text_projection(read)])


def found_in(path, **model):
    config = ModelConfig(clip=str(path), **model)
    look_at_clip(config)
    return archived_clip(config, VOCABULARY).eval()


def require_same(clip, right, tolerance=1e-4):
    torch.testing.assert_close(features(clip), features(right), atol=tolerance, rtol=tolerance)


def put(folder, state, content, name="open_clip_pytorch_model.bin"):
    """A file of weights with its description beside it."""
    path = folder / name
    save_file(state, path) if name.endswith(".safetensors") else torch.save(state, path)
    if content is not None:
        (folder / "open_clip_config.json").write_text(json.dumps(content))
    return path


VARIANTS = {
    "plain gelu": ({}, {}),
    "quick gelu": ({"quick_gelu": True}, {"act": "quick_gelu"}),
    "heads of 48 channels": ({"vision_cfg__head_width": 48, "text_cfg__heads": 4}, {}),
    "one head": ({"vision_cfg__head_width": 96, "text_cfg__heads": 1}, {}),
    "another mlp": ({"vision_cfg__mlp_ratio": 2.5417, "text_cfg__mlp_ratio": 3.0}, {}),
    "another eps": (
        {"vision_cfg__norm_kwargs": {"eps": 1e-2}, "text_cfg__norm_kwargs": {"eps": 1e-3}},
        {"eps": 1e-2, "text_eps": 1e-3},
    ),
    "gelu by tanh in one tower": ({"text_cfg__act_kwargs": {"approximate": "tanh"}}, {"text_act": "gelu_pytorch_tanh"}),
    "settings of training": (
        {"vision_cfg__patch_dropout": 0.5, "init_logit_scale": 4.6, "text_cfg__ls_init_value": None},
        {},
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_towers_are_built_as_the_description_says(tmp_path, variant):
    changes, arguments = VARIANTS[variant]
    model = description(**changes)
    right = true_clip(model, **arguments)
    path = put(tmp_path, clip_to_openai(right.state_dict()), {"model_cfg": model})
    require_same(found_in(path), right)

    # And OpenAI's rule would have given something else.
    rule = copy.deepcopy(right.config)
    for tower in (rule.vision_config, rule.text_config):
        tower.hidden_act, tower.num_attention_heads, tower.layer_norm_eps = "quick_gelu", 1, 1e-5
    guessed = CLIPModel(rule).eval()
    guessed.load_state_dict(right.state_dict())
    assert (features(guessed) - features(right)).abs().max() > 1e-3


def custom(state):
    of_text = ("transformer.", "positional_embedding", "token_embedding.", "ln_final.", "text_projection")
    return {f"text.{name}" if name.startswith(of_text) else name: value for name, value in state.items()}


FILES = {
    "safetensors": ("open_clip_model.safetensors", lambda state: state),
    "half precision": ("open_clip_pytorch_model.bin", lambda state: {k: v.half() for k, v in state.items()}),
    "OpenCLIP's training": (
        "epoch_32.pt",
        lambda state: {
            "epoch": 32,
            "name": "run",
            "state_dict": {f"module.{name}": value for name, value in state.items()},
            "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]},
        },
    ),
    "compiled": ("clip.pt", lambda state: {f"module._orig_mod.{name}": value for name, value in state.items()}),
    "towers apart": ("model.bin", custom),
    "towers apart in training": (
        "epoch_1.pt",
        lambda state: {"state_dict": {f"module.{name}": value for name, value in custom(state).items()}},
    ),
    "logit scale with a dimension": ("a.pt", lambda state: state | {"logit_scale": state["logit_scale"].reshape(1)}),
    "a mask": ("b.pt", lambda state: state | {"attn_mask": torch.zeros(8, 8)}),
}


@pytest.mark.parametrize("wrapped", [True, False], ids=["of the hub", "of OpenCLIP's own folder"])
@pytest.mark.parametrize("kind", FILES)
def test_whatever_file_openclip_wrote(tmp_path, kind, wrapped):
    name, make = FILES[kind]
    model = description(custom_text="apart" in kind)
    right = true_clip(model)
    path = put(tmp_path, make(clip_to_openai(right.state_dict())), {"model_cfg": model} if wrapped else model, name)
    clip = found_in(path)
    require_same(clip, right, 0.05 if kind == "half precision" else 1e-4)
    assert clip.logit_scale.shape == ()
    assert clip.logit_scale.item() == pytest.approx(right.logit_scale.item(), rel=1e-3)


SAME = {
    "floats that are whole": {
        "embed_dim": 32.0,
        "vision_cfg__width": 96.0,
        "vision_cfg__layers": 2.0,
        "vision_cfg__head_width": 24.0,
        "vision_cfg__mlp_ratio": 4,
        "vision_cfg__patch_size": 8.0,
        "vision_cfg__image_size": [16.0, 16],
        "text_cfg__heads": 2.0,
        "text_cfg__layers": 2.0,
        "text_cfg__width": 96.0,
        "text_cfg__context_length": 8.0,
        "text_cfg__vocab_size": 1e2,
    },
    "pairs": {"vision_cfg__patch_size": [8, 8], "vision_cfg__image_size": [16, 16]},
    "nulls of what is null": {"vision_cfg__act_kwargs": None, "text_cfg__norm_kwargs": None, "text_cfg__pad_id": 0},
    "tokens as well": {"vision_cfg__output_tokens": True, "quick_gelu": False},
    "usual pools": {"vision_cfg__pool_type": "tok", "text_cfg__pool_type": "argmax"},
}


@pytest.mark.parametrize("kind", SAME)
def test_what_says_the_same_in_other_words_builds_the_same(tmp_path, kind):
    right = true_clip(description())
    path = put(tmp_path, clip_to_openai(right.state_dict()), {"model_cfg": description(**SAME[kind])})
    require_same(found_in(path), right)


OF_EVERY_SIZE = (None, "96", 0, -96, 96.5, True, {}, [], float("nan"), float("inf"), 10**400, 2**40)
SETTINGS = {
    "embed_dim": OF_EVERY_SIZE,
    "vision_cfg.width": OF_EVERY_SIZE,
    "vision_cfg.layers": tuple(value for value in OF_EVERY_SIZE if value != []),
    "vision_cfg.head_width": OF_EVERY_SIZE,
    "vision_cfg.patch_size": (*OF_EVERY_SIZE, [8], [8, 4], [8, 8, 8], ["8", "8"], [0, 0]),
    "vision_cfg.image_size": (*OF_EVERY_SIZE, [16], [16, 8], [16, 16, 16], [None, None]),
    "vision_cfg.mlp_ratio": (None, "4", 0, -4, True, [], float("nan"), float("inf"), 10**400, 1e308),
    "vision_cfg.norm_kwargs": ("eps", 1e-6, [1], True),
    "vision_cfg.norm_kwargs.eps": (None, "1e-5", -1e-5, True, float("nan")),
    "vision_cfg.act_kwargs": ("tanh", 1, ["tanh"], True),
    "vision_cfg.act_kwargs.approximate": (None, "erf", ["tanh"], 1),
    "text_cfg.width": OF_EVERY_SIZE,
    "text_cfg.heads": OF_EVERY_SIZE,
    "text_cfg.layers": tuple(value for value in OF_EVERY_SIZE if value != []),
    "text_cfg.context_length": OF_EVERY_SIZE,
    "text_cfg.vocab_size": OF_EVERY_SIZE,
    "quick_gelu": (None, "false", "true", "", 0, 1, []),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_of_a_wrong_kind_is_named_with_what_was_expected(tmp_path, setting):
    *sections, name = setting.split(".")
    path = put(tmp_path, clip_to_openai(true_clip(description()).state_dict()), None)
    for value in SETTINGS[setting]:
        model = description()
        place = model
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
        with pytest.raises(UserError, match=r"does not describe a model: .*expected") as error:
            look_at_clip(ModelConfig(clip=str(path)))
        assert str(tmp_path / "open_clip_config.json") in str(error.value)
        assert setting in str(error.value)
        shown = json.loads(json.dumps(value))
        assert repr(shown)[:20] in str(error.value) or str(shown)[:20] in str(error.value)


NOT_BUILT = {
    "timm": ({"vision_cfg": {"timm_model_name": "convnext_base", "timm_pool": "", "image_size": 16}}, "convnext_base"),
    "a text tower of transformers": ({"text_cfg": {"hf_model_name": "roberta-base"}}, "hf_model_name roberta-base"),
    "a ResNet": ({"vision_cfg__layers": [3, 4, 6, 3]}, "which is a ResNet"),
    "CoCa": ({"multimodal_cfg": {"layers": 12}}, "multimodal_cfg"),
    "SigLIP": ({"init_logit_bias": -10, "text_cfg__pool_type": "last"}, "init_logit_bias -10, text_cfg.pool_type last"),
    "no causal mask": ({"text_cfg__no_causal_mask": True}, "text_cfg.no_causal_mask True"),
    "mean of patches": ({"vision_cfg__pool_type": "avg"}, "vision_cfg.pool_type avg"),
    "no first norm": ({"vision_cfg__no_ln_pre": True}, "vision_cfg.no_ln_pre True"),
    "scales of layers": ({"vision_cfg__ls_init_value": 1e-4}, "vision_cfg.ls_init_value 0.0001"),
    "a pooler": ({"vision_cfg__attentional_pool": "parallel"}, "vision_cfg.attentional_pool parallel"),
    "another tokenizer": ({"text_cfg__hf_tokenizer_name": "bert-base-uncased"}, "hf_tokenizer_name bert-base-uncased"),
    "captions cleaned otherwise": ({"text_cfg__tokenizer_kwargs": {"clean": "canonicalize"}}, "tokenizer_kwargs"),
    "norms of another kind": ({"text_cfg__norm_kwargs": {"eps": 1e-6, "bias": False}}, "norm_kwargs {'bias': False}"),
    "all patches": ({"vision_cfg__pool_type": ""}, "vision_cfg.pool_type ''"),
    "all words": ({"text_cfg__pool_type": None}, "text_cfg.pool_type None"),
    "what is to come": ({"vision_cfg__rotary": True}, "vision_cfg.rotary True"),
}


@pytest.mark.parametrize("kind", NOT_BUILT)
def test_a_model_that_is_not_built_here_is_refused_by_what_it_has(tmp_path, kind):
    changes, named = NOT_BUILT[kind]
    path = put(tmp_path, clip_to_openai(true_clip(description()).state_dict()), {"model_cfg": description(**changes)})
    with pytest.raises(UserError, match=r"describes a model that is not built here: .*; pass --model\.clip") as error:
        look_at_clip(ModelConfig(clip=str(path)))
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("pictures", "named"),
    [
        ({"mean": [0.5, 0.5, 0.5], "std": list(PIXEL_STD)}, "mean [0.5, 0.5, 0.5] (CLIP: [0.48"),
        ({"resize_mode": "squash"}, "resize_mode squash (CLIP: shortest)"),
        ({"interpolation": "bilinear"}, "interpolation bilinear (CLIP: bicubic)"),
        ({"size": 32}, "size 32 (the model: 16)"),
        ({"size": [16, 24]}, "size [16, 24] (the model: 16)"),
        ({"size": [16.0, 16], "mean": None, "interpolation": None}, None),
        (
            {"mean": list(PIXEL_MEAN), "std": list(PIXEL_STD), "interpolation": "bicubic", "resize_mode": "shortest"},
            None,
        ),
    ],
)
def test_pictures_are_prepared_as_clips_or_refused(tmp_path, pictures, named):
    content = {"model_cfg": description(), "preprocess_cfg": pictures}
    path = put(tmp_path, clip_to_openai(true_clip(description()).state_dict()), content)
    if named is None:
        look_at_clip(ModelConfig(clip=str(path)))
        return
    with pytest.raises(UserError, match="prepares pictures otherwise than CLIP") as error:
        look_at_clip(ModelConfig(clip=str(path)))
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vision_cfg__width": 192}, "vision hidden_size is 96 by the shapes, 192 by the description"),
        ({"vision_cfg__layers": 3}, "vision num_hidden_layers is 2 by the shapes, 3"),
        ({"vision_cfg__patch_size": 4}, "vision patch_size is 8 by the shapes, 4"),
        ({"vision_cfg__image_size": [32, 32]}, "vision image_size is 16 by the shapes, 32"),
        ({"text_cfg__mlp_ratio": 2.0}, "text intermediate_size is 384 by the shapes, 192"),
        ({"text_cfg__context_length": 77}, "text max_position_embeddings is 8 by the shapes, 77"),
        ({"text_cfg__vocab_size": 49408}, "text vocab_size is 100 by the shapes, 49408"),
        ({"embed_dim": 64}, "both towers end in 32 channels by the shapes, 64"),
    ],
)
def test_a_description_of_other_weights_is_refused(tmp_path, changes, named):
    state = clip_to_openai(true_clip(description()).state_dict())
    path = put(tmp_path, state, {"model_cfg": description(**changes)})
    with pytest.raises(UserError, match="does not describe") as error:
        found_in(path)
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "must hold a JSON object"),
        ("{", "cannot be read as OpenCLIP's description"),
        ("{}", "with vision_cfg and text_cfg"),
        (json.dumps(description(vision_cfg__head_width=25)), "head_width 25 does not divide width 96"),
        (json.dumps(description(text_cfg__heads=5)), "heads 5 do not divide width 96"),
        (json.dumps(description(text_cfg__act_kwargs={"approximate": "x"})), "expected one of none, tanh"),
        (json.dumps(description(vision_cfg__image_size=[16, 24])), "expected a square"),
        (json.dumps({k: v for k, v in description().items() if k != "embed_dim"}), "it has no embed_dim"),
        (json.dumps(description(vision_cfg__width="wide")), "does not describe a model"),
        (json.dumps(description(vision_cfg__norm_kwargs="eps")), "does not describe a model"),
        (json.dumps({"model_cfg": description(), "preprocess_cfg": {"mean": 0.5}}), "does not describe a model"),
        (
            json.dumps({"model_cfg": description(), "preprocess_cfg": {"std": ["a", "b", "c"]}}),
            r"preprocess_cfg.std is \['a', 'b', 'c'\], expected 3 numbers",
        ),
        (json.dumps({"model_cfg": description(), "preprocess_cfg": {"size": "16"}}), "preprocess_cfg.size is '16'"),
        (json.dumps({"model_cfg": description(), "preprocess_cfg": "clip"}), "preprocess_cfg is 'clip', expected"),
        (json.dumps({"preprocess_cfg": {}}), "with vision_cfg and text_cfg"),
        (json.dumps({"model_cfg": None}), "with vision_cfg and text_cfg"),
    ],
)
def test_a_broken_description_is_an_error_with_its_name(tmp_path, content, message):
    path = put(tmp_path, clip_to_openai(true_clip(description()).state_dict()), None)
    (tmp_path / "open_clip_config.json").write_text(content)
    with pytest.raises(UserError, match=message) as error:
        look_at_clip(ModelConfig(clip=str(path)))
    assert "open_clip_config.json" in str(error.value)


def test_where_nothing_says_it_is_said_that_it_was_taken_for_openais(tmp_path, capsys):
    model = description(vision_cfg__width=128, vision_cfg__head_width=64, text_cfg__width=64)
    state = clip_to_openai(true_clip(model).state_dict())
    path = put(tmp_path, state, None, "clip.pt")
    found_in(path)
    warned = " ".join(capsys.readouterr().err.split())
    assert "nothing says that its towers are OpenAI's" in warned
    assert "taken for quick_gelu and heads of 64 channels" in warned
    assert "put its open_clip_config.json beside it" in warned


def test_what_says_so_is_not_doubted(tmp_path, capsys):
    """OpenAI's archives hold their sizes; a folder of transformers has its configuration beside the weights."""
    state = clip_to_openai(true_clip(description()).state_dict())
    save_torchscript(state, tmp_path / "ViT-B-32.pt", traced=True)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(description()))  # of another file in the folder
    assert found_in(tmp_path / "ViT-B-32.pt").config.vision_config.hidden_act == "quick_gelu"

    folder = tmp_path / "transformers"
    right = true_clip(description())
    right.save_pretrained(folder)
    capsys.readouterr()
    require_same(found_in(put(folder, state, None)), right)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["name", "towers apart", "sizes"])
def test_what_cannot_be_openais_is_refused_where_nothing_says_what_it_is(tmp_path, kind):
    model = description(vision_cfg__width=128, vision_cfg__head_width=64, text_cfg__width=64, text_cfg__heads=1)
    if kind == "sizes":
        model["vision_cfg"] |= {"width": 1280, "layers": 1, "head_width": 80}
    state = clip_to_openai(true_clip(model).state_dict())
    if kind == "towers apart":
        state = custom(state)
    path = put(tmp_path, state, None, "open_clip_pytorch_model.bin" if kind == "name" else "clip.pt")
    for find in (lambda: look_at_clip(ModelConfig(clip=str(path))), lambda: found_in(path)):
        with pytest.raises(UserError, match=r"whose towers are not OpenAI's .* put OpenCLIP's open_clip_config.json"):
            find()


@pytest.mark.parametrize("beside", ["config.json", "clip_config.json"])
@pytest.mark.parametrize(
    ("tower", "changes"),
    [
        ("vision_config", {"hidden_act": "foo"}),
        ("vision_config", {"num_attention_heads": 7}),
        ("vision_config", {"hidden_size": 96.5}),
        ("vision_config", {"num_attention_heads": "4"}),
        ("text_config", {"layer_norm_eps": "small"}),
        ("text_config", {"hidden_act": 3}),
        ("text_config", None),
    ],
)
def test_a_broken_configuration_of_transformers_beside_it_is_named(tmp_path, tower, changes, beside):
    right = true_clip(description())
    content = right.config.to_dict()
    content[tower] = [1] if changes is None else content[tower] | changes
    path = put(tmp_path, clip_to_openai(right.state_dict()), None, "clip.pt")
    (tmp_path / beside).write_text(json.dumps(content))
    with pytest.raises(UserError, match="does not describe a CLIP") as error:
        found_in(path)
    named = tower if changes is None else next(iter(changes))
    assert named in str(error.value) or named.removeprefix("num_").replace("_", " ") in str(error.value)


@pytest.mark.parametrize("name", ["visual.conv1.weight", "text_projection", "ln_final.weight", "positional_embedding"])
def test_a_weight_without_the_dimensions_that_say_a_size_is_an_error(tmp_path, name):
    state = clip_to_openai(true_clip(description()).state_dict())
    path = put(tmp_path, state | {name: torch.tensor(1.0)}, {"model_cfg": description()})
    with pytest.raises(UserError, match=r"is no CLIP with OpenAI's names: .* dimensions"):
        look_at_clip(ModelConfig(clip=str(path)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("visual.trunk.stem.weight", "It has a vision tower of timm, which is not built here"),
        ("text.transformer.embeddings.word_embeddings.weight", "It has a text tower of transformers"),
    ],
)
def test_other_towers_are_told_by_their_names(tmp_path, name, message):
    state = clip_to_openai(true_clip(description()).state_dict())
    kept = "transformer." if name.startswith("visual.") else "visual."
    path = put(tmp_path, {k: v for k, v in state.items() if k.startswith(kept)} | {name: torch.ones(2)}, None)
    with pytest.raises(UserError, match=message):
        look_at_clip(ModelConfig(clip=str(path)))


def test_a_folder_of_openclip_leads_to_its_file(tmp_path):
    put(tmp_path, clip_to_openai(true_clip(description()).state_dict()), {"model_cfg": description()})
    with pytest.raises(UserError, match=r"a folder of OpenCLIP; pass .* in it, .*open_clip_pytorch_model\.bin"):
        look_at_clip(ModelConfig(clip=str(tmp_path)))


def test_whole_models_on_towers_of_openclip_take_its_description(tmp_path):
    """Where `init_from` has sizes alone, `clip` says how its towers compute."""
    model = description()
    right = true_clip(model)
    path = put(tmp_path, clip_to_openai(right.state_dict()), {"model_cfg": model})
    sizes = clip_to_openai(right.state_dict())
    towers = build_towers(ModelConfig(clip=str(path)), VOCABULARY, image_size=16, max_words=8, sizes=sizes)
    built = towers.clip.config
    assert (built.vision_config.hidden_act, built.vision_config.num_attention_heads) == ("gelu", 4)
    assert (built.text_config.hidden_act, built.text_config.num_attention_heads) == ("gelu", 2)


@pytest.mark.parametrize("kind", ["described", "described in wrong kinds", "not described", "of several weights"])
def test_a_run_goes_on_with_the_towers_that_it_began_with(tmp_path, kind):
    """Earlier versions took every such file for OpenAI's."""
    right = true_clip(description())
    state = clip_to_openai(right.state_dict())
    content = {"model_cfg": description(**({"quick_gelu": "false"} if "kinds" in kind else {}))}
    path = put(tmp_path, state, None if kind == "not described" else content)
    if kind == "of several weights":
        average = {name: value + 1 for name, value in state.items()}
        torch.save({"model_ema": average, "state_dict": state}, path)
    began = copy.deepcopy(right.config.to_dict())
    for tower in ("text_config", "vision_config"):
        began[tower] |= {"hidden_act": "quick_gelu", "num_attention_heads": 1}
    config = ModelConfig(clip=str(path))
    look_at_clip(config, goes_on=True)
    towers = build_towers(config, VOCABULARY, image_size=16, max_words=8, recorded=began)
    assert towers.clip.config.vision_config.hidden_act == "quick_gelu"
    assert towers.clip.config.text_config.num_attention_heads == 1
    assert torch.equal(towers.clip.text_projection.weight, right.text_projection.weight)
