"""Models of OpenCLIP in less memory: layers that are computed again, compiled parts, and what is refused."""

import pytest
import torch
from small_open_clips import KINDS
from torch._dynamo.testing import CompileCounterWithBackend

from emcl_train.encoder import load
from emcl_train.errors import UserError
from emcl_train.models.towers.adapters import require_rank
from emcl_train.models.towers.open_clip import OpenCLIPTowers
from emcl_train.training import compiling

CAPTIONS = ["A red circle moves left.", "", "the blue square"]


def towers_of(folder) -> tuple[OpenCLIPTowers, dict[str, torch.Tensor]]:
    """Towers as they are trained, and one batch."""
    encoder = load(folder)
    towers = encoder._model.towers
    assert isinstance(towers, OpenCLIPTowers)
    ids, mask = encoder._tokenizer.encode(CAPTIONS)
    size = encoder.config.data.image_size
    frames = torch.randint(0, 256, (3, 2, 3, size, size), dtype=torch.uint8)
    return towers.train().requires_grad_(True), {"input_ids": ids, "attention_mask": mask, "frames": frames}


def step(towers, batch) -> dict[str, torch.Tensor]:
    """Features and gradients."""
    towers.zero_grad()
    text, _ = towers.encode_text(batch["input_ids"], batch["attention_mask"])
    frames = towers.encode_frames(batch["frames"])
    (text @ frames.mean(1).T).square().sum().backward()
    gradients = {name: value.grad for name, value in towers.named_parameters() if value.grad is not None}
    return {"text": text.detach(), "frames": frames.detach()} | gradients


def times_begun(towers) -> dict[str, int]:
    """How often the inner maps of every layer begin in what follows, by their names."""
    counts: dict[str, int] = {}
    for name, module in towers.named_modules():
        if name.endswith(".mlp") and ("blocks." in name or "resblocks." in name):
            module.register_forward_pre_hook(lambda *_, name=name: counts.update({name: counts.get(name, 0) + 1}))
    return counts


@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_are_computed_again_have_the_same_gradients(kind, folders):
    towers, batch = towers_of(folders[kind])
    plain = step(towers, batch)
    towers.recompute_layers()
    counts = times_begun(towers)
    again = step(towers, batch)
    assert again.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value, rtol=1e-6, atol=1e-7, msg=name)
    assert len(counts) == 4
    assert set(counts.values()) == {2}


def test_a_tower_whose_layers_cannot_be_computed_again_is_named(folders):
    towers, _ = towers_of(folders["siglip"])

    def cannot(enable: bool = True) -> None:
        assert not enable, "gradient checkpointing not supported"

    towers.model.visual.trunk.set_grad_checkpointing = cannot
    with pytest.raises(UserError, match=r"layers of .*vit_tiny_siglip_test.* cannot be computed again .*not supported"):
        towers.recompute_layers()


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_parts_give_the_same_features_and_keep_their_names(kind, folders, monkeypatch):
    counting = CompileCounterWithBackend("eager")
    monkeypatch.setattr(compiling, "BACKEND", counting)
    towers, batch = towers_of(folders[kind])
    plain, names = step(towers, batch), list(towers.state_dict())
    compiling.compile_parts(towers)
    compiled = step(towers, batch)
    assert counting.frame_count >= 2
    assert list(towers.state_dict()) == names
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-5, atol=1e-6, msg=name)
    with compiling.without_compiling():
        assert torch.equal(step(towers, batch)["text"], plain["text"])


def test_adapters_are_refused_by_name(folders):
    with pytest.raises(UserError, match=r"train.lora is 4, and adapters are not built for models of OpenCLIP"):
        require_rank(4, OpenCLIPTowers.described_folder(str(folders["clip"])))
