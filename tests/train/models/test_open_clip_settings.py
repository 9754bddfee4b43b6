"""What is read of OpenCLIP's description of a model, and what is said where its library is not installed."""

import json

import numpy as np
import pytest
from PIL import Image

from emcl_train.config import ModelConfig
from emcl_train.data.cleaning import CLEAN
from emcl_train.data.picture import Picture, square
from emcl_train.errors import UserError
from emcl_train.models import look_at_clip
from emcl_train.reading.open_clip_fields import words_of
from emcl_train.reading.picture_fields import NotBuilt, pictures_of_open_clip, pictures_of_record
from emcl_train.reading.tower_fields import FIELDS, OPEN_CLIP
from emcl_train.runs import open_clip_library
from emcl_train.weights.prepared import family_of

HERE = FIELDS[OPEN_CLIP]
MODEL = {
    "embed_dim": 16,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {"image_size": 24, "timm_model_name": "vit_base_patch16_siglip_224", "timm_proj": None},
    "text_cfg": {"width": 16, "heads": 2, "layers": 1, "context_length": 16, "vocab_size": 60, "pool_type": "last"},
}


def test_a_description_is_filled_in_once_and_read_again_as_it_is():
    known = HERE.known({"model_cfg": MODEL})
    assert HERE.known(MODEL | {"model_type": OPEN_CLIP}) == known  # of old files, which are the model alone
    assert HERE.known(known) == HERE.known(json.loads(json.dumps(known))) == known
    assert known["model_cfg"]["vision_cfg"]["timm_proj"] is None
    assert "timm_model_pretrained" not in known["model_cfg"]["vision_cfg"]
    assert known["model_cfg"]["text_cfg"]["pool_type"] == "last"
    assert (HERE.loss(known), HERE.positions(known), HERE.image_size(known)) == ("sigmoid", 16, 24)


@pytest.mark.parametrize(
    ("section", "setting", "message"),
    [
        ("text_cfg", {"embed_cls": True}, "text_cfg.embed_cls, the text tower of a CoCa"),
        ("text_cfg", {"use_flash": True}, "text_cfg.use_flash is 'True', which is not built here"),
        ("text_cfg", {"act_kwargs": {"inplace": True}}, "text_cfg.act_kwargs.inplace is not built here"),
        ("vision_cfg", {"timm_model_name": "local-dir:/tmp/x"}, "expected a name of timm's own list, without a schema"),
        ("vision_cfg", {"timm_pool": "sum"}, "vision_cfg.timm_pool is 'sum', expected one of"),
        ("vision_cfg", {"image_size": 1 << 20}, "vision_cfg.image_size is 1048576, expected a whole number"),
        ("vision_cfg", {"image_size": 1025}, "vision_cfg.image_size is 1025, expected a whole number"),
        ("text_cfg", {"context_length": 65536}, "text_cfg.context_length is 65536, expected a whole number"),
        (None, {"embed_dim": 65536}, "embed_dim is 65536, expected a whole number"),
        (None, {"embed_dim": None}, "embed_dim is None, expected a whole number"),
        (None, {"text_cfg": []}, r"text_cfg is '\[\]', expected an object"),
    ],
)
def test_settings_of_a_wrong_kind_and_unknown_ones_are_named(section, setting, message):
    model = MODEL | ({section: MODEL[section] | setting} if section else setting)
    with pytest.raises(ValueError, match=message):
        HERE.known(model)


def test_captions_are_cleaned_as_the_description_says():
    def words(**text):
        return words_of(MODEL | {"text_cfg": MODEL["text_cfg"] | text})

    assert words().cleaning == "clip"
    assert words(hf_tokenizer_name="some/bert").cleaning == "whitespace"
    assert words(tokenizer_kwargs={"clean": "canonicalize"}).cleaning == "canonicalize"
    caption = " The_BLUE  square,\tit's l&amp;rsquo;été! "
    assert CLEAN["canonicalize"](caption) == "the blue square its lété"
    assert CLEAN["whitespace"](caption) == "The_BLUE square, it's l'été!"
    with pytest.raises(ValueError, match="tokenizer_mode is 'clips', which is not built here"):
        words(tokenizer_mode="clips")
    with pytest.raises(ValueError, match=r"tokenizer_kwargs.language is not built here"):
        words(hf_tokenizer_name="a/b", tokenizer_kwargs={"language": "eng_Latn"})


def test_pictures_are_prepared_as_the_description_says():
    found = pictures_of_open_clip({"mean": 0.5, "std": [0.5] * 3, "interpolation": "bilinear", "size": [9, 9]}, 24)
    assert (found.image_size, found.resize, found.mean) == (24, "clip-bilinear", (0.5, 0.5, 0.5))
    assert pictures_of_record(found.as_json()) == found
    assert pictures_of_open_clip(None, 24).resize == "clip"
    with pytest.raises(NotBuilt, match="resize_mode longest, interpolation bicubic"):
        pictures_of_open_clip({"resize_mode": "longest"}, 24)

    # The crop begins at half of what is cut off, rounded to the even number: 17 of 34 columns.
    pixels = np.random.default_rng(0).integers(0, 256, (24, 31, 3), dtype=np.uint8)
    whole = np.asarray(Image.fromarray(pixels))
    cut = square(Picture(pixels, 24, 31), 24, "clip-bilinear").permute(1, 2, 0).numpy()
    assert np.array_equal(cut, whole[:, 4:28])


def test_without_the_library_its_models_are_refused_with_the_line_that_installs_it(tmp_path, monkeypatch):
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL}))
    monkeypatch.setattr(open_clip_library, "missing_of", lambda extra: ["open_clip_torch"])
    monkeypatch.setattr("emcl_train.extras._is_there", lambda module: module not in ("open_clip", "timm"))
    assert family_of(str(tmp_path)) == OPEN_CLIP
    with pytest.raises(
        UserError, match=r"open_clip_torch and timm of the extra \"openclip\" are not installed; .*openclip"
    ):
        look_at_clip(ModelConfig(clip=str(tmp_path), head="mean", temporal="mean"))
