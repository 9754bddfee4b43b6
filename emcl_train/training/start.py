"""The start of a run: its processes, its folder, its seed, and the record of where it runs."""

import platform
import random
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs

from emcl_train.config import RunConfig
from emcl_train.device import asked_of_accelerate
from emcl_train.errors import UserError
from emcl_train.evaluation.provenance import frames_of
from emcl_train.processes import PATIENCE
from emcl_train.runs import contents
from emcl_train.runs import files as run_files
from emcl_train.runs.code import command_line, commit, now, processor
from emcl_train.runs.finished import ENDS_WITH, require_state
from emcl_train.runs.places import EVALUATIONS

TRACKER = "tracker"
"""Project name for a tracker, and the folder of one that writes files."""
FOLDERS = (Path(contents.STATE).parts[0], EVALUATIONS, TRACKER)
"""What training writes into inside a run's folder."""


def start_processes(config: RunConfig) -> Accelerator:
    """Join the processes that torchrun or `accelerate launch` started, if any: over NCCL on GPUs, over gloo on CPUs.

    Raises:
        UserError: the tracker's package is not installed.
    """
    tracker = config.train.tracker
    if tracker not in ("none", *map(str, get_available_trackers())):
        raise UserError(
            f"train.tracker is {tracker}, whose package is not installed; install it with `pip install {tracker}`, or "
            f"pass --train.tracker none"
        )

    # Asked for an accelerator on a machine without one, accelerate would take each process for the only one.
    cpu = asked_of_accelerate()
    return Accelerator(
        cpu=not torch.accelerator.is_available() if cpu is None else cpu,
        mixed_precision=config.train.precision,
        log_with=None if tracker == "none" else tracker,
        project_dir=config.out,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )


def open_run_folder(config: RunConfig) -> None:
    """Create the run folder with its configuration, or check that the run in it may go on.

    Raises:
        UserError: a run would be overwritten, or resumed with other settings.
    """
    contents.check_run_folder(config)  # again: since the command looked, another process may have been quicker
    out = config.out

    # What an ended run left half written, or one that ended before its first step.
    if config.resume:
        for inside in FOLDERS:
            run_files.require_no_link(out, inside)
        require_state(out)
        contents.remove_partial_files(out)
    elif out.is_dir():
        for name in contents.WRITTEN_BEFORE_TRAINING:
            (out / name).unlink(missing_ok=True)

    if not (out / contents.CONFIG).exists():
        out.mkdir(parents=True, exist_ok=True)
        contents.save_config(out, replace(config, resume=False))


def seed_everything(seed: int, device: torch.device) -> None:
    """The same seed gives the same bits on the CPU, and the same draws everywhere."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)

    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        # NaN in fresh memory finds bugs in tests, and costs a pass over every tensor in training.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def environment(config: RunConfig, device: torch.device) -> dict[str, object]:
    """What the figures of a run may depend on besides its configuration."""
    packages = ["emcl", "torch", "transformers", "tokenizers", "ftfy", "accelerate", "av", "safetensors", "numpy"]
    packages += ["peft"] if config.train.lora else []
    packages += ["open_clip_torch", "timm"] if "open_clip" in sys.modules else []  # imported for its models alone
    return {
        "command": command_line(),
        "started": now(),
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: installed_version(name) for name in packages},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "seed": config.train.seed,
        ENDS_WITH: contents.FINISHED,
        **frames_of(config),
    }


def installed_version(package: str) -> str:
    """The version of a package, or that it is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
