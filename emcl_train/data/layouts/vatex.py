"""VATEX: `{train,val,test}_list.txt`, and `vatex_data.json` {id: {"enCap": [ten captions]}}."""

from pathlib import Path
from typing import Any

from emcl_train.config import DataConfig
from emcl_train.data.lists import Captions, Lists, Protocol, captions_of, check_root, clip_finder, queries
from emcl_train.data.reading import read_json, read_list, shortened, strings
from emcl_train.errors import UserError

PROTOCOL = Protocol("VATEX", train=(25991,), val=(1500,), test=(1500,))
CAPTIONS = "vatex_data.json"


def read(config: DataConfig) -> Lists:
    """Clips of the three lists, each with all of its English captions."""
    check_root(config, CAPTIONS)
    notes: list[str] = []
    captions = read_captions(config.root / CAPTIONS)

    def part(split: str) -> Captions:
        path = config.root / f"{split}_list.txt"
        return captions_of(read_list(path), captions, path, config.root / CAPTIONS, notes)

    train, val, test = part("train"), queries(part("val"), config), queries(part("test"), config)
    return Lists(train, val, test, clip_finder(config), config.root / "train_list.txt", PROTOCOL, notes=notes)


def read_captions(path: Path) -> Captions:
    """The English captions of each clip.

    Raises: UserError with the entry that has none.
    """
    content: Any = read_json(path, "VATEX annotations")
    expected = '{"enCap": ["…", …]}'
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: expected {{id: {expected}, …}}, got {shortened(content)}")
    found: Captions = {}
    for video_id, entry in content.items():
        value = entry.get("enCap") if isinstance(entry, dict) else None
        found[video_id] = strings(f"{path}, {video_id}", value, expected)
    return found
