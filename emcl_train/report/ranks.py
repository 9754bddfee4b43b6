"""The rank of every query of a run."""

from jaxtyping import Float
from torch import Tensor

from emcl_train.errors import of_input
from emcl_train.evaluation import metrics
from emcl_train.runs.folder import Run


def text_ranks(run: Run) -> Float[Tensor, "Q"]:
    """Rank of its own clip for each caption.

    Raises:
        UserError: the similarities of the run are not those of its captions and clips.
    """
    with of_input(run.path):
        return metrics.ranks(run.similarity, run.tensors["caption_clip"])


def video_ranks(run: Run) -> Float[Tensor, "G"]:
    """Rank of its own captions for each clip, by best similarity.

    Raises:
        UserError: the similarities of the run are not those of its captions and clips.
    """
    with of_input(run.path):
        return metrics.video_to_text_ranks_by_similarity(run.similarity, run.tensors["caption_clip"])
