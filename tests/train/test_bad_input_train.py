"""Bad settings and run folders: one error each, with the argument, what was expected, what came, and the way out."""

import pytest

from emcl_train.config import RunConfig, check_config
from emcl_train.errors import UserError
from emcl_train.recipes import load_recipe
from emcl_train.runs.contents import load_config, save_config
from emcl_train.training.start import open_run_folder


def setting(section, name, value):
    """A configuration with one bad setting."""

    def check(_):
        config = RunConfig()
        setattr(getattr(config, section), name, value)
        check_config(config)

    return check


def out_is_a_file(folder):
    (folder / "run").touch()
    open_run_folder(RunConfig(out=folder / "run"))


def out_holds_files(folder):
    (folder / "notes.txt").touch()
    open_run_folder(RunConfig(out=folder))


def resume_nothing(folder):
    open_run_folder(RunConfig(out=folder / "none", resume=True))


def resume_with_other_settings(folder):
    save_config(folder, RunConfig())
    config = RunConfig(out=folder, resume=True)
    config.train.lr = 0.5
    open_run_folder(config)


BAD_INPUTS = {
    "no-epochs": (setting("train", "epochs", 0), r"train.epochs is 0, expected 1 or more; pass --train.epochs"),
    "no-steps": (setting("train", "max_steps", -1), r"train.max_steps is -1, .*--train.max-steps"),
    "one-pair-a-batch": (setting("train", "batch_size", 1), r"train.batch_size is 1, expected 2 or more"),
    "no-chunks": (
        setting("train", "chunks", 0),
        r"train.chunks is 0, expected 1 to 128, the pairs of a batch; pass --tr",
    ),
    "empty-chunks": (setting("train", "chunks", 129), r"train.chunks is 129, expected 1 to 128, .*--train.chunks"),
    "negative-rate": (setting("train", "lr", -1e-3), r"train.lr is -0.001, expected a positive number"),
    "nan-rate": (setting("train", "lr", float("nan")), r"train.lr is nan, expected a positive number"),
    "warmup-in-steps": (setting("train", "warmup", 100), r"train.warmup is 100, expected a share between 0 and 1"),
    "beta-of-one": (setting("train", "betas", (0.9, 1.0)), r"train.betas is \(0.9, 1.0\), expected two numbers"),
    "never-saves": (setting("train", "save_every", 0), r"train.save_every is 0, .*--train.save-every"),
    "no-frames": (setting("data", "num_frames", 0), r"data.num_frames is 0, expected 1 or more"),
    "fewer-than-no-workers": (setting("data", "workers", -1), r"data.workers is -1, expected 0 or more"),
    "no-words": (setting("data", "max_words", 2), r"data.max_words is 2, expected 3 or more"),
    "no-iterations": (setting("emcl", "num_iters", 0), r"emcl.num_iters is 0, expected 1 or more"),
    "no-bases": (setting("emcl", "num_bases", 0), r"emcl.num_bases is 0, expected 1 or more"),
    "cold": (setting("emcl", "temperature", 0.0), r"emcl.temperature is 0.0, expected a positive number"),
    "block-of-none": (setting("eval", "em_block", 0), r"eval.em_block is 0, expected 1 or more"),
    "unknown-recipe": (
        lambda _: load_recipe("msrvtt"),
        r"no recipe 'msrvtt'; known recipes: activitynet, ce-activitynet, ",
    ),
    "no-run-folder": (load_config, r"is not a run folder: it has no config.json; pass the --out folder"),
    "out-is-a-file": (out_is_a_file, r"run is a file, expected a folder"),
    "out-holds-files": (out_holds_files, r"already holds files; go on with that run by --resume, or choose another"),
    "resume-nothing": (resume_nothing, r"there is no run to resume in .*leave out --resume"),
    "resume-other-settings": (resume_with_other_settings, r"train.lr was 0.0001, now 0.5; resume with the same"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_one_error_with_the_way_out(case, tmp_path):
    call, message = BAD_INPUTS[case]
    with pytest.raises(UserError, match=message):
        call(tmp_path)


@pytest.mark.parametrize("recipe", ["shapes", "msrvtt-9k"])
def test_recipes_themselves_are_valid(recipe):
    check_config(load_recipe(recipe))
