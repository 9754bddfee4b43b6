"""LSMDC: tab-separated files without a header; clip id, four times, sentence."""

import re
from pathlib import Path

from emcl_train.config import DataConfig
from emcl_train.data.annotation_files import count, quoted, read_text
from emcl_train.data.split_rules import Captions, Protocol, SplitFiles, captions_of, check_root, clip_finder, queries
from emcl_train.errors import UserError
from emcl_train.reading.shown import shortened

FILES = {
    "train": "LSMDC16_annos_training.csv",
    "val": "LSMDC16_annos_val.csv",
    "test": "LSMDC16_challenge_1000_publictect.csv",
}
PROTOCOL = Protocol("LSMDC", train=(101079,), val=(7408,), test=(1000,), unit="sentence")

TIME = re.compile(r"[-+]?([0-9][0-9.:,]*(e[-+]?[0-9]+)?s?|nan|inf)?", re.IGNORECASE)

# As they are distributed, these files cannot be decoded, and all published figures are without them.
BROKEN = {
    "0017_Pianist_00.23.28.872-00.23.34.843",
    "0017_Pianist_00.30.36.767-00.30.38.009",
    "3064_SPARKLE_2012_01.41.07.000-01.41.11.793",
}


def read(config: DataConfig) -> SplitFiles:
    """Every sentence with its clip; a clip may have several. Files lie in one folder, or in one for each film."""
    check_root(config, FILES["train"])
    notes: list[str] = []
    counted = {}
    found = {}
    for split, name in FILES.items():
        path = config.root / name
        captions, counted[split] = read_sentences(path)

        broken = BROKEN & captions.keys()
        if broken:
            notes.append(f"{name}: {count(len(broken), 'clip')} known to be broken as distributed and left out.")
        ids = [clip_id for clip_id in captions if clip_id not in broken]
        found[split] = captions_of(ids, captions, path, path, notes)

    return SplitFiles(
        train=found["train"],
        val=queries(found["val"], config),
        test=queries(found["test"], config),
        clip=clip_finder(config),
        train_file=config.root / FILES["train"],
        protocol=PROTOCOL,
        counted=counted,
        notes=notes,
    )


def read_sentences(path: Path) -> tuple[Captions, int]:
    """The sentences of each clip, and the number of lines. Quotes mean nothing here: a sentence is taken as it stands.

    Raises:
        UserError: a line has not six columns, or text where times belong.
    """
    captions: Captions = {}
    text = read_text(path)
    ends = "\n" if "\n" in text else "\r"  # as some programs on a Mac write it
    lines = [(number, line) for number, line in enumerate(text.split(ends), start=1) if line.strip()]
    for number, line in lines:
        columns = line.split("\t", maxsplit=5)
        if len(columns) != 6 or not columns[0].strip():
            raise UserError(
                f"{path}, line {number}: {count(len(columns), 'column')}, expected 6, separated by tabs: clip id, "
                f"start and end twice, sentence; correct the line"
            )

        # One column too many, or too few and a tab in the sentence, would shift the sentence.
        *times, sentence = columns[1:]
        sentence = sentence.strip()
        wrong = [time for time in times if not TIME.fullmatch(time.strip())]
        if wrong or ("\t" in sentence and TIME.fullmatch(sentence.partition("\t")[0].strip())):
            raise UserError(
                f"{path}, line {number}: columns 2 to 5 are {quoted(times)} and the sentence is {shortened(sentence)}; "
                f"expected four times, such as 00.01.02.345, and then a sentence; correct the line"
            )
        captions.setdefault(columns[0].strip(), []).append(sentence)
    if not lines:
        raise UserError(f"{path} has no line; copy or download it again")
    return captions, len(lines)
