"""The commands train and resume."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from emcl_train.commands.entry import Entry, after_a_word, flags_of, named, show_help
from emcl_train.commands.everywhere import is_dry_run
from emcl_train.commands.output import json_result, with_bare_json
from emcl_train.config import (
    MAX_PIXELS,
    NOT_OF_THE_MODEL,
    DataConfig,
    RunConfig,
    but_for_its_cache,
    check_config,
    differing_settings,
    flattened,
)
from emcl_train.endings import say_if_ended
from emcl_train.errors import UserError
from emcl_train.extras import require_packages
from emcl_train.flags import Command, flag, of_command
from emcl_train.recipes import KNOWN_RECIPES, RECIPES, in_mode, load_recipe
from emcl_train.runs.contents import (
    CONFIG,
    RESULTS,
    STATE,
    check_run_folder,
    kept_from_before,
    load_config,
    may_begin,
    planned_seeds,
    require_run,
    seed_folders,
    with_settings,
)
from emcl_train.runs.files import read_json
from emcl_train.runs.lock import require_quiet
from emcl_train.runs.machine import is_first_process
from emcl_train.terminal import console_of, escaped, warn
from emcl_train.weights.hub import plain_names, require_places_of
from emcl_train.weights.settling import FOLLOWING, OF_A_MODEL, of_another_model, said_in, settled

MAY_CHANGE = tuple(name for name in NOT_OF_THE_MODEL if "." in name)
"""Settings with which a run may go on that it was not started with."""


@dataclass
class TrainArguments:
    """Train, evaluate and write a report."""

    settings: Annotated[RunConfig, tyro.conf.arg(name="")]
    """Of the run."""
    config: Path | None = None
    """Take settings from this file, YAML or JSON, such as `--print-config` prints, or all of them from a run's folder
    or config.json. Flags go before the file, and the file before the recipe."""
    print_config: bool = False
    """Print all settings as a file for --config, and do nothing else."""
    json: Path | None = None
    """Write the figures to this file too; alone, or with -, print them in place of all else."""


def run_train(recipe: str | None, arguments: list[str]) -> int:
    """Train by a recipe, whose settings are the defaults of the options.

    Args:
        recipe: its name; None: the file behind --config names it.
        arguments: the options.
    """
    default = RunConfig() if recipe is None else load_recipe(recipe)
    words = "train" if recipe is None else f"train {recipe}"
    description = TrainArguments.__doc__ if recipe is None else RECIPES[recipe].__doc__

    def parse(default: RunConfig) -> TrainArguments:
        return parsed(arguments, default, words, description)

    # What an option says of others is known once it is parsed: the file of settings, another mode of EMCL, which has
    # other defaults, and the run to go on with.
    asked = parse(default)
    whose = None
    of_file: dict[str, Any] = {}
    said = said_in(arguments)
    file = asked.config
    if file is not None:
        from emcl_train.commands.settings_file import (
            but_for_the_mode,
            read_settings,
            recipe_in,
            run_of_settings,
            with_file,
        )

        default = with_file(file, load_recipe(recipe or recipe_in(file)))
        whose = run_of_settings(file)
        if recipe not in (None, default.recipe):
            raise UserError(
                f"{file} has settings of the recipe {default.recipe}, and {recipe} is asked for; pass "
                f"{default.recipe}, or take the line `recipe` out of a copy of the file"
            )
        of_file = but_for_the_mode(file, default.recipe)
        asked = parse(default)

        # What the file's model brought along is not said for another one.
        says = {*FOLLOWING, *OF_A_MODEL} if whose is not None else set(read_settings(file))
        of_others: dict[str, Any] = {}
        if says & set(OF_A_MODEL):
            of_others = of_another_model(asked.settings, replace(default, model=plain_names(default.model)), whose)
        said |= says - of_others.keys()
        if of_others:
            of_file = {name: value for name, value in of_file.items() if name not in of_others}
            default = with_settings(default, of_others)
            asked = parse(default)
    if asked.settings.emcl.mode != default.emcl.mode:
        asked = parse(with_settings(in_mode(default, asked.settings.emcl.mode), of_file))

    # A run goes on as it was started: what is not said again is its own.
    config = asked.settings
    with of_command(Command(flags_of(TrainArguments))):
        started = run_to_go_on_with(config.out) if config.resume else None
        if started is not None:
            if asked.config is None:
                again = parse(started).settings
            else:
                again = parse(with_settings(with_file(asked.config, started), {"resume": True})).settings
            config = as_it_was_started(replace(again, recipe=config.recipe), started)
            whose = config.out
        if whose is not None:
            look_at_what_is_followed(whose, config, asked, arguments)
        return train_with(config if started is not None else settled(config, said), asked)


def run_resume(folder: str, arguments: list[str]) -> int:
    """Go on with a run, whose settings are the defaults of the options."""
    run = Path(folder)
    started = run_to_go_on_with(run)
    if started is None:
        require_run(run)
        raise UserError(f"{run} is not a run folder; pass the --out folder of `emcl-train train`")

    description = f"Go on with the training in {run}. Options that are given must say what the run has."
    asked = parsed(arguments, started, f"resume {run}", description)
    if asked.config is not None:
        raise UserError(f"the run in {run} has its settings in {CONFIG}; leave out --config")

    with of_command(Command(flags_of(TrainArguments))):
        config = as_it_was_started(asked.settings, started)
        look_at_what_is_followed(run, config, asked, arguments)
        return train_with(config, asked)


def parsed(arguments: list[str], default: RunConfig, words: str, description: str | None) -> TrainArguments:
    """What a user has typed, over the settings of `default`."""
    asked = tyro.cli(
        TrainArguments,
        args=with_bare_json(arguments),
        default=TrainArguments(default),
        prog=f"emcl-train {words}",
        description=description,
    )
    settings = asked.settings
    return replace(asked, settings=replace(settings, model=plain_names(settings.model)))


def train_with(config: RunConfig, asked: TrainArguments) -> int:
    """Look at what can be looked at without torch, and train."""
    check_config(config)
    if asked.print_config:
        from emcl_train.commands.settings_file import as_yaml

        if is_first_process():
            print(as_yaml(config), end="")
        return 0

    require_packages()
    say_if_ended(lambda: what_training_leaves(config))
    if config.from_features is None:
        require_places_of(config)
    if config.seeds == 1 and is_first_process():  # which makes the folder
        check_run_folder(config)
        if config.resume and (config.out / CONFIG).is_file() and (kept := kept_from_before(config.out)):
            text = f"{config.out} is older than some settings, and keeps its own: {'; '.join(kept)}"
            warn(escaped(text), console_of())
    if is_dry_run():
        from emcl_train.tools.plan import print_plan

        if is_first_process():
            print_plan(config)
        return 0
    with json_result(asked.json if is_first_process() else None) as result:
        run_training(config)
        if asked.json is not None and is_first_process():
            result(outcome_of(config))
    return 0


def outcome_of(config: RunConfig) -> dict[str, Any]:
    """What a training that has ended gives to programs: what results.json holds, of the run or of each of several."""

    def of_one(run: Path) -> dict[str, Any]:
        return {"run": run, **read_json(run / RESULTS, f"measure it again by `emcl-train eval {run}`", keys=())}

    if config.seeds == 1:
        return of_one(config.out)
    return {"run": config.out, "runs": [of_one(run) for run in seed_folders(config.out)]}


def run_to_go_on_with(out: Path) -> RunConfig | None:
    """The settings of the run in a folder, or of the runs with different seeds; None if there is none."""
    if (out / CONFIG).is_file():
        return replace(but_for_its_cache(load_config(out)), out=out, resume=True)
    begun = [run for run in seed_folders(out) if (run / CONFIG).is_file()]
    if not begun:
        return None

    config = but_for_its_cache(load_config(begun[0]))
    first, seeds = planned_seeds(out)
    return replace(config, out=out, resume=True, seeds=seeds, train=replace(config.train, seed=first))


def as_it_was_started(asked: RunConfig, started: RunConfig) -> RunConfig:
    """The settings with which a run goes on.

    Args:
        asked: the run's own, but for what the user said.
        started: the run's own.

    Raises:
        UserError: the user said something else than what the run was started with.
    """
    # A path may be said in another way.
    first, second = flattened(asdict(started)), flattened(asdict(asked))
    same = {
        name: value
        for name, value in first.items()
        if isinstance(value, Path) and isinstance(second[name], Path) and value.resolve() == second[name].resolve()
    }
    config = with_settings(asked, same)
    if not config.resume or config.out != started.out:
        raise UserError(f"resume goes on in {started.out}; leave out {'--out' if config.resume else '--no-resume'}")
    if different := differing_settings(started, config):
        raise UserError(
            f"the run in {started.out} was started with other settings: {'; '.join(different)}; leave these out, or "
            f"start a new run with another --out. A run that goes on may have another {', '.join(MAY_CHANGE)}"
        )
    return config


def of_run(run: Path) -> DataConfig:
    """The data set's settings in a run's own configuration."""
    folder = run if (run / CONFIG).is_file() else seed_folders(run)[0]
    return load_config(folder).data


def look_at_what_is_followed(run: Path, config: RunConfig, asked: TrainArguments, arguments: Sequence[str]) -> None:
    """Say what of a run's configuration, which may be a stranger's, is not done unasked, or refuse to do it.

    Args:
        run: whose; a folder of seeds has that of its first run.
        config: what is done.
        asked: of the command.
        arguments: its options, in which the user can ask for it.

    Raises:
        UserError: larger frames than usual would be read, a data set would be rendered, or another process trains the
            run that is to go on.
    """
    theirs = of_run(run)
    require_allowed(theirs, arguments)
    if asked.print_config or not is_first_process():  # the others come to the same
        return
    if config.resume:
        require_quiet(run, here=True)

    from emcl_train.data.annotations import require_made
    from emcl_train.data.cache import say_what_is_not_followed

    say_what_is_not_followed(theirs, config.data)
    if "--data.root" not in named(arguments) and config.from_features is None:
        require_made(config.data)


def require_allowed(theirs: DataConfig, arguments: Sequence[str]) -> None:
    """Ask for what a run's configuration, which may be a stranger's, allows beyond what is allowed everywhere."""
    if theirs.max_pixels > MAX_PIXELS and "--data.max-pixels" not in named(arguments):
        raise UserError(
            f"the configuration of the run allows frames of {theirs.max_pixels} pixels, of which no more than "
            f"{MAX_PIXELS} are read unasked; {flag('data.max_pixels')} {theirs.max_pixels} allows them"
        )


def describe() -> None:
    """The help of train without a recipe."""
    recipes = "\n".join(f"    {name:<15} {RECIPES[name].__doc__}" for name in sorted(RECIPES))
    shown = "jsonl"
    show_help(
        TrainArguments,
        TrainArguments(load_recipe(shown)),
        "train RECIPE",
        f"Train by a recipe, evaluate the best epoch on the test split, and write a report.\n\nRECIPE is one of\n"
        f"{recipes}\n\nEach option overrides one setting of the recipe. The defaults below are those of {shown}; "
        "`emcl-train train RECIPE --help` shows a recipe's own. With --config the file may name the recipe.",
    )


def describe_resume() -> None:
    """The help of resume without a run."""
    show_help(
        TrainArguments,
        TrainArguments(replace(RunConfig(), resume=True)),
        "resume RUN",
        "Go on with a training that was ended: RUN is its --out folder, also one of several seeds. It needs nothing "
        "else. Options that are given all the same must say what the run was started with, but for "
        f"{', '.join(MAY_CHANGE)}, which may change.",
    )


def what_training_leaves(config: RunConfig) -> str:
    """What there is of a run, or of runs with different seeds, that did not come to its end, and how to go on."""
    runs = seed_folders(config.out) if config.seeds > 1 else [config.out]
    saved = [run for run in runs if (run / STATE).is_file()]
    if not saved:
        how = "the same command" + ("" if all(map(may_begin, runs)) else " with --resume")
        return f"no state of {config.out} was saved yet; {how} begins it again"
    if config.seeds > 1:
        return (
            f"of {config.seeds} runs in {config.out} {len(saved)} are saved as of their last states; a training run "
            f"goes on with `emcl-train resume {config.out}`, and finished ones are kept"
        )
    return f"{config.out} is saved as of its last state; a training run goes on with `emcl-train resume {config.out}`"


def run_training(config: RunConfig) -> None:
    """One run, or one for each seed."""
    if config.seeds > 1:
        from emcl_train.training.seeds import train_seeds

        train_seeds(config, settle=False)
    else:
        from emcl_train.training.trainer import train

        train(config, settle=False)


_WITH_RECIPE = after_a_word(
    run_train,
    f"train needs a recipe before its options, or --config FILE with settings of one; known recipes: {KNOWN_RECIPES}",
    describe,
)


def train_command(arguments: list[str]) -> int:
    """`train RECIPE`, or `train --config FILE`, which names the recipe."""
    no_recipe = arguments[:1] != [] and arguments[0].startswith("-")
    return run_train(None, arguments) if no_recipe and "--config" in named(arguments) else _WITH_RECIPE(arguments)


COMMANDS = {
    "train": Entry(
        "RECIPE [--OPTION VALUE ...]",
        f"train, evaluate and write a report; recipes: {KNOWN_RECIPES}",
        train_command,
        in_processes=True,
    ),
    "resume": Entry(
        "RUN",
        "go on with a training that was ended, also with all runs of a folder of seeds",
        after_a_word(
            run_resume, "resume needs the folder of a run before its options, such as runs/shapes", describe_resume
        ),
        in_processes=True,
    ),
}
