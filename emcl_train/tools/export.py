"""A run's selected weights under the names of other programs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from transformers import CLIPConfig, PreTrainedTokenizerFast

from emcl_train.config import RunConfig, require_towers
from emcl_train.data.features import TOWERS, WAY_OUT, read_features
from emcl_train.data.text import CaptionTokenizer
from emcl_train.errors import UserError
from emcl_train.evaluation.provenance import hash_of_towers, require_features_of
from emcl_train.kinds import TOWERS as FAMILIES
from emcl_train.runs.clip_config import build_clip, family_in, read_clip_config
from emcl_train.runs.contents import TOKENIZER, WEIGHTS, load_config
from emcl_train.runs.files import give_usual_mode, require_free, whole_folder, write_atomic, write_json_atomic
from emcl_train.runs.finished import say_if_unfinished
from emcl_train.runs.lock import making
from emcl_train.runs.state import read_tensors, read_weights
from emcl_train.weights.openai import PIXEL_MEAN, PIXEL_STD, follows_openai, openai_rule, unseen_in
from emcl_train.weights.release import CLIP, OTHER_TOWERS, model_to_layout

PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "CLIPProcessor"


def export_run(run_dir: Path, out: Path, program: str, say: Callable[[str], object] = print) -> list[str]:
    """Write a run's weights under the names that another program gives them.

    Args:
        run_dir: folder of the run.
        out: file to write, or for "transformers" a folder.
        program: "clip4clip", "emcl", "openai" or "transformers".
        say: takes a sentence on what was written, and on what has no name there.

    Returns:
        Names of the tensors that have none there, and were left out.

    Raises:
        UserError: the run has no weights yet, or `out` exists.
    """
    with making(out):
        require_free(out, "choose another name")
        return _export(run_dir, out, program, say)


def _export(run_dir: Path, out: Path, program: str, say: Callable[[str], object]) -> list[str]:
    config = load_config(run_dir)
    require_towers(config, "export")
    described = read_clip_config(run_dir)
    if described is not None and family_in(described) != "clip":
        raise UserError(
            f"{run_dir} has towers of {FAMILIES[family_in(described)].label}, and all layouts of export are CLIP's; "
            f"its {WEIGHTS} has the weights under the names of the library that they come from, behind {OTHER_TOWERS}"
        )
    state = whole_weights(config, run_dir)
    say_if_unfinished(run_dir)

    if program == "transformers":
        left_out = export_transformers(run_dir, state, out)
    else:
        clip_config = read_clip_config(run_dir)
        lost = require_seen(config, clip_config, out)
        tensors, left_out = model_to_layout(state, program)
        write_tensors(out, {name: value.contiguous().clone() for name, value in tensors.items()}, clip_config)
        if lost:
            say(lost)

    say(f"{out}: weights of {run_dir} in the layout {program}")
    if left_out:
        parts = sorted({".".join(name.split(".")[:2]) for name in left_out})
        say(f"not in this layout, and left out ({len(left_out)} tensors): {', '.join(parts)}")
    return list(left_out)


def whole_weights(config: RunConfig, run_dir: Path) -> dict[str, Tensor]:
    """The best weights of a run with its towers, which lie beside the features if it was trained on some.

    Args:
        config: of the run, as it was trained.
        run_dir: its folder.

    Raises:
        UserError: the run has no weights yet, or its features are gone or of other towers.
    """
    state = read_weights(run_dir)
    if config.from_features is None:
        return state
    family = family_in(read_features(config.from_features)["clip_config"])
    prefix = CLIP if family == "clip" else OTHER_TOWERS
    towers = {prefix + name: value for name, value in load_towers(config.from_features).items()}
    require_features_of(run_dir, hash_of_towers(towers), config.from_features)
    return {**towers, **state}


def load_towers(folder: Path) -> dict[str, Tensor]:
    """The weights of towers beside features."""
    path = folder / TOWERS
    if not path.is_file():
        raise UserError(
            f"{path} is missing, which holds the towers of the run; the run was trained from features there"
        )
    return read_tensors(path, WAY_OUT)


def require_seen(config: RunConfig, clip_config: dict[str, Any] | None, out: Path) -> str | None:
    """Look whether a file can say what the towers are: safetensors can, and others if they follow OpenAI's rule.

    Returns:
        A sentence for those who read the file, if they have to say it by flags; else None.

    Raises:
        UserError: nobody could know, so that the towers would come out as others.
    """
    if clip_config is None or out.suffix == ".safetensors" or follows_openai(clip_config):
        return None

    unseen = unseen_in(clip_config)
    described = "; ".join(
        f"{tower.removesuffix('_config')} {', '.join(f'{name} {value}' for name, value in of_tower.items())}"
        for tower, of_tower in unseen.items()
    )

    # Random towers are read back with the same flags, if heads are all that the file cannot say.
    small = openai_rule(config.model.random_clip.width, config.model.random_clip.heads)
    if config.model.clip == "random" and all(of_tower == small for of_tower in unseen.values()):
        return (
            f"warning: {out} does not say how many heads the towers have ({described}): read it as --model.init-from "
            f"with --model.clip random and the same --model.random-clip.heads, or export to a .safetensors file"
        )

    raise UserError(
        f"{out} could not say what these towers are: {described}; files with OpenAI's names are taken for quick_gelu, "
        f"a head for every 64 channels. Export to a .safetensors file, which records it, or with --layout transformers"
    )


def write_tensors(path: Path, tensors: dict[str, Tensor], clip_config: dict[str, Any] | None) -> None:
    """A file of `torch.save`, or safetensors where the name says so, with CLIP's configuration as metadata."""
    if path.suffix == ".safetensors":
        data = save(tensors, None if clip_config is None else {"clip_config": json.dumps(clip_config)})
        write_atomic(path, lambda file: file.write(data))
    else:
        write_atomic(path, lambda file: torch.save(tensors, file))


def export_transformers(run_dir: Path, state: dict[str, Tensor], out: Path) -> list[str]:
    """CLIP and the run's processor as a folder for `from_pretrained`, which appears when it is whole.

    Returns:
        Names of what is not CLIP's.
    """
    config = read_clip_config(run_dir)
    if config is None:
        raise UserError(
            f"{run_dir} was written by an earlier version, which kept no configuration of CLIP; train again"
        )
    clip = build_clip(CLIPConfig.from_dict(config))
    clip.load_state_dict({name.removeprefix(CLIP): value for name, value in state.items() if name.startswith(CLIP)})
    tokenizer = CaptionTokenizer.load(run_dir / TOKENIZER)
    data = load_config(run_dir).data
    with whole_folder(out, "choose another name") as partial:
        clip.save_pretrained(partial)
        for file in partial.glob("*.safetensors"):
            give_usual_mode(file)
        fast_tokenizer(tokenizer).save_pretrained(partial)
        write_json_atomic(partial / PREPROCESSOR, preprocessor(data.image_size))
    return sorted(name for name in state if not name.startswith(CLIP))


def fast_tokenizer(tokenizer: CaptionTokenizer) -> PreTrainedTokenizerFast:
    """A run's tokenizer as one of transformers, which cuts captions to the run's length if it is told to cut."""
    backend = tokenizer.backend
    start = None if tokenizer.bos_token_id is None else backend.id_to_token(tokenizer.bos_token_id)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=(backend.padding or {}).get("pad_token"),
        bos_token=start,
        eos_token=backend.id_to_token(tokenizer.eos_token_id),
        model_max_length=tokenizer.max_words,
        processor_class=PROCESSOR,
    )


def preprocessor(image_size: int) -> dict[str, Any]:
    """How frames are scaled, cropped and normalized, as transformers reads it.

    Written here and not by transformers, whose class for it needs torchvision; reading needs none.
    """
    return {
        "processor_class": PROCESSOR,
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": image_size},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": image_size, "width": image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": PIXEL_MEAN,
        "image_std": PIXEL_STD,
    }
