"""JSFusion through the names of its authors: our model to a file of TensorFlow and back, and what does not fit."""

import numpy as np
import pytest
import torch
from bundle_writer import write_bundle
from small_jsfusion import captions, small_model, videos

from emcl_train.errors import UserError
from emcl_train.models.experts.jsfusion import JSFusion
from emcl_train.weights.jsfusion import jsfusion_to_tensorflow, read_jsfusion

TRAINING = {
    "global_step": np.array(400_000, np.int64),
    "beta1_power": np.array(0.1, np.float32),
    "OptimizeLoss/beta2_power": np.array(0.1, np.float32),
    "OptimizeLoss/word_embed/Adam": np.zeros((11, 5), np.float32),
    "word_embed/Adam_1": np.zeros((11, 5), np.float32),
    "multimodal/fc1/BatchNorm/beta/Adam": np.zeros(4, np.float32),
}


def variables(model):
    return {name: value.detach().numpy() for name, value in jsfusion_to_tensorflow(model.state_dict()).items()}


def scores(model):
    torch.manual_seed(1)
    video, text = videos([40, 9]), captions([3, 40])
    with torch.no_grad():
        return model.eval().scores(model.encode_video(*video), model.encode_text(*text))


@pytest.mark.parametrize("scope", ["", "model/"])
def test_there_and_back(tmp_path, scope):
    model = small_model()
    named = {f"{scope}{name}": value for name, value in variables(model).items()}
    path = write_bundle(tmp_path / "model.ckpt-400000", named | TRAINING)

    other = JSFusion(model.sizes).double()
    state, left_out = read_jsfusion(path, other.state_dict())
    other.load_state_dict(state)

    torch.testing.assert_close(scores(other), scores(model), rtol=0, atol=1e-12)
    assert sorted(left_out) == sorted(TRAINING)


def test_every_variable_of_the_specification_and_no_other():
    """Names and shapes as the specification has them, for the widths of the small model."""
    found = {name: value.shape for name, value in variables(small_model()).items()}

    expected = {"word_embed": (11, 5)}
    for number, width_in in ((1, 6), (2, 8), (3, 8)):
        expected |= {f"video_cnn/conv{number}/weights": (3, 1, width_in, 8), f"video_cnn/conv{number}/biases": (8,)}
    for direction in ("fw", "bw"):
        cell = f"cap_rnn/bidirectional_rnn/{direction}/multi_rnn_cell/cell_0/basic_lstm_cell"
        expected |= {f"{cell}/kernel": (8, 12), f"{cell}/bias": (12,)}
    linear = {
        "vid_rnn_fc": (10, 7), "cap_rnn/cap_rnn_fc": (6, 7), "multimodal/rel_h1": (7, 7), "multimodal/rel_halp": (7, 1),
        "multimodal/rel_h2": (7, 7), "multimodal/rel_h3": (7, 7), "multimodal/fc1": (4, 4), "multimodal/fc2": (4, 4),
        "multimodal/fc3": (4, 3), "multimodal/scorefn": (3, 1),
    }  # fmt: skip
    for name, shape in linear.items():
        expected[f"{name}/weights"] = shape
        expected |= {f"{name}/BatchNorm/{one}": shape[1:] for one in ("beta", "moving_mean", "moving_variance")}
    for number, width_in in ((1, 7), (2, 4), (3, 4)):
        for ending, width in (("", 4), ("alp", 1)):
            name = f"multimodal/conv{number}{ending}"
            expected |= {f"{name}/weights": (3, 3, width_in, width), f"{name}/biases": (width,)}

    assert found == expected


def test_half_precision_is_read_as_float32(tmp_path):
    model = small_model()
    halves = {name: value.astype(np.float16) for name, value in variables(model).items()}
    state, _ = read_jsfusion(write_bundle(tmp_path / "model.ckpt-1", halves), model.state_dict())
    assert {value.dtype for value in state.values()} == {torch.float32}


def changed(drop=(), **added):
    found = variables(small_model())
    return {name: value for name, value in found.items() if name not in drop} | added


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (changed(drop=["multimodal/fc2/weights"]), "multimodal/fc2/weights is missing"),
        (changed(stranger=np.ones(2)), "stranger is unknown.*were inferred"),
        (changed(word_embed=np.ones((12, 5))), r"word_embed is \[12, 5\], expected \[11, 5\].*common_word_matrix"),
        (changed(**{"video_cnn/conv1/weights": np.ones((3, 1, 7, 8))}), "2048 channels"),
        (changed(drop=["video_cnn/conv1/biases"]), "multiple choice"),
        (changed(word_embed=np.ones((11, 5), np.int32)), "word_embed of type int32"),
        (changed(**{"word_embed/ExponentialMovingAverage": np.ones((11, 5))}), "ExponentialMovingAverage is unknown"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, found, message):
    path = write_bundle(tmp_path / "model.ckpt-1", found)
    with pytest.raises(UserError, match=message):
        read_jsfusion(path, small_model().state_dict())
