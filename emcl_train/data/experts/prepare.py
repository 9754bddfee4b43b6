"""A run on experts from its files: splits of clips and captions, sizes that fit them, and a tokenizer if need be."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from emcl_train.config import RunConfig
from emcl_train.data.annotation_files import count, few, visible_files
from emcl_train.data.bert_tokens import END, PAD, START, UNKNOWN, bert_tokenizer, word_pieces
from emcl_train.data.clips import Annotations, Clip
from emcl_train.data.experts.checking import check_experts
from emcl_train.data.experts.inputs import ExpertClips, ExpertInputs
from emcl_train.data.experts.jsfusion_hdf5 import EXPERT, VOCABULARY
from emcl_train.data.experts.lists import FULL, ONE_K_A, ONE_K_B
from emcl_train.data.experts.mmt_h5 import MMTFeatures
from emcl_train.data.experts.mmt_inputs import joined, sentence_of
from emcl_train.data.experts.split import (
    ExpertData,
    ExpertFiles,
    ExpertSplit,
    Problem,
    Query,
    System,
    opened,
    problems_of,
    raw_captions,
)
from emcl_train.data.outside import require_paths_inside
from emcl_train.data.text import CaptionTokenizer, load_tokenizer
from emcl_train.errors import UserError
from emcl_train.experts.ce import CE, CESizes
from emcl_train.experts.choosing import ce_sizes_of, jsfusion_sizes_of, mmt_sizes_of
from emcl_train.experts.jsfusion import JSFusionSizes
from emcl_train.experts.mmt import SIZES, MMTSizes
from emcl_train.flags import flag
from emcl_train.runs.contents import STATE, TOKENIZER, WEIGHTS
from emcl_train.terminal import with_progress

SPLITS = {"9k": ONE_K_A, "1k-B": ONE_K_B, "full": FULL}
"""Of MSR-VTT, by `data.msrvtt_split`."""
SHOWN = 10
"""Clips that an error names."""
MOST_WORDS = 20_000
"""Of the vocabulary that a small BERT with random weights gets from the captions."""
WORD = re.compile(r"\w+|[^\w\s]")


def prepare_experts(config: RunConfig, *, only_read: bool = False) -> Annotations:
    """Open a run's files, and see that every clip of its lists has features that can be used, and a caption.

    Args:
        config: of the run.
        only_read: write nothing, and do not look into the features.

    Returns:
        Splits of clips that do, each an `ExpertClips`. If `data.on_bad_video` is "skip", a note says which do not.

    Raises:
        UserError: files are missing or are something else, or clips lack something and `on_bad_video` is "stop".
    """
    data = open_files(config, only_read=only_read)
    require_home(data, config)
    inputs = ExpertInputs(data, sizes_of(config, data))

    if only_read:
        problems = [problem for split in data.splits for problem in problems_of(data, split, look_inside=False)]
        problems = list({problem.sentence: problem for problem in problems}.values())
    else:
        problems = check_experts(data, config.data.workers)
    if problems and config.data.on_bad_video == "stop":
        raise UserError(_said_of(problems))
    left_out: dict[str, str] = {}
    for problem in problems:
        left_out.setdefault(problem.video_id, problem.kind)

    texts = {}
    for split in data.splits:
        found, bare = _texts(data, split, left_out, config)
        if bare and config.data.on_bad_video == "stop":
            raise UserError(_said_of(bare))
        left_out |= {problem.video_id: problem.kind for problem in bare}
        texts[split.name] = found

    if isinstance(data.reader, MMTFeatures) and data.reader.kept is not None:
        if not only_read:
            data.reader.kept.save()
        data.reader.kept = None  # all captions are texts now

    train, val, test = (_clips(split, texts[split.name], left_out, inputs) for split in data.splits)
    _require_pairs(config, val, test)
    notes = list(data.notes)
    if left_out:
        kinds = ", ".join(f"{number} {kind}" for kind, number in Counter(left_out.values()).most_common())
        notes.append(f"{count(len(left_out), 'clip')} of the lists cannot be used, and are left out: {kinds}.")
    return Annotations(train, val, test, notes=tuple(notes), left_out=dict(left_out))


def open_files(config: RunConfig, *, only_read: bool = False) -> ExpertData:
    """The data set of a run's settings; of each expert only what the system reads.

    Args:
        config: of the run.
        only_read: write nothing.

    Raises:
        UserError: a file is missing or is something else.
    """
    files = replace(files_of(config), only_read=only_read)
    asked = config.experts
    if asked.names is None:
        return opened(files)

    # Widths say which files are opened: those of the data set, or whatever these files have.
    known = _published(config)
    if unknown := [name for name in asked.names if known is not None and name not in known]:
        raise UserError(f"experts.names has {few(unknown)}; the system knows {', '.join(sorted(known or ()))}")
    if known is not None and asked.widths == "published":
        return opened(files, {name: known[name] for name in asked.names})
    widths = opened(files).reader.widths
    if missing := [name for name in asked.names if name not in widths]:
        raise UserError(f"experts.names has {few(missing)}; the files have {', '.join(sorted(widths))}")
    return opened(files, {name: widths[name] for name in asked.names})


def require_home(data: ExpertData, config: RunConfig) -> None:
    """Raise a UserError where files lie outside of `data.root` and `data.outside_root` refuses that."""
    if config.data.outside_root != "refuse":
        return
    paths = [split.listed.path for split in data.splits] + list(data.reader.shared_files)
    if data.words is not None:
        paths += [*data.words.paths, raw_captions(data.files)]
    if data.vocabulary is not None:
        paths += visible_files(data.files.root / VOCABULARY)
    for split in data.splits:
        for video_id in split.ids:
            paths += data.reader.files_of(video_id)
    require_paths_inside(paths, config.data)


def files_of(config: RunConfig) -> ExpertFiles:
    """Whose files a run reads, and where they lie."""
    dataset = config.experts.sizes
    split = config.data.msrvtt_split
    if dataset == "own" and config.model.system != "mmt":
        raise UserError(
            f"experts.sizes is own, and {config.model.system} takes the authors' features alone; pass "
            f"{flag('experts.sizes')} of a data set, or take the recipe mmt-own"
        )
    if dataset == "msrvtt" and split not in SPLITS:
        raise UserError(
            f"data.msrvtt_split is {split}, and features of experts have lists of {', '.join(SPLITS)} alone; pass "
            f"{flag('data.msrvtt_split')} 9k"
        )
    system = "own" if dataset == "own" else config.model.system
    return ExpertFiles(
        cast(System, system), dataset, config.data.root, SPLITS.get(split, ONE_K_A), config.data.cache_dir
    )


def sizes_of(config: RunConfig, data: ExpertData) -> CESizes | MMTSizes | JSFusionSizes:
    """The sizes of a run's model, which fit its files.

    Raises:
        UserError: they do not.
    """
    widths = data.reader.widths
    if config.model.system == "ce":
        assert data.words is not None
        return ce_sizes_of(config, widths, data.words.width)
    if config.model.system == "mmt":
        return mmt_sizes_of(config, widths)
    assert data.vocabulary is not None
    vocabulary, word_width = data.vocabulary.matrix.shape
    return jsfusion_sizes_of(config, widths[EXPERT], vocabulary, word_width)


def texts_of(config: RunConfig, annotations: Annotations, run_dir: Path | None) -> Any:
    """What makes captions into a model's inputs: a run's tokenizer, or what a run on experts reads.

    Args:
        config: of the run.
        annotations: of `prepare`.
        run_dir: its folder, in which the tokenizer is kept.

    Raises:
        UserError: there is no such tokenizer, or the run's is gone.
    """
    train = annotations.train
    if not isinstance(train, ExpertClips):
        return load_tokenizer(config, run_dir)

    inputs = train.inputs
    assert inputs is not None
    if isinstance(inputs.sizes, MMTSizes):
        inputs.tokenizer = _tokenizer(config, train, run_dir)
    return inputs


def _tokenizer(config: RunConfig, train: ExpertClips, run_dir: Path | None) -> CaptionTokenizer:
    """The word pieces of MMT's BERT; of a small BERT with random weights, the words of the training captions."""
    kept = None if run_dir is None else run_dir / TOKENIZER
    if kept is not None and kept.is_file():
        return CaptionTokenizer.load(kept, "none")
    if run_dir is not None and any((run_dir / name).is_file() for name in (WEIGHTS, STATE)):
        raise UserError(
            f"{run_dir} has no {TOKENIZER}, with which its weights were trained; copy it again from the run"
        )

    max_words = config.data.max_words
    if config.experts.text == "random":
        words = Counter(word for caption in train.captions for word in WORD.findall(caption.lower()))
        pieces = [PAD, UNKNOWN, START, END, *(word for word, _ in words.most_common(MOST_WORDS))]
        tokenizer = word_pieces({piece: number for number, piece in enumerate(pieces)}, max_words)
    else:
        tokenizer = bert_tokenizer(config.experts.text, max_words)
    if kept is not None:
        tokenizer.save(kept)
    return tokenizer


def _published(config: RunConfig) -> Mapping[str, int] | None:
    """How wide the experts of a data set are; None where files alone say it."""
    sizes = config.experts.sizes
    if config.model.system == "ce" and sizes in CE:
        return {name: expert.width for name, expert in CE[sizes].experts.items()}
    if config.model.system == "mmt" and sizes in SIZES:
        return {name: expert.width for name, expert in SIZES[sizes].experts.items()}
    return None


Texts = dict[str, list[tuple[tuple[int, ...], str]]]
"""For each clip its texts: the captions that make it, and what it says."""


def _texts(
    data: ExpertData, split: ExpertSplit, left_out: Mapping[str, str], config: RunConfig
) -> tuple[Texts, list[Problem]]:
    """The texts of the clips of a split, and the clips that have none."""
    clips = [video_id for video_id in split.ids if video_id not in left_out]
    found: Texts = {}
    bare = []
    of_mmt = isinstance(data.reader, MMTFeatures)
    for video_id in with_progress(clips, f"Read captions: {split.name}") if of_mmt else clips:
        texts = list(_of_clip(data, split, video_id, config))
        if texts:
            found[video_id] = texts
        else:
            place = f"{split.listed.place(video_id)}: {video_id}"
            bare.append(Problem(split.name, video_id, "no caption", f"{place} has no caption"))
    return found, bare


def _of_clip(
    data: ExpertData, split: ExpertSplit, video_id: str, config: RunConfig
) -> Iterator[tuple[tuple[int, ...], str]]:
    """The texts of a clip; those of MMT as sentences, without words that begin late."""
    chosen = split.numbers(video_id)
    if split.name != "train" and config.data.test_captions == "one":
        chosen = chosen[:1]
    if not isinstance(data.reader, MMTFeatures):
        for numbers in chosen:
            yield numbers, " ".join(split.captions[video_id][number] for number in numbers)
        return

    captions = data.reader.captions(video_id)
    for numbers in chosen:
        yield numbers, sentence_of(joined([captions[number] for number in numbers]), config.data.max_words)


def _clips(split: ExpertSplit, texts: Texts, left_out: Mapping[str, str], inputs: ExpertInputs) -> ExpertClips:
    """A split of the clips that are whole."""
    ids = [video_id for video_id in split.ids if video_id in texts and video_id not in left_out]
    if not ids:
        raise UserError(f"{split.listed.path} names no clip that has features and a caption; unpack the archive again")
    queries = [(clip, numbers, text) for clip, i in enumerate(ids) for numbers, text in texts[i]]
    return ExpertClips(
        split.name,
        clips=tuple(Clip(video_id, split.listed.path) for video_id in ids),
        captions=tuple(text for _, _, text in queries),
        caption_clip=tuple(clip for clip, _, _ in queries),
        queries=tuple(Query(clip, numbers) for clip, numbers, _ in queries),
        inputs=inputs,
    )


def _require_pairs(config: RunConfig, *splits: ExpertClips) -> None:
    """Raise a UserError where EM runs inside blocks of matching pairs, and a clip has several queries."""
    block = config.eval.em_block
    if config.emcl.mode == "off" or block is None:
        return
    for split in splits:
        if len(split.captions) != len(split.clips):
            raise UserError(
                f"eval.em_block is {block}, and EM inside blocks takes one caption a clip; the {split.name} split has "
                f"{count(len(split.captions), 'caption')} of {count(len(split.clips), 'clip')}. Pass "
                f"{flag('eval.em_block')} None {flag('eval.em_rows')} 64 for one map of EM over all captions, or "
                f"{flag('data.test_captions')} one for the first caption of each clip"
            )


def _said_of(problems: list[Problem]) -> str:
    """The first problem, which others there are, and the way out."""
    kinds = {problem.video_id: problem.kind for problem in reversed(problems)}
    clips = list(dict.fromkeys(problem.video_id for problem in problems))
    others = [f"{video_id} ({kinds[video_id]})" for video_id in clips[1:]]
    more = ""
    if others:
        more = f". The others are {'; '.join(others[: SHOWN - 1])}"
        more += f"; and {len(others) - SHOWN + 1} more" if len(others) >= SHOWN else ""
    return (
        f"{count(len(clips), 'clip')} of the lists cannot be used: {problems[0].sentence}{more}. Unpack the archive "
        f"again, take them off the lists, or pass {flag('data.on_bad_video')} skip to leave them out and have them "
        f"counted; `emcl-train data doctor` shows every clip"
    )
