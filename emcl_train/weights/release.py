"""Whole retrieval models in the key layouts of CLIP4Clip, CLIP2Video and the EMCL release, beside our own.

All keep CLIP under `clip.` with OpenAI's names, the temporal transformer under `transformerClip.`, and the frame
positions as an embedding as long as CLIP's text positions, of which a model reads as many as it has frames. DRL, whose
code the EMCL release grew from, adds the networks of its token weights. The EMCL release saves no start of the bases;
the layout "emcl" has it as `emcl.mu`, which the release leaves alone.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from emcl_train.errors import UserError
from emcl_train.weights import clip2video, question_answering
from emcl_train.weights.elsewhere import require_built_here
from emcl_train.weights.keys import require_keys
from emcl_train.weights.openai import (
    NO_WEIGHTS,
    clip_from_openai,
    clip_to_openai,
    is_openai,
    layer_from_openai,
    layer_to_openai,
)

LAYOUTS = ("clip4clip", "emcl", "openai", "transformers")
TOWERS = "towers."
CLIP = "towers.clip."
OTHER_TOWERS = "towers.model."
"""Of every family but CLIP, whose weights have the names of the library that they come from."""
POSITIONS = ("temporal.position_embedding", clip2video.POSITIONS)
FRAME_POSITIONS = "frame_position_embeddings.weight"
BASES, MU = "emcl.bases", "emcl.mu"
OWN_BIAS = "own_bias"
"""Of the sigmoid loss, beside towers that bring none."""
# Beginnings of names: ours, theirs.
PREFIXES = {
    "temporal.lstm.": "lstm_visual.",
    "head.text_weight.": "text_weight_fc.",
    "head.video_weight.": "video_weight_fc.",
    **question_answering.PREFIXES,
}
TEMPORAL_LAYERS, RESBLOCKS = "temporal.layers", "transformerClip.resblocks"
HINTS = (
    *clip2video.HINTS,
    *question_answering.HINTS,
    ("transformerClip", "The temporal transformer is --model.temporal transformer, with --model.temporal-layers."),
    ("lstm_visual", "The LSTM is --model.temporal lstm."),
    (FRAME_POSITIONS, "Frame positions belong to --model.temporal transformer."),
    ("text_weight_fc", "Token weights belong to --model.head wti."),
    (MU, "The number of bases is --emcl.num-bases."),
    (BASES, "The number of bases is --emcl.num-bases, also where --emcl.mode gives it another default."),
    ("clip.visual.layer", "CLIPs with a ResNet are not supported, only those with a vision transformer."),
    ("visual.layer", "CLIPs with a ResNet are not supported, only those with a vision transformer."),
)


def towers_in(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CLIP's weights in a checkpoint of a whole model, ours or another's, under OpenAI's names, or {}.

    Towers of another family are none of CLIP's: {}.

    Raises:
        UserError: these are the weights of a run on features, which have no towers.
    """
    ours = {name.removeprefix(CLIP): value for name, value in state.items() if name.startswith(CLIP)}
    of_others = {name.removeprefix(OTHER_TOWERS) for name in state if name.startswith(OTHER_TOWERS)}
    if ours.keys() == {"logit_scale"} or (of_others and of_others <= {"logit_scale", "logit_bias"}):
        raise UserError(
            "model.init_from holds a run on features, without towers; `emcl-train export RUN FILE --layout emcl` "
            "writes it with them"
        )
    if ours:
        return clip_to_openai(ours)
    return {
        name.removeprefix("clip."): value
        for name, value in state.items()
        if name.startswith("clip.") and not NO_WEIGHTS.fullmatch(name.removeprefix("clip."))
    }


def model_to_layout(state: Mapping[str, Tensor], layout: str) -> tuple[dict[str, Tensor], list[str]]:
    """Our model's state_dict under other names.

    Args:
        state: the state_dict.
        layout: "clip4clip", "emcl" or "openai".

    Returns:
        The weights; the names of what has no place there.
    """
    clip = clip_to_openai({name.removeprefix(CLIP): value for name, value in state.items() if name.startswith(CLIP)})
    rest = {name: value for name, value in state.items() if not name.startswith(CLIP)}
    if layout == "openai":
        return clip, sorted(rest)

    result = {f"clip.{name}": value for name, value in clip.items()}
    left_out = []
    for name, value in rest.items():
        prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
        block = next((block for block in clip2video.BLOCKS if name.startswith(f"{block}.")), None)
        if name in POSITIONS:
            result[FRAME_POSITIONS] = torch.cat([value, clip["positional_embedding"][len(value) :]])
        elif name.startswith(f"{TEMPORAL_LAYERS}."):
            index, _, inside = name.removeprefix(f"{TEMPORAL_LAYERS}.").partition(".")
            result |= layer_to_openai({inside: value}, state, f"{TEMPORAL_LAYERS}.{index}", f"{RESBLOCKS}.{index}")
        elif block is not None:
            inside = name.removeprefix(f"{block}.")
            result |= layer_to_openai({inside: value}, state, block, clip2video.BLOCKS[block])
        elif name in clip2video.NAMES:
            result[clip2video.NAMES[name]] = value
        elif prefix is not None:
            result[PREFIXES[prefix] + name.removeprefix(prefix)] = value
        elif name == BASES and layout == "emcl":
            result[MU] = value.unsqueeze(0)
        else:
            left_out.append(name)

    if "temporal.lstm.weight_ih_l0" in state:  # it has them, and never reads them
        result[FRAME_POSITIONS] = clip["positional_embedding"]
    return result, left_out


def load_into(model: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """A checkpoint as the state_dict of a model that is built already.

    Args:
        model: its state_dict, which says what to expect.
        state: of the checkpoint, in our own layout, CLIP4Clip's or the EMCL release's.
        path: named in errors.

    Returns:
        The weights under our names. The bases' start is the model's own if the checkpoint has none, and so is the
        bias of the sigmoid loss, which is left out where the model's loss is another.

    Raises:
        UserError: keys do not fit; each kind is named.
    """
    if any(name.startswith((CLIP, OTHER_TOWERS)) for name in state):
        ours = {name: value for name, value in state.items() if name != OWN_BIAS or OWN_BIAS in model}
        ours = _own_bias(model) | ours
        require_keys(ours, {name: value.shape for name, value in model.items()}, source=str(path), hints=HINTS)
        return ours

    # What is no checkpoint of a whole model, or of no layout that is known.
    if is_openai(state) or any(name.startswith("text_model.") for name in state):
        raise UserError(f"model.init_from is {path}, which holds CLIP alone; pass it as --model.clip")
    if not any(name.startswith("clip.") for name in state):
        raise UserError(
            f"model.init_from is {path}, in a layout that is not known: it begins with {next(iter(state))}; expected "
            f"names that begin with clip. (CLIP4Clip, the EMCL release) or towers.clip. (our own)"
        )

    require_built_here(state, path)

    # The release's names, but for what a checkpoint may lack, or have in another number.
    expected = {name: value.shape for name, value in model_to_layout(model, "emcl")[0].items()}
    found = {name: value for name, value in state.items() if not _no_weights(name)}
    if MU not in found:
        del expected[MU]
    if "temporal.lstm.weight_ih_l0" in model and FRAME_POSITIONS not in found:
        del expected[FRAME_POSITIONS]
    positions = next((name for name in POSITIONS if name in model), None)
    if positions is not None and FRAME_POSITIONS in found:
        expected[FRAME_POSITIONS] = found[FRAME_POSITIONS].shape  # as many as were saved; how many are needed is next
        _require_positions(found[FRAME_POSITIONS], model[positions], path)

    require_keys(found, expected, source=str(path), hints=HINTS)
    return _from_release(found, model)


def _from_release(found: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    clip = clip_from_openai({name.removeprefix("clip."): v for name, v in found.items() if name.startswith("clip.")})
    result = {CLIP + name: value for name, value in clip.items()} | {BASES: model[BASES]} | _own_bias(model)
    positions = next((name for name in POSITIONS if name in model), None)
    ours_of = {theirs: ours for ours, theirs in clip2video.NAMES.items()}
    blocks = {theirs: ours for ours, theirs in clip2video.BLOCKS.items()}

    for name, value in found.items():
        prefix = next((ours for ours, theirs in PREFIXES.items() if name.startswith(theirs)), None)
        block = next((block for block in blocks if name.startswith(f"{block}.")), None)
        if name == FRAME_POSITIONS and positions is not None:
            result[positions] = value[: len(model[positions])].clone()
        elif name.startswith(f"{RESBLOCKS}."):
            index, _, inside = name.removeprefix(f"{RESBLOCKS}.").partition(".")
            result |= layer_from_openai({inside: value}, f"{TEMPORAL_LAYERS}.{index}")
        elif block is not None:
            result |= layer_from_openai({name.removeprefix(f"{block}."): value}, blocks[block])
        elif name in ours_of:
            result[ours_of[name]] = value
        elif prefix is not None:
            result[prefix + name.removeprefix(PREFIXES[prefix])] = value
        elif name == MU:
            result[BASES] = value.squeeze(0)
    return result


def _own_bias(model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {OWN_BIAS: model[OWN_BIAS]} if OWN_BIAS in model else {}


def _no_weights(name: str) -> bool:
    """What CLIP's archives hold besides weights: sizes, and a mask that is made anew."""
    return name.startswith("clip.") and bool(NO_WEIGHTS.fullmatch(name.removeprefix("clip.")))


def _require_positions(found: Tensor, ours: Tensor, path: Path) -> None:
    if found.dim() != 2 or found.shape[1] != ours.shape[1] or found.shape[0] < ours.shape[0]:
        raise UserError(
            f"{path} does not fit the model: {FRAME_POSITIONS} is {list(found.shape)}, expected at least "
            f"{list(ours.shape)}, a row for each frame; pass --data.num-frames {found.shape[0]} or less"
        )
