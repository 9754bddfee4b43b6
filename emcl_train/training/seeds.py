"""Train one configuration with several seeds, and report what they have in common."""

from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from emcl_train.config import RunConfig, check_config, differing_settings
from emcl_train.errors import UserError
from emcl_train.processes import rank_and_world
from emcl_train.report import render_group
from emcl_train.report.groups import load_group
from emcl_train.runs.contents import CONFIG, SEEDS, as_started, load_config
from emcl_train.runs.files import write_json_atomic
from emcl_train.runs.finished import is_finished, require_weights_of_the_end
from emcl_train.runs.lock import require_quiet, writing
from emcl_train.runs.machine import is_first_process
from emcl_train.terminal import console_of
from emcl_train.training.trainer import train
from emcl_train.weights.settling import settled


def train_seeds(config: RunConfig, console: Console | None = None, *, settle: bool = True) -> Path:
    """Train `config.seeds` runs, with seeds from `train.seed` on, in `out/seed-<seed>`, one after the other.

    With `resume`, finished runs are kept, an unfinished one goes on, and the others are started.

    Args:
        config: settings of all runs; `train.seed` is that of the first one.
        console: where progress is shown; None: the terminal.
        settle: as of `train`.

    Returns:
        The folder of the run folders.

    Raises:
        UserError: for everything that the user can put right.
    """
    console = console_of(console)
    check_config(config)
    config = settled(config) if settle else config
    if config.out.exists() and not config.out.is_dir():
        raise UserError(f"{config.out} is a file, expected a folder for the runs; choose another one with --out")
    if (config.out / CONFIG).exists():
        raise UserError(f"{config.out} holds a single run; choose another folder for {config.seeds} of them with --out")

    # Of several processes the first one keeps others out, of all runs from the beginning.
    with writing(config.out) if is_first_process() else nullcontext():
        # Decided before the first process can create a run's folder: every process must decide alike.
        first = config.train.seed
        plan = [_run_of(config, seed) for seed in range(first, first + config.seeds)]
        runs = [run for run in plan if run is not None]
        if is_first_process():
            for run in runs:
                require_quiet(run.out, here=True)

        # For `emcl-train resume`, which is told no number. That of a try that ended before its first run is not kept.
        begun = any((config.out / f"seed-{seed}").exists() for seed in range(first, first + config.seeds))
        if runs and is_first_process() and (config.resume or not begun or not (config.out / SEEDS).exists()):
            config.out.mkdir(parents=True, exist_ok=True)
            write_json_atomic(config.out / SEEDS, {"first": first, "seeds": config.seeds})

        for run in runs:
            train(run, console, settle=False)

        if rank_and_world()[0] == 0:
            group = load_group(config.out)
            console.print(render_group(config.out, [run.results for run in group.runs]))
    return config.out


def _run_of(config: RunConfig, seed: int) -> RunConfig | None:
    """The run of one seed; None if it is finished and to be kept.

    Raises:
        UserError: a run with that seed was started with other settings.
    """
    out = config.out / f"seed-{seed}"
    run = replace(
        config,
        out=out,
        seeds=1,
        resume=config.resume and out.is_dir(),
        train=replace(config.train, seed=seed),
    )
    if not (config.resume and (out / CONFIG).is_file() and is_finished(out)):
        return run
    require_weights_of_the_end(out)
    if is_first_process():
        with suppress(UserError), writing(out):  # what a process left that was killed right behind its end goes
            pass

    different = differing_settings(load_config(out), as_started(run))
    if different:
        raise UserError(
            f"the run in {out} was trained with other settings: {'; '.join(different)}; go on with the same ones, or "
            "choose another --out"
        )
    return None
