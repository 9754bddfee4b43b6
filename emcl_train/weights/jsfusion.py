"""JSFusion's retrieval model under the names of its authors' checkpoints of TensorFlow, and under ours.

**Inferred, not seen**: the names follow from the release's code and TensorFlow's defaults. No checkpoint was at hand,
so one that differs is refused with the names that it has.

What differs besides names: a linear map is stored [in, out]; a convolution [height, width, in, out], over time with a
width of 1; an LSTM has one matrix [in + state, 4 · state] with gates in the order input, candidate, forget, output. Its
forget bias of 1 is added whenever it runs, there and in our module, so the bias is stored as it is; torch's own LSTM
would need it with 1 more at the forget gate.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from emcl_train.errors import UserError
from emcl_train.weights.keys import require_keys
from emcl_train.weights.tensorflow_bundle import TensorFlowBundle

EMBEDDING, WORD_EMBED = "text_encoder.embedding.weight", "word_embed"
NORMALIZED = {
    "video_encoder.join": "vid_rnn_fc",
    "text_encoder.join": "cap_rnn/cap_rnn_fc",
    "fusion.relate.0": "multimodal/rel_h1",
    "fusion.relate_gate": "multimodal/rel_halp",
    "fusion.relate.1": "multimodal/rel_h2",
    "fusion.relate.2": "multimodal/rel_h3",
    "fusion.layers.0": "multimodal/fc1",
    "fusion.layers.1": "multimodal/fc2",
    "fusion.layers.2": "multimodal/fc3",
    "fusion.score": "multimodal/scorefn",
}
"""Linear maps with batch normalization: ours, theirs."""
CONVOLUTIONS = {f"video_encoder.convolutions.{index}": f"video_cnn/conv{index + 1}" for index in range(3)} | {
    f"fusion.convolutions.{index}.{part}": f"multimodal/conv{index + 1}{ending}"
    for index in range(3)
    for part, ending in (("content", ""), ("gate", "alp"))
}
LSTMS = {
    f"text_encoder.{ours}": f"cap_rnn/bidirectional_rnn/{theirs}/multi_rnn_cell/cell_0/basic_lstm_cell"
    for ours, theirs in (("forwards", "fw"), ("backwards", "bw"))
}
OF_NORM = {"offset": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
OF_TRAINING = re.compile(r"(?:.*/)?(?:Adam(?:_\d+)?|beta[12]_power|global_step|learning_rate)")
"""What goes on with training: Adam's two averages beside each variable, and counters."""
HINTS = (
    ("video_cnn/conv1/biases is missing", "A model for multiple choice has none there; only retrieval (RET) is built."),
    ("video_cnn/conv1/weights is [", "MSR-VTT's features have 2048 channels, those of LSMDC with sound 2176."),
    (WORD_EMBED, "The vocabulary is that of the authors' common_word_matrix.hkl, one row a word."),
)


def read_jsfusion(path: Path, expected: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """A checkpoint of TensorFlow as the state_dict of a model.

    Args:
        path: `model.ckpt-N`, or any of its files.
        expected: the state_dict of a model of the same sizes.

    Returns:
        The weights; names of what is left out, since it belongs to training alone.

    Raises:
        UserError: the files cannot be read, or their variables are not those of the model; they are named.
    """
    bundle = TensorFlowBundle(path)
    left_out = [name for name in bundle.variables if OF_TRAINING.fullmatch(name)]
    names = [name for name in bundle.variables if name not in set(left_out)]

    scope = _scope(names)
    found = {name.removeprefix(scope): _tensor(bundle, name) for name in names}
    shapes = {name: value.shape for name, value in jsfusion_to_tensorflow(expected).items()}
    require_keys(
        found,
        shapes,
        source=str(bundle.path),
        hints=HINTS,
        way_out="Names were inferred from the release's code: if yours differ, please tell us which it has",
    )
    return jsfusion_from_tensorflow(found), left_out


def jsfusion_from_tensorflow(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names for all variables of a retrieval model, which are there."""
    state = {EMBEDDING: found[WORD_EMBED]}
    for ours, theirs in NORMALIZED.items():
        state[f"{ours}.linear.weight"] = found[f"{theirs}/weights"].mT.contiguous()
        for name, other in OF_NORM.items():
            state[f"{ours}.{name}"] = found[f"{theirs}/BatchNorm/{other}"]

    for ours, theirs in CONVOLUTIONS.items():
        weight = found[f"{theirs}/weights"].permute(3, 2, 0, 1)  # [out, in, height, width]
        state[f"{ours}.weight"] = (weight.squeeze(3) if _is_over_time(ours) else weight).contiguous()
        state[f"{ours}.bias"] = found[f"{theirs}/biases"]

    for ours, theirs in LSTMS.items():
        weight, bias = found[f"{theirs}/kernel"].mT, found[f"{theirs}/bias"]
        width = len(bias) // 4
        weight = _reordered(weight)
        state[f"{ours}.input_weight"] = weight[:, :-width].contiguous()
        state[f"{ours}.state_weight"] = weight[:, -width:].contiguous()
        state[f"{ours}.bias"] = _reordered(bias)
    return state


def jsfusion_to_tensorflow(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' names for all of our state_dict."""
    found = {WORD_EMBED: state[EMBEDDING]}
    for ours, theirs in NORMALIZED.items():
        found[f"{theirs}/weights"] = state[f"{ours}.linear.weight"].mT
        for name, other in OF_NORM.items():
            found[f"{theirs}/BatchNorm/{other}"] = state[f"{ours}.{name}"]

    for ours, theirs in CONVOLUTIONS.items():
        weight = state[f"{ours}.weight"]
        found[f"{theirs}/weights"] = (weight.unsqueeze(3) if _is_over_time(ours) else weight).permute(2, 3, 1, 0)
        found[f"{theirs}/biases"] = state[f"{ours}.bias"]

    for ours, theirs in LSTMS.items():
        weight = torch.cat([state[f"{ours}.input_weight"], state[f"{ours}.state_weight"]], dim=1)
        found[f"{theirs}/kernel"] = _reordered(weight).mT
        found[f"{theirs}/bias"] = _reordered(state[f"{ours}.bias"])
    return found


def _reordered(gates: Tensor) -> Tensor:
    """Gates along the first axis with the second and the third exchanged, which is its own inverse."""
    into, second, third, out = gates.chunk(4)
    return torch.cat([into, third, second, out])


def _is_over_time(convolution: str) -> bool:
    return convolution.startswith("video_encoder.")


def _scope(names: Iterable[str]) -> str:
    """What stands before all names, such as `model/`; "" where nothing does."""
    names = list(names)
    found = next((name.removesuffix(WORD_EMBED) for name in names if name.endswith(f"/{WORD_EMBED}")), "")
    return found if all(name.startswith(found) for name in names) else ""


def _tensor(bundle: TensorFlowBundle, name: str) -> Tensor:
    array = bundle.read(name)
    if array.dtype.kind != "f":
        raise UserError(f"{bundle.path} has {name} of type {array.dtype}, expected numbers with a fraction")
    value = torch.from_numpy(array)
    return value.float() if value.dtype == torch.float16 else value
