"""CLIP's towers: random, from a local folder, and what is refused."""

import json
import logging

import pytest
import torch
from transformers import CLIPModel
from transformers.utils import logging as transformers_logging

from emcl_train.config import ModelConfig, RandomClipConfig
from emcl_train.errors import UserError
from emcl_train.models.clip import Vocabulary, build_towers, random_clip
from emcl_train.weights.openai import PIXEL_MEAN

VOCABULARY = Vocabulary(size=20, eos_token_id=1, pad_token_id=0)
SMALL = ModelConfig(clip="random", random_clip=RandomClipConfig(width=16, layers=1, heads=2, patch_size=8))


def test_patches_of_a_random_clip_follow_from_the_frames():
    sizes = {224: 32, 336: 48, 48: 8, 16: 4, 7: 1, 1: 1, 17: 17, 226: 113}
    assert {size: RandomClipConfig().patch_of(size) for size in sizes} == sizes
    assert RandomClipConfig(patch_size=8).patch_of(224) == 8
    clip = random_clip(ModelConfig(clip="random"), Vocabulary(9, 2, 0), image_size=224, max_words=8)
    assert clip.vision_model.embeddings.num_patches == 49


def towers(config=SMALL, **sizes):
    torch.manual_seed(0)
    return build_towers(config, VOCABULARY, **({"image_size": 16, "max_words": 7} | sizes))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    towers().clip.save_pretrained(folder)
    return folder


def test_both_towers_end_in_the_same_width():
    model = towers()
    ids = torch.tensor([[5, 6, 1, 0], [7, 1, 0, 0], [9, 9, 9, 1]])
    assert model.encode_text(ids, (ids != 0).long())[0].shape == (3, 16)
    assert model.encode_frames(torch.zeros(3, 5, 3, 16, 16, dtype=torch.uint8)).shape == (3, 5, 16)


def test_padding_after_the_end_token_changes_nothing():
    model = towers().eval()
    short, long = torch.tensor([[5, 6, 1]]), torch.tensor([[5, 6, 1, 0, 0, 0]])
    expected, tokens = model.encode_text(short, torch.ones_like(short), tokens=True)
    found, padded = model.encode_text(long, (long != 0).long(), tokens=True)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(padded[:, :3], tokens)
    torch.testing.assert_close(tokens[:, 2], expected)  # the end token's is the caption's


def test_frames_are_normalised_as_clip_was_trained():
    model = towers()
    seen = []
    model.clip.vision_model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    model.encode_frames(
        torch.tensor([round(255 * mean) for mean in PIXEL_MEAN], dtype=torch.uint8)
        .view(1, 1, 3, 1, 1)
        .expand(1, 1, 3, 16, 16)
    )
    assert seen[0]["pixel_values"].abs().max() < 0.01


def test_a_local_folder_gives_back_its_weights(checkpoint):
    torch.manual_seed(1)
    loaded = build_towers(ModelConfig(clip=str(checkpoint)), VOCABULARY, image_size=16, max_words=7)
    for name, value in towers().state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0)


def test_weights_that_a_checkpoint_lacks_are_not_made_up(checkpoint, tmp_path):
    model = CLIPModel.from_pretrained(checkpoint)
    weights = {name: value for name, value in model.state_dict().items() if "visual_projection" not in name}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(UserError, match=r"lacks 1 of CLIP's weights.*visual_projection.*pass --model.clip"):
        build_towers(ModelConfig(clip=str(tmp_path)), VOCABULARY, image_size=16, max_words=7)


class Kept(logging.Handler):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@pytest.fixture
def of_transformers():
    """What transformers says, at the level of information; its settings are put back afterwards."""
    level, handler = transformers_logging.get_verbosity(), Kept()
    transformers_logging.set_verbosity_info()
    transformers_logging.add_handler(handler)
    yield handler.said
    transformers_logging.remove_handler(handler)
    transformers_logging.set_verbosity(level)


@pytest.mark.parametrize("damage", ["lacks", "another shape", "has not"])
def test_transformers_says_nothing_of_weights_that_are_named_here(checkpoint, tmp_path, damage, of_transformers):
    """And may speak again afterwards, as loud as before, also after an error."""
    model = CLIPModel.from_pretrained(checkpoint)
    weights = dict(model.state_dict())
    if damage == "lacks":
        del weights["visual_projection.weight"]
    elif damage == "another shape":
        weights["visual_projection.weight"] = torch.ones(3, 3)
    else:
        weights["similarity_head.weight"] = torch.ones(2)
    model.save_pretrained(tmp_path, state_dict=weights)

    of_transformers.clear()
    CLIPModel.from_pretrained(tmp_path, ignore_mismatched_sizes=True)
    assert of_weights(of_transformers)

    of_transformers.clear()
    with pytest.raises(UserError, match=r"visual_projection|similarity_head"):
        build_towers(ModelConfig(clip=str(tmp_path)), VOCABULARY, image_size=16, max_words=7)
    assert of_weights(of_transformers) == []

    assert transformers_logging.get_verbosity() == transformers_logging.INFO
    transformers_logging.get_logger("transformers.test").info("heard")
    assert of_transformers[-1] == "heard"


def of_weights(said):
    return [text for text in said if "similarity_head" in text or "visual_projection" in text]


def test_transformers_may_speak_again_after_weights_that_do_not_load(checkpoint, tmp_path, of_transformers):
    CLIPModel.from_pretrained(checkpoint).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="could not be loaded"):
        build_towers(ModelConfig(clip=str(tmp_path)), VOCABULARY, image_size=16, max_words=7)
    assert transformers_logging.get_verbosity() == transformers_logging.INFO


def test_weights_that_clip_has_not_are_not_left_out(checkpoint, tmp_path):
    model = CLIPModel.from_pretrained(checkpoint)
    extra = {"similarity_head.weight": torch.ones(2), "text_model.embeddings.position_ids": torch.arange(7)[None]}
    model.save_pretrained(tmp_path, state_dict=model.state_dict() | extra)
    with pytest.raises(UserError, match=r"has 1 weights that CLIP has not \(first: similarity_head.weight\)"):
        build_towers(ModelConfig(clip=str(tmp_path)), VOCABULARY, image_size=16, max_words=7)
    # A run that began when they were left out goes on.
    began = model.config.to_dict()
    build_towers(ModelConfig(clip=str(tmp_path)), VOCABULARY, image_size=16, max_words=7, recorded=began)
    del extra["similarity_head.weight"]
    model.save_pretrained(tmp_path, state_dict=model.state_dict() | extra)
    build_towers(ModelConfig(clip=str(tmp_path)), VOCABULARY, image_size=16, max_words=7)


def test_pictures_that_are_prepared_otherwise_are_refused(checkpoint, tmp_path):
    CLIPModel.from_pretrained(checkpoint).save_pretrained(tmp_path)
    config = ModelConfig(clip=str(tmp_path))
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({"image_mean": list(PIXEL_MEAN), "resample": 3}))
    build_towers(config, VOCABULARY, image_size=16, max_words=7)
    path.write_text(json.dumps({"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}))
    with pytest.raises(
        UserError, match=r"prepares pictures otherwise than CLIP, .* mean \[0.485, 0.456, 0.406\] \(CLIP"
    ):
        build_towers(config, VOCABULARY, image_size=16, max_words=7)


def test_damaged_weights_are_named(checkpoint, tmp_path):
    CLIPModel.from_pretrained(checkpoint).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="could not be loaded"):
        build_towers(ModelConfig(clip=str(tmp_path)), VOCABULARY, image_size=16, max_words=7)


@pytest.mark.parametrize(
    ("content", "message"), [(b"<html>", "begins with b'<html>'"), (b"", "it is empty"), (b"PK\3\4", "it is cut short")]
)
def test_a_damaged_file_of_torch_in_a_folder_is_called_what_it_is(checkpoint, tmp_path, content, message):
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(UserError, match=rf"could not be loaded: pytorch_model\.bin: .*{message}") as raised:
        build_towers(ModelConfig(clip=str(tmp_path)), VOCABULARY, image_size=16, max_words=7)
    assert "weights_only" not in str(raised.value)


def test_another_kind_of_checkpoint_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="'bert' instead of 'clip'"):
        build_towers(ModelConfig(clip=str(tmp_path)), VOCABULARY, image_size=16, max_words=7)


def test_data_must_fit_the_checkpoint(checkpoint):
    config = ModelConfig(clip=str(checkpoint))
    with pytest.raises(UserError, match=r"pass --data.image-size 16"):
        build_towers(config, VOCABULARY, image_size=32, max_words=7)
    with pytest.raises(UserError, match="at most 7 tokens"):
        build_towers(config, VOCABULARY, image_size=16, max_words=8)
    with pytest.raises(UserError, match="21 tokens but the text tower"):
        build_towers(config, Vocabulary(21, 1, 0), image_size=16, max_words=7)
