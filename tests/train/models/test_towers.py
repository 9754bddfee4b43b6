"""Models that are not CLIP, in their real layout: tokens, pixels and features of their library, and whole runs."""

import io
import json
import shutil
import string
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file
from small_towers import FAMILIES, config_of, processor_of, write_towers
from stopped_training import stopped_after
from tiny_run import tiny_run

import emcl_train
from emcl_train import cli
from emcl_train.config import ModelConfig
from emcl_train.data.picture import Picture, square
from emcl_train.data.text import load_tokenizer
from emcl_train.encoder import load
from emcl_train.errors import UserError
from emcl_train.evaluation.run import evaluate_run
from emcl_train.models import build_model, look_ahead, look_at_clip
from emcl_train.recipes import load_recipe
from emcl_train.runs.clip_config import read_clip_config
from emcl_train.runs.contents import CLIP_CONFIG, METRICS, load_config, save_config
from emcl_train.tools.embed import embed
from emcl_train.tools.embed_lists import embed_lists
from emcl_train.tools.publish import publish_run
from emcl_train.training import trainer
from emcl_train.weights.settling import settled

CAPTIONS = [
    "A red circle moves left.",
    "the blue square, slowly!",
    "stays",
    "a green triangle moves up and then down to the right, fast, and then stays, and then moves up to the left",
]
QUIET = {"console": Console(file=io.StringIO())}
IMAGES = ("siglip", "siglip-2", "metaclip_2", "altclip", "chinese_clip")

pytestmark = pytest.mark.usefixtures("one_thread", "quick")


@pytest.fixture
def quick(monkeypatch):
    """The report's plots take longer than all the rest."""
    monkeypatch.setattr(trainer, "write_report", lambda out: out)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A small model of each family."""
    root = tmp_path_factory.mktemp("towers")
    return {family: write_towers(family, root / family) for family in FAMILIES}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Where the data set is rendered at first use."""
    return tmp_path_factory.mktemp("set") / "shapes"


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def library_model(folder):
    content = json.loads((folder / "config.json").read_text())
    return getattr(transformers, content["architectures"][0]).from_pretrained(folder).eval()


def as_trained(family, captions):
    """What SigLIP's own tokenizer class does to captions before its pieces; SigLIP 2 was trained in lower case."""
    if family == "siglip":
        captions = [caption.translate(str.maketrans("", "", string.punctuation)) for caption in captions]
    return [caption.lower() for caption in captions] if family.startswith("siglip") else captions


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_tokens_pixels_and_features_are_the_librarys(family, folders):
    folder = folders[family]
    encoder, model = load(folder), library_model(folder)
    data = encoder.config.data

    # Tokens, by the folder's own tokenizer.
    own = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    cut = {"padding": "max_length", "truncation": True, "max_length": data.max_words, "return_tensors": "pt"}
    expected = own(as_trained(family, CAPTIONS), **cut)
    ids, mask = encoder._tokenizer.encode(CAPTIONS)
    assert torch.equal(ids, expected["input_ids"])
    assert torch.equal(mask, expected["attention_mask"])
    seen = {} if family.startswith("siglip") else {"attention_mask": mask}
    of_text = model.get_text_features(input_ids=ids, **seen).pooler_output
    torch.testing.assert_close(encoder.text_features(CAPTIONS).caption, of_text, rtol=0, atol=1e-6)

    # Pixels, by the folder's own processor, of a picture of which 11 columns are cut off, one more on the right.
    pixels = np.random.default_rng(0).integers(0, 256, (37, 54, 3), dtype=np.uint8)
    ours = square(Picture(pixels, 37, 54), data.image_size, data.resize)
    picture = Image.fromarray(pixels)
    given = processor_of(family)([picture] if family == "xclip" else picture, return_tensors="pt")["pixel_values"]
    theirs = given.reshape(3, data.image_size, data.image_size)
    described = encoder._model.towers.description()["pictures"]
    mean, std = (torch.tensor(described[name]).view(3, 1, 1) for name in ("mean", "std"))
    assert ((theirs * std + mean) * 255 - ours).abs().mean() < 0.2

    # Features of the same pixels.
    frames = torch.stack([ours.roll(shift, 2) for shift in range(data.num_frames)])[None]
    found = encoder.encode_frames(frames, torch.ones(1, data.num_frames, dtype=torch.bool)).features.frames[0]
    normalized = (frames.float() / 255 - mean) / std
    if family == "xclip":
        output = model.get_video_features(pixel_values=normalized)
        of_video = getattr(output, "pooler_output", output)
    else:
        of_video = model.get_image_features(pixel_values=normalized[0]).pooler_output
    torch.testing.assert_close(found, of_video, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", IMAGES)
@torch.no_grad()
def test_tokens_are_in_the_space_of_captions(family, folders):
    """That of the place where the family reads a caption is the caption's feature."""
    encoder = load(folders[family])
    ids, mask = encoder._tokenizer.encode(CAPTIONS)
    caption, tokens = encoder._model.towers.encode_text(ids, mask, tokens=True)
    read_at = {"metaclip_2": mask.sum(1) - 1, "siglip": -torch.ones(4).long(), "siglip-2": -torch.ones(4).long()}
    places = read_at.get(family, torch.zeros(4, dtype=torch.long))
    torch.testing.assert_close(tokens[torch.arange(4), places], caption, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_trains_evaluates_embeds_and_is_loaded_without_the_folder(family, folders, root, tmp_path):
    source = shutil.copytree(folders[family], tmp_path / "source")
    parts = {"head": "mean", "temporal": "mean"} if family == "xclip" else {"head": "wti"}
    config = config_of(source, root, tmp_path / "run", **parts)
    run = trainer.train(config, **QUIET)
    lines = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    assert len([line for line in lines if line["kind"] == "train"]) == 3
    assert load_config(run).train.loss == ("sigmoid" if family.startswith("siglip") else "info-nce")
    shutil.rmtree(source)

    # The same figures and rows, from the run folder alone.
    figures = json.loads((run / "results.json").read_text())["rows"]
    evaluate_run(run, out=tmp_path / "again")
    assert json.loads((tmp_path / "again" / "results.json").read_text())["rows"] == figures
    clips = sorted((root / "videos").glob("*"))[:2] or sorted(root.rglob("*.mp4"))[:2]
    first, second = load(run), load(run)
    assert first.fingerprint == second.fingerprint
    torch.testing.assert_close(first.encode_text(CAPTIONS), second.encode_text(CAPTIONS), rtol=0, atol=1e-6)
    torch.testing.assert_close(first.encode_video(clips), second.encode_video(clips), rtol=0, atol=1e-6)

    # And from the folder that is published of it.
    publish_run(run, tmp_path / "published")
    published = load(tmp_path / "published")
    assert published.fingerprint == first.fingerprint
    torch.testing.assert_close(published.encode_text(CAPTIONS), first.encode_text(CAPTIONS), rtol=0, atol=1e-6)
    torch.testing.assert_close(published.encode_video(clips), first.encode_video(clips), rtol=0, atol=1e-6)

    # Its features in a folder, on which another run is trained, with EMCL off.
    embed(load_config(run), tmp_path / "features", run_dir=run, **QUIET)
    features = tmp_path / "features"
    on_features = config_of(
        source, root, tmp_path / "on-features", mode="off", from_features=features, clip_lr_factor=0.0, **parts
    )
    other = trainer.train(on_features, **QUIET)
    assert read_clip_config(other) == read_clip_config(run)
    torch.testing.assert_close(load(other).encode_text(CAPTIONS), first.encode_text(CAPTIONS), rtol=0, atol=1e-6)

    # Towers that lie beside features are published with what was trained on them.
    publish_run(other, tmp_path / "published-other")
    of_other = load(tmp_path / "published-other")
    torch.testing.assert_close(of_other.encode_video(clips), load(other).encode_video(clips), rtol=0, atol=1e-6)


def test_a_run_that_was_ended_goes_on(folders, root, tmp_path):
    config = config_of(folders["siglip-2"], root, tmp_path / "run", head="mean", temporal="mean")
    whole = trainer.train(replace(config, out=tmp_path / "whole"), **QUIET)

    with stopped_after(2):
        trainer.train(config, **QUIET)
    run = trainer.train(replace(config, resume=True), **QUIET)
    for name, value in load_file(whole / "model.safetensors").items():
        torch.testing.assert_close(load_file(run / "model.safetensors")[name], value, rtol=0, atol=0)

    # The bias has learnt, and weights have the names of the library.
    weights = load_file(run / "model.safetensors")
    assert weights["towers.model.logit_bias"] != -10.0
    assert {name.split(".")[1] for name in weights if name.startswith("towers.")} == {"model"}


def test_another_run_may_begin_with_its_weights(folders, root, tmp_path):
    first = trainer.train(
        config_of(folders["siglip"], root, tmp_path / "first", head="mean", temporal="mean", max_steps=1), **QUIET
    )
    config = tiny_run(root, tmp_path / "second", max_steps=0, tracker="none")
    model = ModelConfig(head="mean", temporal="mean", init_from=first / "model.safetensors")
    config = settled(replace(config, model=model), said=())
    assert (config.data.image_size, config.data.max_words, config.train.loss) == (24, 16, "sigmoid")
    second = trainer.train(config, **QUIET)
    torch.testing.assert_close(load(second).encode_text(CAPTIONS), load(first).encode_text(CAPTIONS), rtol=0, atol=0)


def run_of_towers(folder, root, out, **train):
    """A run's folder with weights as they were drawn, and its configuration; nothing is trained."""
    config = config_of(folder, root, out, head="mean", temporal="mean", **train)
    model = replace(config.model, clip=str(folder))
    save_config(out, config)
    (out / CLIP_CONFIG).write_text(json.dumps(look_at_clip(model)))
    tokenizer = load_tokenizer(config)
    tokenizer.save(out / "tokenizer.json")
    save_file(build_model(config, tokenizer).state_dict(), out / "model.safetensors")
    return config


def test_weights_of_other_towers_need_what_says_how_captions_are_prepared(folders, root, tmp_path):
    run_of_towers(folders["siglip"], root, tmp_path / "run")
    model = ModelConfig(head="mean", temporal="mean", init_from=tmp_path / "run" / "model.safetensors")
    assert look_at_clip(model)["model_type"] == "siglip"
    with pytest.raises(UserError, match=r"model.tokenizer is some/other, and SigLIP's towers .* leave out"):
        look_at_clip(replace(model, tokenizer="some/other"))
    (tmp_path / "run" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"are SigLIP's, and beside it there is no tokenizer.json, which say"):
        look_at_clip(model)
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(UserError, match=r"there is no config.json and no tokenizer.json"):
        look_at_clip(model)


@pytest.mark.parametrize(("before", "now"), [("info-nce", "sigmoid"), ("sigmoid", "info-nce")])
def test_the_bias_of_the_sigmoid_loss_may_come_and_go(folders, root, tmp_path, before, now):
    run = tmp_path / "run"
    config = run_of_towers(folders["metaclip_2"], root, run)
    model = replace(config.model, init_from=run / "model.safetensors")
    config = replace(config, train=replace(config.train, loss=before))
    save_file(build_model(config, load_tokenizer(config)).state_dict(), run / "model.safetensors")
    model = build_model(replace(config, model=model, train=replace(config.train, loss=now)), load_tokenizer(config))
    assert (model.own_bias is not None) == (now == "sigmoid")
    assert now == "info-nce" or model.own_bias == -10.0


def test_nothing_is_compared_with_nothing(folders):
    encoder = load(folders["xclip"])
    video, text = encoder.video_features([]), encoder.text_features(CAPTIONS)
    assert video.frames.shape == (0, 1, 20)
    assert encoder.similarity(text, video).shape == (4, 0)
    assert encoder.similarity(encoder.text_features([]), video).shape == (0, 0)


def test_lists_and_rows_are_those_of_the_encoder(folders, root, tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(CAPTIONS) + "\n")
    config = load_recipe("csv")
    config.model.clip = str(folders["xclip"])
    config.model.head = config.model.temporal = "mean"
    config.emcl.mode = "off"
    embed_lists(config, tmp_path / "rows", texts=tmp_path / "texts.txt", **QUIET)
    rows = torch.from_numpy(np.load(tmp_path / "rows" / "text.npy"))
    torch.testing.assert_close(rows, emcl_train.load(folders["xclip"]).encode_text(CAPTIONS), rtol=0, atol=1e-6)


# ---- what a user says, and what a model brings along -----------------------------------------------------------------


def test_a_model_brings_its_settings_along_and_what_the_user_says_stays(folders):
    config = load_recipe("jsonl")
    config.model.clip = str(folders["siglip-2"])
    brought = settled(config, said=())
    found = (brought.data.image_size, brought.data.resize, brought.data.max_words, brought.data.clean_captions)
    assert found == (24, "squash-bilinear", 64, "lower")
    assert brought.train.loss == "sigmoid"
    said = settled(config, said={"train.loss", "data.clean_captions"})
    assert (said.train.loss, said.data.clean_captions) == ("info-nce", "clip")
    assert config == replace(load_recipe("jsonl"), model=config.model)


@pytest.fixture
def trained(monkeypatch):
    """Settings that runs are trained with."""
    configs = []
    monkeypatch.setattr(trainer, "_train", lambda config, *_: configs.append(config))
    return configs


@pytest.mark.parametrize(
    ("family", "options", "expected"),
    [
        ("siglip", {"data.resize": "clip", "data.clean-captions": "clip"}, ("clip", "clip", "uniform", "sigmoid")),
        (
            "siglip",
            {"data.resize": "clip", "train.loss": "info-nce"},
            ("clip", "siglip", "uniform", "info-nce"),
        ),
        (
            "siglip",
            {"data.resize": "squash-bicubic"},
            ("squash-bicubic", "siglip", "uniform", "sigmoid"),
        ),
        (
            "xclip",
            {"data.frame-sampling": "1fps"},
            ("crop-bilinear", "clip", "1fps", "info-nce"),
        ),
    ],
)
def test_what_is_said_is_what_is_trained(folders, tmp_path, trained, family, options, expected):
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    assert command(folders[family], tmp_path / "run", *words) == 0
    (config,) = trained
    data = config.data
    assert (data.resize, data.clean_captions, data.frame_sampling, config.train.loss) == expected


def command(folder, out, *words):
    parts = ["--model.head", "mean", "--model.temporal", "mean", "--emcl.num-bases", "8"]
    model = [] if folder is None else ["--model.clip", str(folder)]
    return cli.main(["train", "shapes", "--out", str(out), *parts, *model, *words])


def test_a_file_of_settings_says_all_of_its_model_and_nothing_of_another(folders, tmp_path, trained, capsys):
    assert command(folders["siglip"], tmp_path / "run", "--data.resize", "clip", "--print-config") == 0
    file = tmp_path / "settings.yaml"
    file.write_text(capsys.readouterr().out)
    assert command(None, tmp_path / "run", "--config", str(file)) == 0
    assert command(folders["siglip-2"], tmp_path / "run", "--config", str(file)) == 0
    assert command("random", tmp_path / "run", "--config", str(file)) == 0
    found = [(one.data.resize, one.data.clean_captions, one.data.max_words, one.train.loss) for one in trained]
    usual = load_recipe("shapes")
    assert found == [
        ("clip", "siglip", 16, "sigmoid"),
        ("clip", "lower", 64, "sigmoid"),
        ("clip", "clip", usual.data.max_words, "info-nce"),
    ]


def test_a_short_file_says_what_it_names(folders, tmp_path, trained):
    (tmp_path / "short.yaml").write_text("data.clean_captions: clip\n")
    assert command(folders["siglip"], tmp_path / "run", "--config", str(tmp_path / "short.yaml")) == 0
    assert (trained[0].data.clean_captions, trained[0].train.loss) == ("clip", "sigmoid")


def test_a_file_of_clip_lets_another_model_bring_its_own(folders, tmp_path, trained, capsys):
    assert command("random", tmp_path / "run", "--data.clean-captions", "none", "--print-config") == 0
    file = tmp_path / "settings.yaml"
    file.write_text(capsys.readouterr().out)
    assert command(folders["siglip"], tmp_path / "run", "--config", str(file)) == 0
    (config,) = trained
    found = (config.data.resize, config.data.clean_captions, config.data.max_words, config.train.loss)
    assert found == ("squash-bicubic", "none", 16, "sigmoid")


def test_a_run_goes_on_from_the_recipe_with_what_its_model_brought(folders, root, tmp_path, trained):
    config = load_recipe("shapes")
    model = replace(config.model, clip=str(folders["siglip"]), head="mean", temporal="mean")
    config = replace(config, model=model, out=tmp_path / "run", train=replace(config.train, loss="max-margin"))
    own = settled(config)
    save_config(tmp_path / "run", own)
    (tmp_path / "run" / CLIP_CONFIG).write_text(json.dumps(look_at_clip(model)))
    trainer.train(replace(config, resume=True), **QUIET)
    assert trained == [replace(own, resume=True)]
    assert (
        settled(replace(config, resume=True, train=replace(config.train, loss="info-nce"))).train.loss == "max-margin"
    )


def test_clips_configurations_stay_as_they_are():
    for name in ("openai/clip-vit-base-patch32", "random", "none/such"):
        config = load_recipe("jsonl")
        config.model.clip = name
        assert settled(config, said=()) is config


def test_a_setting_that_does_not_fit_the_model_is_named(folders, root, tmp_path):
    config = config_of(folders["siglip"], root, tmp_path / "run", head="mean", temporal="mean")
    with pytest.raises(UserError, match=r"data.max_words is 10 but .* trained on captions of 16 tokens, padding"):
        look_ahead(replace(config, data=replace(config.data, max_words=10)))
    with pytest.raises(UserError, match=r"data.image_size is 16 but .* takes 24"):
        look_ahead(replace(config, data=replace(config.data, image_size=16)))


@pytest.mark.parametrize(
    ("family", "parts", "message"),
    [
        ("xclip", {"head": "mean"}, "model.temporal is transformer, which relates frames, and X-CLIP .* mean$"),
        ("xclip", {"temporal": "mean"}, "model.head is text-conditioned, which compares single frames, and X-CLIP"),
        ("xclip", {"head": "wti", "temporal": "mean"}, "model.head is wti, which compares single frames"),
        ("siglip", {"head": "aligned", "temporal": "difference"}, "model.head is aligned, which leaves out CLIP's"),
    ],
)
def test_heads_and_layers_that_a_model_cannot_feed_are_refused_by_name(folders, root, tmp_path, family, parts, message):
    config = config_of(folders[family], root, tmp_path / "run", **parts)
    with pytest.raises(UserError, match=message):
        look_ahead(config)
    with pytest.raises(UserError, match=message):
        build_model(config, load_tokenizer(config))


def test_a_video_encoder_takes_as_many_frames_as_it_was_made_for(folders, root, tmp_path):
    config = config_of(folders["xclip"], root, tmp_path / "run", head="mean", temporal="mean")
    assert config.data.num_frames == 3
    with pytest.raises(UserError, match=r"data.num_frames is 4, and X-CLIP looks at 3 frames .* --data.num-frames 3"):
        look_ahead(replace(config, data=replace(config.data, num_frames=4)))

    # Of a clip with fewer frames the last one is shown again.
    towers = build_model(config, load_tokenizer(config)).towers
    frames = torch.randint(0, 256, (1, 3, 3, 24, 24), dtype=torch.uint8)
    short = towers.encode_frames(frames, torch.tensor([[True, True, False]]))
    again = torch.stack([frames[:, 0], frames[:, 1], frames[:, 1]], dim=1)
    torch.testing.assert_close(short, towers.encode_frames(again, torch.ones(1, 3, dtype=torch.bool)))
    assert towers.rows_mask(torch.tensor([[True, False, False]])).tolist() == [[True]]


@pytest.mark.parametrize("temporal", ["lstm", "transformer", "difference", "difference-mlp"])
def test_temporal_layers_are_built_from_the_width_alone(folders, root, tmp_path, temporal):
    config = config_of(folders["metaclip_2"], root, tmp_path / "run", head="mean", temporal=temporal)
    model = build_model(config, load_tokenizer(config))
    assert model.temporal(torch.randn(2, 3, 20), torch.ones(2, 3, dtype=torch.bool)).shape == (2, 3, 20)


# ---- folders of strangers --------------------------------------------------------------------------------------------


@pytest.fixture
def siglip(folders, tmp_path):
    return shutil.copytree(folders["siglip"], tmp_path / "siglip")


def edited(folder, file, **values):
    path = folder / file
    content = json.loads(path.read_text())
    for name, value in values.items():
        content[name] = content[name] | value if isinstance(value, dict) and name.endswith("_config") else value
    path.write_text(json.dumps(content))
    return ModelConfig(clip=str(folder))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"resample": 1}, "prepares pictures in a way that is not built here: it has resample 1"),
        ({"do_pad": True}, "it has do_pad True"),
        ({"do_thumbnail": True}, "it has do_thumbnail True"),
        ({"rescale_factor": 1 / 127.5}, "it has rescale_factor 0.0078"),
        ({"size": {"height": 24, "width": 32}}, "it has size"),
        ({"resample": None}, "it has resample None"),
        ({"size": {"longest_edge": 24}}, "it has size longest_edge"),
        ({"size": {"shortest_edge": 24}}, "it has size"),
        ({"size": {"height": 32, "width": 32}}, "prepared at 32 pixels, and whose vision tower has positions for 24"),
        ({"image_mean": [0.5, 0.5]}, "is damaged: image_mean is .*, expected 3 numbers"),
        ({"image_std": [0.5, 0.5, 0.0]}, "is damaged: image_std"),
    ],
)
def test_pictures_that_are_not_built_here_are_refused_by_name(siglip, values, message):
    config = edited(siglip, "preprocessor_config.json", **values)
    with pytest.raises(UserError, match=message):
        look_at_clip(config)


def test_nulls_of_processors_stand_for_what_is_usual(folders, siglip):
    usual = ("do_center_crop", "crop_size", "do_pad", "do_normalize", "do_rescale", "rescale_factor", "data_format")
    size = {"height": 24, "width": 24, "longest_edge": None, "shortest_edge": None}
    config = edited(siglip, "preprocessor_config.json", size=size, **dict.fromkeys(usual))
    assert look_at_clip(config)["pictures"] == look_at_clip(ModelConfig(clip=str(folders["siglip"])))["pictures"]


@pytest.mark.parametrize(
    ("family", "values", "message"),
    [
        ("siglip", {"text_config": {"num_attention_heads": 5}}, "text_config.num_attention_heads is 5, which does not"),
        ("xclip", {"vision_config": {"num_attention_heads": 5}}, "vision_config.num_attention_heads is 5"),
        ("xclip", {"vision_config": {"mit_num_attention_heads": 3}}, "divide vision_config.mit_hidden_size, 20"),
        ("xclip", {"vision_config": {"mit_hidden_size": 16}}, "mit_hidden_size is 16, expected projection_dim, 20"),
        ("xclip", {"prompt_num_attention_heads": 3}, "prompt_num_attention_heads is 3, which does not divide proj"),
        ("altclip", {"text_config": {"pad_token_id": 1000000}}, "pad_token_id is 1000000, expected a number below"),
        ("altclip", {"text_config": {"max_position_embeddings": 2}}, "is 2, which leaves none for a caption"),
        ("chinese_clip", {"text_config": {"pad_token_id": 1000000}}, "pad_token_id is 1000000, expected a number"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused_by_name(folders, tmp_path, family, values, message):
    config = edited(shutil.copytree(folders[family], tmp_path / "model"), "config.json", **values)
    with pytest.raises(UserError, match=message):
        look_at_clip(config)


@pytest.mark.parametrize("family", ["altclip", "chinese_clip"])
def test_padding_that_is_null_is_the_librarys(folders, tmp_path, family):
    folder = shutil.copytree(folders[family], tmp_path / "model")
    config = edited(folder, "config.json", text_config={"pad_token_id": None})
    usual = {"altclip": 1, "chinese_clip": 0}[family]
    assert look_at_clip(config)["text_config"]["pad_token_id"] == usual
    assert settled(replace(load_recipe("csv"), model=config), said=()).data.max_words > 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text_config": {"hidden_size": 1 << 20}}, "text_config.hidden_size is 1048576, expected a whole number from"),
        ({"text_config": {"num_hidden_layers": 1000, "intermediate_size": 1 << 18}}, "describes towers of .* weights"),
        ({"vision_config": {"vision_use_head": False}}, "vision_use_head is False, expected true"),
        ({"vision_config": {"hidden_size": 32}}, "text_config.projection_size is 16, expected vision_config.hidden"),
        ({"text_config": {"hidden_act": "kernel/of:somebody"}}, "text_config.hidden_act is"),
        ({"model_type": "siglip2"}, "a checkpoint of type 'siglip2' instead of 'clip'"),
    ],
)
def test_configurations_of_strangers_are_bounded(siglip, values, message):
    config = edited(siglip, "config.json", **values)
    with pytest.raises(UserError, match=message):
        look_at_clip(config)


def test_code_in_a_folder_is_not_run(siglip):
    (siglip / "own.py").write_text("raise SystemExit('it was run')")
    edited(siglip, "config.json", auto_map={"AutoModel": "own.Model"}, architectures=["Other"])
    edited(siglip, "preprocessor_config.json", auto_map={"AutoImageProcessor": "own.Model"})
    with pytest.raises(UserError, match="names code of its own"):
        load(siglip)


def test_weights_are_all_accounted_for(siglip):
    weights = load_file(siglip / "model.safetensors")
    lacking = {name: value for name, value in weights.items() if name != "logit_bias"}
    save_file(lacking, siglip / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 of SigLIP's weights, .* \(first: logit_bias\)"):
        load(siglip)
    save_file(weights | {"other.weight": torch.ones(2)}, siglip / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"has 1 weights that SigLIP has not \(first: other.weight\)"):
        load(siglip)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pictures": None}, "pictures is 'None', expected an object"),
        (
            {"pictures": {"image_size": 24, "resize": "rounded", "mean": [0.0] * 3, "std": [1.0] * 3}},
            "pictures.resize is",
        ),
        ({"pictures": {"image_size": 24, "resize": "clip", "mean": [0, 0, 99], "std": [1, 1, 1]}}, "pictures.mean"),
        ({"text_config": {"vocab_size": 1 << 40}}, "text_config.vocab_size is"),
    ],
)
def test_a_description_in_a_run_folder_is_bounded_too(folders, tmp_path, values, message):
    described = look_at_clip(ModelConfig(clip=str(folders["siglip"])))
    (tmp_path / CLIP_CONFIG).write_text(json.dumps(described))
    assert read_clip_config(tmp_path) == described
    edited(tmp_path, CLIP_CONFIG, **values)
    with pytest.raises(UserError, match=message):
        read_clip_config(tmp_path)
