"""A run folder as training and evaluation leave it, from random numbers instead of a trained model."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch
from torch.nn.functional import normalize

from emcl_kernels import EMCL
from emcl_train.config import DataConfig, EMCLConfig, RandomClipConfig, RunConfig
from emcl_train.evaluation.table import Similarities, lines_of
from emcl_train.runs.contents import save_config
from emcl_train.runs.files import write_json_atomic
from emcl_train.runs.state import save_tensors_atomic


def make_run(
    path: Path,
    *,
    clips: int = 40,
    captions_per_clip: int = 1,
    root: Path = Path("absent"),
    mode: Literal["train", "inference", "off"] = "train",
) -> RunConfig:
    """Write a finished run into a folder. Captions and clips are noisy copies of the same directions."""
    generator = torch.Generator().manual_seed(0)
    width, num_frames = 32, 4
    config = RunConfig(out=path, data=DataConfig(root=root, num_frames=num_frames, image_size=32))
    config.model.clip, config.model.random_clip = "random", RandomClipConfig(width=width)
    config.emcl = EMCLConfig(mode=mode, num_bases=8)
    caption_clip = torch.arange(clips).repeat_interleave(captions_per_clip)
    meaning = torch.randn(clips, width, generator=generator)
    text = meaning[caption_clip] + 0.9 * torch.randn(len(caption_clip), width, generator=generator) + 0.7
    frames = meaning[:, None] + 0.9 * torch.randn(clips, num_frames, width, generator=generator) - 0.7
    similarity = normalize(text, dim=1) @ normalize(frames.mean(dim=1), dim=1).T
    scores = Similarities(None if mode == "off" else similarity + 0.01 * similarity**2, similarity)
    tensors = {
        "text": text,
        "frames": frames,
        "frame_mask": torch.ones(clips, num_frames, dtype=torch.bool),
        "caption_clip": caption_clip,
        "similarity_off": scores.emcl_off,
    }
    if scores.emcl_on is not None:
        tensors |= {"similarity_on": scores.emcl_on, "bases": EMCL(num_bases=8).bases}
    results = {
        "recipe": "shapes",
        "rows": [asdict(row) for row in lines_of(scores, caption_clip, config)],
        "split": "test",
        "queries": len(caption_clip),
        "gallery": clips,
        "em_block": None,
        "selection": "validation text→video R@1: epoch 5",
        "sampler": 1,
        "left_out": {"video20": "truncated after 3 of 90 frames"},
        "notes": ["2 of the test captions occur twice."],
    }
    path.mkdir(parents=True, exist_ok=True)
    save_config(path, config)
    write_json_atomic(path / "environment.json", {"python": "3.12", "packages": {"torch": "2.13"}, "sampler": 1})
    write_json_atomic(path / "results.json", results)
    write_json_atomic(path / "finished.json", {"epochs": 6, "steps": 60, "weights": "crc32:00000000"})
    write_json_atomic(
        path / "queries.json",
        {
            "video_ids": [f"video{i}" for i in range(clips)],
            "captions": [f"<b>caption</b> {i} & a red square grows" for i in range(len(caption_clip))],
        },
    )
    save_tensors_atomic(path / "embeddings.safetensors", tensors)
    lines = []
    for step in range(1, 61):
        lines.append(
            {"kind": "train", "step": step, "epoch": (step - 1) // 10 + 1, "loss": 5.0 / step**0.5, "lr": 1e-3}
        )
        if step % 10 == 0:
            recall = {"R@1": step / 1.5, "R@5": step / 1.2, "R@10": step / 1.0, "MdR": 3.0, "MnR": 9.0}
            other = {key: 0.9 * value for key, value in recall.items()}
            lines.append(
                {
                    "kind": "validation",
                    "step": step,
                    "epoch": step // 10,
                    "text_to_video": recall,
                    "video_to_text": other,
                }
            )
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return config
