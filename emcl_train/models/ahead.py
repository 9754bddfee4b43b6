"""What is wrong with the settings of a run, as far as it can be told before a video is decoded."""

from emcl_train.config import RunConfig
from emcl_train.errors import UserError
from emcl_train.extras import require_packages
from emcl_train.flags import flag
from emcl_train.kinds import SYSTEMS
from emcl_train.models.clip import look_at_clip, require_inputs, require_random_sizes
from emcl_train.models.experts.ahead import look_at_experts
from emcl_train.models.retrieval import require_bases, require_frames, require_parts
from emcl_train.models.towers.adapters import require_rank
from emcl_train.runs.clip_config import family_in
from emcl_train.runs.machine import process_count


def look_ahead(config: RunConfig) -> int | None:
    """Compare the towers that a run starts from with its frames, captions and bases, and its chunks with its batch.

    A run that goes on was looked at when it began: only whether its weights can be read is asked again. Of a system on
    experts, widths are compared once its files are open.

    Returns:
        How wide the features will be; None if a run goes on, or has no towers.

    Raises:
        UserError: a checkpoint is missing, damaged or no CLIP, or a setting does not fit it.
    """
    model, data = config.model, config.data
    if model.system != "clip":
        of_norms = "its batch norms look at the whole batch, of which each process would have a part"
        require_one_process(SYSTEMS[model.system].label, of_norms)
        if not config.resume:
            look_at_experts(config)
        return None
    if config.answers_questions:
        require_one_process("question answering", "its batches are not shared among processes")
    if config.train.lora:
        require_packages("lora")
    sizes = look_at_clip(model, goes_on=config.resume)
    if config.resume:
        return None

    if sizes is None:
        require_random_sizes(model, image_size=data.image_size)
        width = model.random_clip.width
    else:
        source = model.clip if model.init_from is None else f"model.init_from {model.init_from}"
        require_inputs(sizes, image_size=data.image_size, max_words=data.max_words, source=source)
        if family_in(sizes) != "clip":
            require_parts(model, family_in(sizes))
            require_frames(sizes, data.num_frames)
        if config.train.lora:
            require_rank(config.train.lora, sizes)
        width = int(sizes["projection_dim"])
    require_bases(config.emcl, width=model.answers.joint if config.answers_questions else width)

    processes = process_count()
    own = config.train.batch_size // processes
    if config.train.chunks > max(1, own):
        raise UserError(
            f"train.chunks is {config.train.chunks}, expected 1 to {own}, the pairs that each process has of a batch "
            f"of {config.train.batch_size} (processes: {processes}); pass {flag('train.chunks')} {own} or less"
        )
    return width


def require_one_process(what: str, why: str) -> None:
    """Raise a UserError where several processes would train what can be trained in one alone.

    Args:
        what: a system or a task.
        why: the end of a sentence.
    """
    if (count := process_count()) > 1:
        error = UserError(
            f"{what} trains in one process, and {count} were started: {why}; start it without torchrun or another "
            f"launcher"
        )
        error.of_all_processes = True
        raise error
