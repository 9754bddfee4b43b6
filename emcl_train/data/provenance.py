"""What a run's frames depend on beside the videos: recorded with the run, and compared when it is evaluated."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from emcl_train.config import DataConfig
from emcl_train.data.container import decoder_version
from emcl_train.data.layouts import video_folder
from emcl_train.data.video import PICTURES, sampler_version
from emcl_train.runs.files import json_if_whole

COMPRESSED = "compressed.json"
"""Written by `emcl-train data compress` into the folder of its copies."""
OF_COMPRESSION = ("fps", "short_side", "encoding")
"""What in it decides how frames come out."""


def provenance(config: DataConfig) -> dict[str, Any]:
    """The decoder, the sampler's version and settings, and how the files were compressed, if this program did it."""
    settings = asdict(config)
    of_pictures = (*PICTURES, "didemo_span") if config.layout == "didemo" else PICTURES
    return {
        "decoder": decoder_version(),
        "sampler": sampler_version(config),
        "sampling": {name: settings[name] for name in ("frame_sampling", "num_frames", "image_size")},
        "pictures": {name: settings[name] for name in of_pictures},
        "compression": _compression(video_folder(config)) or _compression(config.root),
    }


def changes(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Sentences about what is another thing in one record than it was in another."""
    names = {
        "decoder": "decoder",
        "sampler": "video sampler version",
        "sampling": "sampling",
        "pictures": "pictures",
        "compression": "compression",
    }
    found = []
    for key, name in names.items():
        # The sampler was always recorded; a record without one of the others is older than it.
        if (key in then or key == "sampler") and then.get(key) != now[key]:
            found.append(f"{name} was {_shown(then.get(key))}, now {_shown(now[key])}")
    return found


def _shown(value: Any) -> str:
    return (
        ", ".join(f"{name} {_shown(entry)}" for name, entry in value.items()) if isinstance(value, dict) else str(value)
    )


def _compression(folder: Path) -> dict[str, Any] | None:
    content = json_if_whole(folder / COMPRESSED)
    if not isinstance(content, dict) or not content.keys() >= set(OF_COMPRESSION):
        return None
    return {name: content[name] for name in OF_COMPRESSION}
