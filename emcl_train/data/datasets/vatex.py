"""VATEX: `{train,val,test}_list.txt`, and `vatex_data.json` {id: {"enCap": [ten captions]}}."""

from pathlib import Path
from typing import Any

from emcl_train.config import DataConfig
from emcl_train.data.annotation_files import read_json, strings
from emcl_train.data.split_rules import Captions, Protocol, SplitFiles, from_id_lists
from emcl_train.errors import UserError
from emcl_train.reading.shown import shortened

PROTOCOL = Protocol("VATEX", train=(25991,), val=(1500,), test=(1500,))
CAPTIONS = "vatex_data.json"


def read(config: DataConfig) -> SplitFiles:
    """Clips of the three lists, each with all of its English captions."""
    return from_id_lists(config, CAPTIONS, read_captions, PROTOCOL)


def read_captions(path: Path) -> Captions:
    """The English captions of each clip.

    Raises:
        UserError: an entry has none.
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
