"""How many questions are answered right: of those whose answer is a class, and of all that were asked."""

from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class Accuracies:
    """In percent. Published figures are of the kept questions: the others are left out of the test set."""

    kept: int
    """Questions whose answer is one of the classes."""
    asked: int
    """All questions; those that were not kept count as answered wrong."""
    top1_of_kept: float
    top5_of_kept: float
    top1_of_all: float
    top5_of_all: float

    @property
    def left_out(self) -> int:
        return self.asked - self.kept

    @property
    def shares(self) -> dict[str, float]:
        """The accuracies by name."""
        return {name: value for name, value in asdict(self).items() if name not in ("kept", "asked")}

    def lines(self) -> list[tuple[str, float]]:
        """Each figure under a name that says of which questions it is."""
        kept = f"{self.kept} kept questions"
        asked = f"all {self.asked} questions"
        return [
            (f"accuracy over the {kept}", self.top1_of_kept),
            (f"top-5 accuracy over the {kept}", self.top5_of_kept),
            (f"accuracy over {asked}", self.top1_of_all),
            (f"top-5 accuracy over {asked}", self.top5_of_all),
        ]


def accuracies(logits: Float[Tensor, "N C"], labels: Int64[Tensor, " N"], *, left_out: int) -> Accuracies:
    """Top-1 and top-5 accuracy.

    A right answer with as great a logit as others stands behind them, so that a model which tells nothing apart gets
    nothing right.

    Args:
        logits: of the kept questions, a number for each answer.
        labels: their right answers.
        left_out: questions that were asked beside them, whose answer is no class.

    Raises:
        ValueError: a label is no class, or there is no question.
    """
    count, classes = logits.shape
    if not count or not bool(((labels >= 0) & (labels < classes)).all()):
        raise ValueError(
            f"accuracies got {count} questions and labels for {classes} answers; expected 0 to {classes - 1}"
        )
    if left_out < 0:
        raise ValueError(f"left_out is {left_out}; expected 0 or more")

    right = logits.gather(1, labels.unsqueeze(1))
    # Not greater, so that NaN is worse than everything.
    rank = (~(logits < right)).sum(1)  # 1: the best
    first = int((rank <= 1).sum())
    five = int((rank <= 5).sum())
    asked = count + left_out
    return Accuracies(count, asked, *(100 * n / of for of in (count, asked) for n in (first, five)))


def top_answers(logits: Float[Tensor, "N C"], number: int = 5) -> Int64[Tensor, "N T"]:
    """The classes of the greatest logits, best first."""
    return torch.topk(logits, min(number, logits.shape[1]), dim=1).indices
