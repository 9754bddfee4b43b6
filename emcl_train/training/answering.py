"""Train video question answering: cross entropy of the answers, and half the contrastive loss in which EMCL acts."""

from pathlib import Path
from typing import Any

from rich.console import RenderableType
from torch import Tensor
from torch.utils.data import DataLoader

from emcl_train.config import PlaceConfig
from emcl_train.data.annotations import Annotations
from emcl_train.data.question_batches import question_loader
from emcl_train.evaluation.answering import answer_names, answered_split, evaluate_answers, measured
from emcl_train.models.question_answering import AnswerModel, answer_loss, build_answer_model
from emcl_train.report import render_table
from emcl_train.training.going_on import pairs_per_step
from emcl_train.training.losses import symmetric_info_nce
from emcl_train.training.selection import Score
from emcl_train.training.trainer import Run


class AnswerRun(Run):
    """A training run of `AnswerModel`: its pairs are questions with their videos, and its figures are accuracies.

    The epoch is chosen on the validation split. The release chooses on the test split: `train.select_on_test`.
    """

    model: AnswerModel
    whole: AnswerModel
    unit = "question"

    def prepare(self) -> Annotations:
        """The data, with the right answers of the questions to learn from and of those that select."""
        annotations = super().prepare()
        selecting = "test" if self.config.train.select_on_test else "val"
        self.answers = answer_names(self.config)
        self.asked = answered_split(annotations, "train", self.config)
        self.selecting = answered_split(annotations, selecting, self.config)
        return annotations

    def pairs_per_step(self) -> int:
        """`train.batch_size`, or all questions if there are fewer, which is said."""
        train = self.config.train
        questions = len(self.asked.labels)
        return pairs_per_step(train.batch_size, train.chunks, questions, self.processes, self.print, what="questions")

    def new_model(self) -> AnswerModel:
        return build_answer_model(self.config, self.tokenizer, len(self.answers))

    def loader(self, epoch: int, start_batch: int = 0) -> DataLoader:
        return question_loader(
            self.asked.split,
            self.asked.labels.tolist(),
            self.tokenizer,
            self.config.data,
            batch_size=self.batch_size,
            seed=self.config.train.seed,
            epoch=epoch,
            start_batch=start_batch,
        )

    def loss(self, features: Any, batch: dict[str, Tensor]) -> Tensor:
        """Of `Answers` and the labels of their batch."""
        similarity = self.model.contrast(features, emcl=self.config.emcl.mode == "train")
        return answer_loss(features, batch["label"], similarity, symmetric_info_nce)

    def measure(self) -> Score:
        figures, _ = measured(self.whole, self.selecting, self.tokenizer, self.config, self.accelerator.device)
        return Score(
            figures.top1_of_kept,
            f"accuracy {figures.top1_of_kept:.1f} over {figures.kept} kept questions",
            100 / len(self.answers),
            {"questions": figures.kept, "accuracies": figures.shares},
        )

    def evaluate(self) -> tuple[RenderableType, Path]:
        results, folder = evaluate_answers(self.out, place=PlaceConfig.of(self.config.data), ends_training=True)
        return render_table(results), folder
