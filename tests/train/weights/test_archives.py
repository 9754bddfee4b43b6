"""OpenAI's archives, plain state dicts with their names, and files that are neither."""

import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from small_clip import config, other_model, random_model, save_torchscript, similarities

from emcl_train.errors import UserError
from emcl_train.weights.files import read_state
from emcl_train.weights.openai import clip_to_openai

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def model():
    return random_model(config("mean", "mean"))


@pytest.fixture(scope="module")
def openai(model):
    return clip_to_openai(model.towers.clip.state_dict())


def loaded(path, temporal="mean"):
    """A model on the towers of an archive. Heads are 1 by OpenAI's rule, and told, since width 16 is no multiple."""
    run = config(temporal, "mean", clip=str(path))
    return other_model(run)


def with_one_head(model):
    for layer in model.modules():
        if hasattr(layer, "num_heads"):
            layer.num_heads, layer.head_dim = 1, layer.embed_dim
            layer.scale = layer.head_dim**-0.5
    return model


@pytest.mark.parametrize("kind", ["traced", "scripted", "state_dict", "wrapped", "safetensors"])
def test_the_towers_of_an_archive(tmp_path, model, openai, kind):
    path = tmp_path / f"ViT-tiny.{'safetensors' if kind == 'safetensors' else 'pt'}"
    if kind in ("traced", "scripted"):
        save_torchscript(openai, path, traced=kind == "traced")
    elif kind == "safetensors":
        save_file(openai, path)
    else:
        torch.save({"state_dict": openai, "epoch": 3} if kind == "wrapped" else openai, path)
    found, expected = loaded(path).towers.clip, model.towers.clip
    half = kind in ("traced", "scripted")
    for name, value in expected.state_dict().items():
        rounded = value.half().float() if half and value.dim() > 1 else value
        assert torch.equal(found.state_dict()[name], rounded), name
    assert found.config.text_config.hidden_act == "quick_gelu"
    assert found.config.text_config.num_attention_heads == 1
    tolerance = 0.02 if half else 1e-6
    right = similarities(with_one_head(random_model(config("mean", "mean"))), emcl=False)
    torch.testing.assert_close(similarities(loaded(path), emcl=False), right, atol=tolerance, rtol=0)


def test_the_temporal_transformer_starts_from_the_text_tower(tmp_path, openai):
    torch.save(openai, tmp_path / "clip.pt")
    temporal, text = loaded(tmp_path / "clip.pt", "transformer").temporal, openai
    assert torch.equal(temporal.position_embedding, text["positional_embedding"][:4])
    assert torch.equal(temporal.layers[1].mlp.fc2.weight, text["transformer.resblocks.1.mlp.c_proj.weight"])


def test_keys_of_an_archive_are_accounted_for(tmp_path, openai):
    state = dict(openai)
    state["ln_finale.weight"] = state.pop("ln_final.bias")
    torch.save(state, tmp_path / "clip.pt")
    with pytest.raises(UserError, match=r"ln_final.bias is missing; ln_finale.weight is unknown"):
        loaded(tmp_path / "clip.pt")


def test_a_resnet_is_refused(tmp_path, openai):
    state = {name: value for name, value in openai.items() if not name.startswith("visual.")}
    torch.save(state | {"visual.layer1.0.conv1.weight": torch.ones(1)}, tmp_path / "RN50.pt")
    with pytest.raises(UserError, match="only vision transformers are supported"):
        loaded(tmp_path / "RN50.pt")


class Evil:
    """Unpickled as usual, it would run what it names."""

    def __reduce__(self):
        return print, ("code was run",)


def test_code_in_a_file_is_never_run(tmp_path, openai, capsys):
    torch.save(openai | {"visual.proj": Evil()}, tmp_path / "saved.pt")
    save_torchscript(openai, tmp_path / "script.pt", traced=True)
    evil = tmp_path / "evil.pt"
    with zipfile.ZipFile(tmp_path / "script.pt") as archive, zipfile.ZipFile(evil, "w") as copy:
        for name in archive.namelist():
            copy.writestr(name, pickle.dumps(Evil(), 2) if name.endswith("/data.pkl") else archive.read(name))
    for path in (tmp_path / "saved.pt", evil):
        with pytest.raises(UserError, match="Only tensors are read, never code"):
            read_state(path)
    assert "code was run" not in capsys.readouterr().out


def a_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "x")


NO_WEIGHTS_IN = {
    "empty": (lambda path: path.write_bytes(b""), "it is empty"),
    "text": (lambda path: path.write_text("<!DOCTYPE html>"), r"no file of torch.save: it begins with b'<!DOCTYPE"),
    "cut": (lambda path: path.write_bytes(b"PK\x03\x04 broken"), "it is cut short"),
    "zip": (a_zip, "it is a zip archive of other files"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"a": [1]})), "it is a pickle, damaged or not of tensors"),
    "module": (lambda path: torch.save(torch.nn.Linear(1, 1), path), r"it holds torch.nn.modules.linear.Linear beside"),
}


@pytest.mark.parametrize("case", NO_WEIGHTS_IN)
def test_a_file_that_is_no_checkpoint_is_called_what_it_is(tmp_path, case):
    """In our words: torch's advise to run what the file holds."""
    write, message = NO_WEIGHTS_IN[case]
    write(tmp_path / "weights.pt")
    with pytest.raises(UserError, match=message) as raised:
        read_state(tmp_path / "weights.pt")
    assert "weights_only" not in str(raised.value)
    (tmp_path / "weights.pt").rename(tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"weights.safetensors cannot be read as weights"):
        read_state(tmp_path / "weights.safetensors")


def test_a_file_without_weights(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="holds no named tensors"):
        read_state(tmp_path / "list.pt")
    with pytest.raises(UserError, match="is no file"):
        read_state(tmp_path / "absent.pt")
