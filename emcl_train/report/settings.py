"""Which settings of a run matter for it: the one place that says which setting depends on which."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from emcl_train.config import OF_MMT, RunConfig, flattened
from emcl_train.kinds import HEADS, TEMPORALS
from emcl_train.runs.code import OF_THE_START

Matters = Callable[[RunConfig], bool]


def _has_random_towers(config: RunConfig) -> bool:
    return (
        _has_towers(config)
        and config.model.clip == "random"
        and config.from_features is None
        and config.model.init_from is None
    )


def _reads_videos(config: RunConfig) -> bool:
    return config.from_features is None and _has_towers(config)


def _has_towers(config: RunConfig) -> bool:
    return config.model.system == "clip"


def _has_head(config: RunConfig) -> bool:
    return _has_towers(config) and not config.answers_questions


def _is_mmt(config: RunConfig) -> bool:
    return config.model.system == "mmt"


def _has_adapters(config: RunConfig) -> bool:
    return config.train.lora > 0


def _falls_in_stairs(config: RunConfig) -> bool:
    return config.train.optimizer in ("adam", "ranger")


def _has_emcl(config: RunConfig) -> bool:
    return config.emcl.mode != "off"


def _compares_tokens(config: RunConfig) -> bool:
    return _has_head(config) and HEADS[config.model.head].tokens


def _decorrelates(config: RunConfig) -> bool:
    return _has_head(config) and HEADS[config.model.head].decorrelates


def _has_decorrelation(config: RunConfig) -> bool:
    return _decorrelates(config) and config.train.decorrelation_weight > 0


def _has_layers(config: RunConfig) -> bool:
    return _has_towers(config) and TEMPORALS[config.model.temporal].attends


DEPENDS: dict[str, Matters] = {
    # What a run leaves is no setting of it.
    "out": lambda config: False,
    "resume": lambda config: False,
    "recipe": lambda config: False,  # the page's first line has it
    "seeds": lambda config: config.seeds > 1,
    "from_features": lambda config: config.from_features is not None,
    # Data: how clips become frames matters if there are clips, and some of it for one data set alone.
    "data.videos": lambda config: config.data.videos is not None,
    "data.msrvtt_split": lambda config: config.data.layout == "msrvtt",
    "data.didemo_span": lambda config: config.data.layout == "didemo",
    "data.shapes.": lambda config: config.data.layout == "shapes",
    "data.frame_choice": _reads_videos,
    "data.frame_sampling": _reads_videos,
    "data.resize": _reads_videos,
    "data.display": _reads_videos,
    "data.augment": _reads_videos,
    "data.image_size": _reads_videos,
    "data.num_frames": _has_towers,
    "data.clean_captions": _has_towers,
    "data.max_pixels": lambda config: False,
    "data.outside_root": lambda config: False,
    "data.cache_frames": lambda config: False,
    "data.cache_dir": lambda config: False,
    "data.workers": lambda config: False,
    # The model: each setting of a part, if the model has that part.
    "model.random_clip.": _has_random_towers,
    "model.clip": _has_towers,
    "model.temporal": _has_towers,
    "model.head": _has_head,
    "model.tokenizer": lambda config: config.model.tokenizer is not None,
    "model.init_from": lambda config: config.model.init_from is not None,
    "model.temporal_layers": _has_layers,
    "model.temporal_eps": _has_layers,
    "model.answers.": lambda config: config.answers_questions,
    "model.lstm_padding": lambda config: _has_towers(config) and config.model.temporal == "lstm",
    "model.pooling_temperature": lambda config: _has_head(config) and config.model.head == "text-conditioned",
    "model.wti_padding": _compares_tokens,
    "emcl.num_bases": _has_emcl,
    "emcl.num_iters": _has_emcl,
    "emcl.temperature": _has_emcl,
    "emcl.residual_weight": _has_emcl,
    "emcl.momentum": lambda config: config.emcl.mode == "train",
    "emcl.init": _has_emcl,
    "emcl.scale": _has_emcl,
    "emcl.gradient": lambda config: config.emcl.mode == "train",
    # Training.
    "train.max_steps": lambda config: config.train.max_steps is not None,
    "train.batches": lambda config: config.data.train_captions == "all",
    "train.chunks": lambda config: config.train.chunks > 1,
    "train.gradient_checkpointing": lambda config: config.train.gradient_checkpointing,
    "train.compile_towers": lambda config: config.train.compile_towers,
    "train.lora": _has_adapters,
    "train.lora_alpha": _has_adapters,
    "train.lora_dropout": _has_adapters,
    "train.frozen": _reads_videos,
    "train.clip_lr_factor": _reads_videos,
    "train.decorrelation_weight": _decorrelates,
    "train.decorrelation_off_diagonal": _has_decorrelation,
    "train.lr_decay": _falls_in_stairs,
    "train.lr_decay_steps": _falls_in_stairs,
    "train.margin": lambda config: config.train.loss not in ("info-nce", "sigmoid"),
    "train.top_k": lambda config: config.train.loss == "top-k-margin",
    "train.save_every": lambda config: False,
    "train.select_by": lambda config: config.train.keep == "best",
    "train.validate_every": lambda config: config.train.validate_every is not None,
    "train.tracker": lambda config: False,
    # Evaluation.
    "eval.": lambda config: not config.answers_questions,
    "eval.batch_size": lambda config: False,
    "eval.em_block": _has_emcl,
    "eval.em_rows": lambda config: _has_emcl(config) and config.eval.em_rows is not None,
    "eval.qb_norm_temperature": lambda config: config.eval.query_bank > 0,
    # Systems on experts.
    "experts.": lambda config: not _has_towers(config),
    **{f"experts.{name}": _is_mmt for name in OF_MMT},
}
"""By the name of a setting, or by the beginning of the names of several, when it matters. Others always do."""


def matters(name: str, config: RunConfig) -> bool:
    """Whether a setting changes anything in such a run.

    Args:
        name: with its section: "model.temporal_layers".
        config: the run's settings.
    """
    rules = [rule for key, rule in DEPENDS.items() if name == key or (key.endswith(".") and name.startswith(key))]
    return all(rule(config) for rule in rules)


def settings_and_environment(
    config: RunConfig, environment: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], int]:
    """The settings that matter under the heading of their section, the environment, and how many were left out.

    Args:
        config: of a run.
        environment: what environment.json has.
    """
    sections, left_out = settings_of(config)
    known = {name: value for name, value in environment.items() if name not in OF_THE_START}
    return {**sections, "environment": flattened(known)}, left_out


def settings_of(config: RunConfig) -> tuple[dict[str, dict[str, Any]], int]:
    """The settings that matter, under the heading of their section, and how many others there are."""
    sections: dict[str, dict[str, Any]] = {}
    left_out = 0
    for name, value in flattened(asdict(config)).items():
        if not matters(name, config):
            left_out += 1
            continue
        section, _, rest = name.partition(".")
        if not rest:
            section, rest = "run", name
        sections.setdefault(section, {})[rest] = value
    return sections, left_out
