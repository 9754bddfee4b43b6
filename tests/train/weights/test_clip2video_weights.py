"""CLIP2Video's released files, `pytorch_model.bin.<number>`: every key of the specification has its place."""

import pytest
import torch
from small_clip import config, other_model, random_model, similarities

from emcl_train.errors import UserError
from emcl_train.weights.release import model_to_layout

pytestmark = pytest.mark.usefixtures("one_thread")
BLOCK = {
    "attn.in_proj_weight": (3, 1),
    "attn.in_proj_bias": (3,),
    "attn.out_proj.weight": (1, 1),
    "attn.out_proj.bias": (1,),
    "ln_1.weight": (1,),
    "ln_1.bias": (1,),
    "ln_2.weight": (1,),
    "ln_2.bias": (1,),
    "mlp.c_fc.weight": (4, 1),
    "mlp.c_fc.bias": (4,),
    "mlp.c_proj.weight": (1, 4),
    "mlp.c_proj.bias": (1,),
}
"""Shapes in widths, from the specification's table."""


def run(**settings):
    return config("difference", "aligned", **settings)


def released(model, layers):
    """What the specification lists beside `clip.`, of random numbers."""
    clip = {n: v for n, v in model_to_layout(model.state_dict(), "clip4clip")[0].items() if n.startswith("clip.")}
    positions, width = clip["clip.positional_embedding"].shape
    shapes = {
        "frame_position_embeddings.weight": (positions, width),
        "type_position_embeddings.weight": (2, width),
        "trans_layernorm.weight": (width,),
        "trans_layernorm.bias": (width,),
        "weight_center": (5, width),
        "emb_center": (5, width),
    }
    blocks = [f"transformerClip.resblocks.{i}" for i in range(layers)]
    for block in (*blocks, "frame2t_attention.resblocks.0", "actionClip.resblocks.0"):
        shapes |= {f"{block}.{name}": tuple(width * n for n in sizes) for name, sizes in BLOCK.items()}
    generator = torch.Generator().manual_seed(7)
    return clip | {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_a_released_file_loads_and_every_number_arrives(tmp_path):
    settings = run()
    state = released(random_model(settings), settings.model.temporal_layers)
    settings.model.init_from = tmp_path / "pytorch_model.bin.2"
    torch.save(state, settings.model.init_from)
    model = other_model(settings)
    back, left_out = model_to_layout(model.state_dict(), "clip4clip")
    assert left_out == ["emcl.bases"]
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], value) for name, value in state.items())
    assert torch.isfinite(similarities(model, emcl=False)).all()


@pytest.mark.parametrize(
    "name",
    ["actionClip.resblocks.0.ln_1.bias", "emb_center", "type_position_embeddings.weight", "trans_layernorm.weight"],
)
def test_a_missing_weight_is_named(tmp_path, name):
    settings = run()
    state = released(random_model(settings), settings.model.temporal_layers)
    del state[name]
    settings.model.init_from = tmp_path / "pytorch_model.bin.2"
    torch.save(state, settings.model.init_from)
    with pytest.raises(UserError, match=f"{name} is missing"):
        other_model(settings)


def test_no_checkpoint_is_an_error(tmp_path):
    """The authors' code goes on with random heads."""
    settings = run(init_from=tmp_path / "pytorch_model.bin.2")
    with pytest.raises(UserError, match=r"pytorch_model\.bin\.2 is no file; pass a checkpoint"):
        random_model(settings)


def test_clip4clips_weights_are_not_all_of_it(tmp_path):
    other = config("transformer", "mean")
    state, _ = model_to_layout(random_model(other).state_dict(), "clip4clip")
    path = tmp_path / "pytorch_model.bin.0"
    torch.save(state, path)
    with pytest.raises(UserError, match=r"type_position_embeddings.weight is missing"):
        other_model(run(init_from=path))
