"""What is wrong with the settings of a system on experts, as far as it can be told before its files are opened."""

from pathlib import Path

from emcl_train.config import RunConfig
from emcl_train.errors import UserError
from emcl_train.experts.choosing import published_sizes
from emcl_train.experts.jsfusion import JSFusionSizes
from emcl_train.flags import flag
from emcl_train.kinds import SYSTEMS
from emcl_train.models.experts.bert import look_at_bert
from emcl_train.models.experts.build import OURS
from emcl_train.models.retrieval import require_bases
from emcl_train.weights.files import read_state
from emcl_train.weights.jsfusion import WORD_EMBED
from emcl_train.weights.tensorflow_bundle import TensorFlowBundle
from emcl_train.weights.training_files import read_training_file

BEGINNINGS = {
    "ce": (f"{OURS}reduction.", "ce.", "text_pooling."),
    "mmt": (f"{OURS}reduce.", "reduce.", "video_dim_reduce.", "vid_bert."),
    "jsfusion": (f"{OURS}text_encoder.",),
}
"""Of names of weights by which a checkpoint of a system is known: a run's, and the authors'."""


def look_at_experts(config: RunConfig) -> None:
    """Look at sizes, bases, the BERT and the checkpoint that a run starts from. Widths are known once files are open.

    Raises:
        UserError: a setting does not fit another, the BERT cannot be had, or the checkpoint is of something else.
    """
    sizes = published_sizes(config)
    if not isinstance(sizes, JSFusionSizes):
        require_bases(config.emcl, width=sizes.width)
    if config.model.system == "mmt" and config.experts.text != "random":
        positions = look_at_bert(config.experts.text)
        if config.data.max_words > positions:
            raise UserError(
                f"data.max_words is {config.data.max_words}, and {config.experts.text} reads at most {positions} "
                f"tokens; pass {flag('data.max_words')} {positions} or less"
            )
    if config.model.init_from is not None:
        look_at_start(config.model.system, config.model.init_from.expanduser())


def look_at_start(system: str, path: Path) -> None:
    """Look at the names of the weights that a run is to start from. Shapes are compared once the model is built.

    Args:
        system: `model.system`.
        path: `model.init_from`, which is a file.

    Raises:
        UserError: the file cannot be read, or is of another system.
    """
    if path.suffix == ".safetensors":
        names = list(read_state(path))
    elif system == "jsfusion":
        names = list(TensorFlowBundle(path).variables)
    else:
        names = list(read_training_file(path))
    known = any(name.startswith(BEGINNINGS[system]) for name in names)
    if not known and not (system == "jsfusion" and any(name.split("/")[-1] == WORD_EMBED for name in names)):
        raise UserError(
            f"model.init_from is {path}, which is no checkpoint of {SYSTEMS[system].label}: it begins with "
            f"{next(iter(names), 'nothing')}; pass one of its authors, or a run of {SYSTEMS[system].label}"
        )
