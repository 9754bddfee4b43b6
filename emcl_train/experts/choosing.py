"""The sizes of a run on experts: those of its data set, but for what its settings, or its files, have otherwise."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from emcl_train.config import RunConfig
from emcl_train.errors import UserError
from emcl_train.experts.ce import CE, CEExpert, CESizes
from emcl_train.experts.jsfusion import FEATURES, LEAST_STEPS, JSFusionSizes
from emcl_train.experts.mmt import SIZES, EMSizes, Expert, MMTSizes
from emcl_train.flags import flag

Found = TypeVar("Found")

OWN_TYPES = 1
"""Token type of the first of one's own experts; the others follow it in their order."""
OWN_SECONDS_ROWS = 32
"""Rows of MMT's table of times for one's own experts: as for MSR-VTT, 0 for no time, 1 for an unknown one, 30 s."""


def ce_sizes_of(config: RunConfig, widths: Mapping[str, int], text_width: int) -> CESizes:
    """Sizes of CE.

    Args:
        config: of the run.
        widths: of each expert in the files.
        text_width: of the features of words in the files.

    Raises:
        UserError: an expert is not known, is not there, or has another width than it should.
    """
    asked = config.experts
    sizes = _of_data_set("ce", asked.sizes, CE)
    names = _chosen(asked.names, sizes.experts, widths)
    experts: dict[str, CEExpert] = {name: sizes.experts[name] for name in names}
    text = sizes.text

    if asked.widths == "files":
        experts = {name: replace(expert, width=widths[name]) for name, expert in experts.items()}
        text = replace(text, width=text_width)
    _require_widths({name: expert.width for name, expert in experts.items()}, widths)
    _require_widths({"the text": text.width}, {"the text": text_width})

    if asked.max_steps is not None:
        experts = {
            name: expert
            if expert.clusters is None
            else replace(expert, max_steps=min(expert.max_steps, asked.max_steps))
            for name, expert in experts.items()
        }
    text = replace(text, max_words=config.data.max_words)
    if asked.width is None:
        return CESizes(experts, text, sizes.width)
    return CESizes(experts, text, sizes.width).reduced(asked.width)


def mmt_sizes_of(config: RunConfig, widths: Mapping[str, int]) -> MMTSizes:
    """Sizes of MMT; one's own experts have the token types 1, 2, … in their order, and are counted if they have times.

    Args:
        config: of the run.
        widths: of each expert in the files.

    Raises:
        UserError: as of CE; or heads do not divide the width.
    """
    asked = config.experts
    if asked.sizes == "own":
        found = {name: Expert(width, number) for number, (name, width) in enumerate(sorted(widths.items()), OWN_TYPES)}
        types = max(OWN_TYPES + len(found), SIZES["msrvtt"].token_types)
        sizes = MMTSizes(found, max_positions=OWN_SECONDS_ROWS, token_types=types)
    else:
        sizes = _of_data_set("mmt", asked.sizes, SIZES)

    experts = {name: sizes.experts[name] for name in _chosen(asked.names, sizes.experts, widths)}
    if asked.widths == "files":
        experts = {name: replace(expert, width=widths[name]) for name, expert in experts.items()}
    _require_widths({name: expert.width for name, expert in experts.items()}, widths)

    chosen = {
        "width": asked.width,
        "inner_width": asked.hidden,
        "layers": asked.layers,
        "heads": asked.heads,
        "token_types": asked.token_types,
        "steps": asked.max_steps,
        "dropout": asked.dropout,
    }
    given: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    sizes = replace(sizes, experts=experts, words=config.data.max_words, keep_missing=asked.missing == "kept", **given)
    least = 1 + max(expert.token_type for expert in experts.values())
    if sizes.token_types < least:
        raise UserError(
            f"experts.token_types is {sizes.token_types}, expected at least {least} for the experts "
            f"{', '.join(sizes.names)}; pass {flag('experts.token_types')} {least} or more, or leave it out"
        )
    if sizes.width % sizes.heads:
        raise UserError(
            f"the video transformer is {sizes.width} wide, which {sizes.heads} heads do not divide; pass "
            f"{flag('experts.width')} or {flag('experts.heads')} so that they do"
        )
    return sizes


def jsfusion_sizes_of(config: RunConfig, width: int, vocabulary: int, word_width: int) -> JSFusionSizes:
    """Sizes of JSFusion. Another `experts.width` than 512 brings the widths of all layers along.

    Args:
        config: of the run.
        width: of the features in the file.
        vocabulary: words that have a vector.
        word_width: of these vectors.

    Raises:
        UserError: the features have another width than they should, or steps or words are too few.
    """
    asked = config.experts
    features = width if asked.widths == "files" else _of_data_set("jsfusion", asked.sizes, FEATURES)
    _require_widths({"the video": features}, {"the video": width})

    steps = asked.max_steps or JSFusionSizes.steps
    for name, value in (("experts.max_steps", steps), ("data.max_words", config.data.max_words)):
        if value < LEAST_STEPS:
            raise UserError(
                f"{name} is {value}, and JSFusion's convolutions need {LEAST_STEPS} or more; the paper has 40"
            )
    sizes = JSFusionSizes(features, vocabulary, steps=steps, words=config.data.max_words, word_width=word_width)
    if (asked_width := asked.width) is None:
        return sizes
    fused, last = max(1, asked_width // 2), max(1, asked_width // 4)
    return replace(
        sizes, width=asked_width, recurrent=asked_width, video_channels=4 * asked_width, fused=fused, last=last
    )


def published_sizes(config: RunConfig) -> CESizes | MMTSizes | JSFusionSizes:
    """The sizes of a run whose files are as the authors have them: what can be said before these are opened.

    Of experts of one's own, widths are not known, and nor are the words of JSFusion.

    Raises:
        UserError: as of the functions for each system, of what does not depend on files.
    """
    asked = config.experts
    if config.model.system == "ce":
        ce = _of_data_set("ce", asked.sizes, CE)
        return ce_sizes_of(config, {name: expert.width for name, expert in ce.experts.items()}, ce.text.width)
    if config.model.system == "jsfusion":
        width = _of_data_set("jsfusion", asked.sizes, FEATURES)
        return jsfusion_sizes_of(config, width, vocabulary=1, word_width=JSFusionSizes.word_width)
    if asked.sizes == "own":
        return mmt_sizes_of(config, dict.fromkeys(asked.names or ("unknown",), 1))
    mmt = _of_data_set("mmt", asked.sizes, SIZES)
    return mmt_sizes_of(config, {name: expert.width for name, expert in mmt.experts.items()})


def em_sizes_of(config: RunConfig) -> EMSizes:
    """How EM runs on each expert."""
    emcl = config.emcl
    return EMSizes(emcl.num_bases, emcl.num_iters, emcl.temperature, emcl.residual_weight, emcl.momentum)


def _of_data_set(system: str, data_set: str, known: Mapping[str, Found]) -> Found:
    if data_set not in known:
        raise UserError(
            f"experts.sizes is {data_set}, and {system} has sizes for {', '.join(known)}; pass "
            f"{flag('experts.sizes')} with one of these, or another recipe"
        )
    return known[data_set]


def _chosen(asked: tuple[str, ...] | None, known: Iterable[str], there: Mapping[str, int]) -> list[str]:
    """The experts of a run, sorted."""
    names = sorted(known if asked is None else asked)
    if unknown := sorted(set(names) - set(known)):
        raise UserError(
            f"experts.names has {', '.join(unknown)}, which the system does not know; pass some of "
            f"{', '.join(sorted(known))}"
        )
    if missing := sorted(set(names) - set(there)):
        raise UserError(
            f"the files have nothing of the expert {missing[0]}; they have {', '.join(sorted(there)) or 'no expert'}. "
            f"Bring its file, or pass {flag('experts.names')} with those that are meant"
        )
    if not names:
        raise UserError(f"experts.names is empty; pass {flag('experts.names')} with one expert at least")
    return names


def other_widths(expected: Mapping[str, int], found: Mapping[str, int]) -> str:
    """Features that are wider or narrower than they should be, in words; "" if there are none."""
    wrong = [f"{name} {found[name]}, expected {width}" for name, width in expected.items() if found[name] != width]
    return "; ".join(wrong)


def _require_widths(expected: Mapping[str, int], found: Mapping[str, int]) -> None:
    if wrong := other_widths(expected, found):
        raise UserError(
            f"features are of other widths than the authors': {wrong}. Bring the authors' files, or pass "
            f"{flag('experts.widths')} files if these are meant"
        )
