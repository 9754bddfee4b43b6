"""Video question answering as EMCL's authors released it: an answer is a class, and EMCL regularises in training.

The specification was written from their code (jpthu17/EMCL @3af1794, `video_question_answering`). Inferred are the
initial weights of the head, that the video stands first where both are joined, and that the pooling's weights look at
features before these are masked.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import normalize

from emcl_kernels import EMCL
from emcl_train.config import AnswerConfig, RunConfig
from emcl_train.errors import UserError
from emcl_train.flags import flag
from emcl_train.models.clip import TowersModel
from emcl_train.models.em_features import AddUp, UnitRows, rows_similarity
from emcl_train.models.features import Batch, widened
from emcl_train.models.retrieval import Tokenizer, build_emcl, vocabulary_of
from emcl_train.models.start import starting_towers
from emcl_train.models.temporal import TransformerAggregation
from emcl_train.models.towers import CLIPTowers, Towers


class ProjectedTransformer(TransformerAggregation):
    """CLIP4Clip's temporal transformer, whose outputs go through a linear layer before the frames are added."""

    def __init__(
        self, width: int, *, layers: int, heads: int, hidden_act: str, num_frames: int, eps: float = 1e-12
    ) -> None:
        super().__init__(width, layers=layers, heads=heads, hidden_act=hidden_act, num_frames=num_frames, eps=eps)
        self.projection = drawn_linear(width, width)

    def forward(self, frames: Float[Tensor, "B F D"], frame_mask: Bool[Tensor, "B F"]) -> Float[Tensor, "B F D"]:
        return frames + self.projection(self.related(frames, frame_mask))


class Answers(NamedTuple):
    """What a forward pass makes of questions about videos."""

    logits: Float[Tensor, "B C"]
    question: Float[Tensor, "B E"]
    """Projected, not normalised, as is the video."""
    video: Float[Tensor, "B E"]
    logit_scale: Float[Tensor, ""]
    """CLIP's factor from cosine to logits."""


class AnswerHead(nn.Module):
    """Tokens and frames, each pooled and projected, to a number for each answer.

    Initial weights, which are an assumption: matrices normal with deviation 0.02, biases zero, as DRL's begin.

    Args:
        width: of the features.
        num_answers: classes.
        sizes: of what is between; None: the released ones.
        dropout: of the joined features, in training.
    """

    def __init__(
        self, width: int, num_answers: int, sizes: AnswerConfig | None = None, *, dropout: float = 0.1
    ) -> None:
        super().__init__()
        sizes = AnswerConfig() if sizes is None else sizes
        self.video_pool = pooling_network(width)
        self.question_pool = pooling_network(width)
        self.video_projection = drawn_linear(width, sizes.joint)
        self.question_projection = drawn_linear(width, sizes.joint)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Sequential(
            drawn_linear(2 * sizes.joint, sizes.hidden), nn.ReLU(), drawn_linear(sizes.hidden, num_answers)
        )

    def forward(
        self,
        frames: Float[Tensor, "B F D"],
        frame_mask: Bool[Tensor, "B F"],
        words: Float[Tensor, "B L D"],
        word_mask: Bool[Tensor, "B L"],
    ) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B E"], Float[Tensor, "B E"]]:
        """A logit for each answer, and what the projections made of the question and the video."""
        video = self.video_projection(pooled(self.video_pool, frames, frame_mask))
        question = self.question_projection(pooled(self.question_pool, words, word_mask))
        logits = self.classifier(self.dropout(torch.cat([video, question], dim=-1)))
        return widened(logits), widened(question), widened(video)


def pooled(network: nn.Module, rows: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B D"]:
    """Rows added up with their shares.

    Padding takes part in the softmax and adds nothing, as released: shares of a short clip sum to less than one.
    """
    shares = torch.softmax(widened(network(rows).squeeze(-1)), dim=-1)
    return (shares.to(rows.dtype) * mask).unsqueeze(1).matmul(rows).squeeze(1)


def pooling_network(width: int) -> nn.Sequential:
    """A row to one number."""
    return nn.Sequential(drawn_linear(width, width), nn.ReLU(), drawn_linear(width, 1))


def drawn_linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


class AnswerModel(TowersModel):
    """CLIP's towers, the temporal transformer, the head, and EMCL, which only the loss has use for."""

    towers: CLIPTowers

    def __init__(self, towers: CLIPTowers, temporal: ProjectedTransformer, head: AnswerHead, emcl: EMCL) -> None:
        super().__init__()
        self.towers = towers
        self.temporal = temporal
        self.head = head
        self.emcl = emcl

    def encode_video(self, batch: Batch) -> tuple[Float[Tensor, "B F D"], Bool[Tensor, "B F"]]:
        """Frames after the temporal transformer, and which of them are no padding.

        A video is the same for all of its questions: an evaluation encodes it once.
        """
        mask = batch["frame_mask"]
        return self.temporal(self.towers.encode_frames(batch["frames"]), mask), mask

    def encode_question(self, batch: Batch) -> tuple[Float[Tensor, "B L D"], Bool[Tensor, "B L"]]:
        """Every token of the questions, and which of them are no padding.

        Padding has token 0 and is attended to as CLIP's text tower does, by what stands behind: the softmax of the
        pooling counts it.
        """
        mask = batch["attention_mask"].bool()
        ids = batch["input_ids"].masked_fill(~mask, 0)
        _, words = self.towers.encode_text(ids, torch.ones_like(ids), tokens=True)
        assert words is not None
        return words, mask

    def answer(
        self,
        video: tuple[Float[Tensor, "B F D"], Bool[Tensor, "B F"]],
        question: tuple[Float[Tensor, "B L D"], Bool[Tensor, "B L"]],
    ) -> Answers:
        """Of encoded videos and as many questions."""
        logits, questions, videos = self.head(*video, *question)
        return Answers(logits, questions, videos, self.logit_scale)

    def forward(self, batch: Batch) -> Answers:
        """Of a batch of questions, each with its video."""
        return self.answer(self.encode_video(batch), self.encode_question(batch))

    def contrast(self, answers: Answers, *, emcl: bool, add_up: AddUp | None = None) -> Float[Tensor, "B V"]:
        """Cosines of all questions with all videos, after an EM over the rows of both; the answer does not need it.

        Args:
            answers: of a batch. Of several processes, with the videos of all.
            emcl: run EM first.
            add_up: sums over processes with other questions and the same videos; see `EMCL`.
        """
        question = UnitRows(answers.question.unsqueeze(1))
        video = UnitRows(answers.video.unsqueeze(1))
        return rows_similarity(question, video, cosines, self.emcl if emcl else None, add_up)


CONTRAST_WEIGHT = 0.5
"""Of the contrastive part of the loss."""


def answer_loss(
    answers: Answers,
    labels: Int64[Tensor, " B"],
    similarity: Float[Tensor, "B V"],
    contrastive: Callable[[Tensor, Tensor], Tensor],
) -> Float[Tensor, ""]:
    """Cross entropy of the answers, and half the contrastive loss of questions and videos.

    Questions of one video are wrong for each other's copy of it, as released.

    Args:
        answers: of a batch.
        labels: of the right ones.
        similarity: what `AnswerModel.contrast` gave.
        contrastive: `symmetric_info_nce`, which takes the similarity and CLIP's factor.

    Raises:
        ValueError: a label is none of the answers.
    """
    classes = answers.logits.shape[1]
    if not bool(((labels >= 0) & (labels < classes)).all()):
        raise ValueError(f"labels are {labels.tolist()}; expected 0 to {classes - 1}: train on known answers alone")
    of_answers = functional.cross_entropy(answers.logits, labels)
    return of_answers + CONTRAST_WEIGHT * contrastive(similarity, answers.logit_scale)


def cosines(question: UnitRows, video: UnitRows) -> Float[Tensor, "A B"]:
    """Of rows of any length."""
    first = normalize(question.values.squeeze(-2), dim=-1)
    second = normalize(video.values.squeeze(-2), dim=-1)
    return first @ second.mT


def clips_own(towers: Towers, name: str) -> CLIPTowers:
    """The towers, which have to be CLIP's: padding is token 0, and looked at by what stands behind it.

    Raises:
        UserError: they are of another family.
    """
    if not isinstance(towers, CLIPTowers):
        raise UserError(
            f"model.clip is {name}, and question answering is built on CLIP's towers alone; pass "
            f"{flag('model.clip')} a CLIP"
        )
    return towers


def build_answer_model(
    config: RunConfig, tokenizer: Tokenizer, num_answers: int, clip_config: Mapping[str, Any] | None = None
) -> AnswerModel:
    """The model of a run, its random parts drawn from torch's global generator.

    Args:
        config: the run's; of `model`, what concerns the towers, the temporal transformer, the head and `init_from`.
        tokenizer: the run's.
        num_answers: classes.
        clip_config: configuration of the towers, for a model that waits for the weights of a run: nothing is read.

    Raises:
        UserError: a checkpoint cannot be read, or does not fit.
    """
    start = starting_towers(config, vocabulary_of(tokenizer), clip_config, waits=clip_config is not None)
    towers = clips_own(start.towers, config.model.clip)
    start.settle()

    temporal = ProjectedTransformer.of_config(
        config.model, towers.clip, width=towers.width, num_frames=config.data.num_frames
    )
    assert isinstance(temporal, ProjectedTransformer)
    sizes = config.model.answers
    head = AnswerHead(towers.width, num_answers, sizes)
    model = AnswerModel(towers, temporal, head, build_emcl(config.emcl, width=sizes.joint))
    start.put_into(model)
    return model
