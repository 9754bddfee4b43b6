"""A small model of video question answering."""

import torch

from emcl_train.config import AnswerConfig, DataConfig, EMCLConfig, ModelConfig, RandomClipConfig, RunConfig
from emcl_train.models.question_answering import AnswerModel, build_answer_model

EOS, WORDS, FRAMES = 29, 7, 4


class Tokenizer:
    eos_token_id, pad_token_id = EOS, 0

    def __len__(self) -> int:
        return 30


def small_run(**model: object) -> tuple[RunConfig, Tokenizer]:
    settings = {
        "clip": "random",
        "random_clip": RandomClipConfig(16, layers=2, heads=2, patch_size=8),
        "temporal_layers": 2,
        "temporal_eps": 1e-5,
        "answers": AnswerConfig(joint=20, hidden=12),
    }
    run = RunConfig(
        data=DataConfig(num_frames=FRAMES, image_size=16, max_words=WORDS),
        model=ModelConfig(**{**settings, **model}),
        emcl=EMCLConfig(num_bases=16, num_iters=5, temperature=1.0, residual_weight=1.0),
    )
    return run, Tokenizer()


def small_model(num_answers: int, seed: int = 0) -> AnswerModel:
    """One with no weight that is zero by convention."""
    torch.manual_seed(seed)
    model = build_answer_model(*small_run(), num_answers)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()
