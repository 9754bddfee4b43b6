"""The command eval."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from emcl_train.commands.entry import OF_THE_RUN, Entry, after_a_word, flags_of, in_processes, named, show_help
from emcl_train.commands.options_file import print_file, without_print_config
from emcl_train.commands.output import json_result, with_bare_json
from emcl_train.commands.reporting import report
from emcl_train.config import DataConfig, EMCLConfig, EvalConfig, PlaceConfig, RunConfig, check_config
from emcl_train.endings import say_if_ended
from emcl_train.errors import UserError
from emcl_train.flags import Command, of_command
from emcl_train.recipes import in_mode
from emcl_train.runs.contents import load_config
from emcl_train.runs.lock import require_new, writing
from emcl_train.runs.machine import is_first_process, process_count
from emcl_train.terminal import console_of, escaped


@dataclass
class EvalArguments:
    """Evaluate the best weights of a run again, and write a report. The settings are the run's own unless given.

    The run's own results stay: those of other settings go to a folder inside the run's, named for what differs, such
    as `evaluations/em-block-32`. `emcl-train report` takes it beside runs.
    """

    settings: Annotated[EvalConfig, tyro.conf.arg(name="")]
    """In place of the run's."""
    emcl: EMCLConfig
    """In place of the run's. "--emcl.mode inference" alone, for a run in another mode, has the paper's: K = 7."""
    data: PlaceConfig
    """In place of the run's, where its data set lies elsewhere by now."""
    split: Literal["val", "test"] = "test"
    """Which clips."""
    from_features: Path | None = None
    """Evaluate on the features in this folder, which `embed RUN` wrote, in place of videos."""
    out: Path | None = None
    """Folder for the results and the report; it must not exist. None: that of the run, or a folder inside it."""
    json: Path | None = None
    """Write the results to this file too; alone, or with -, print them in place of all else."""


def run_eval(folder: str, arguments: list[str]) -> int:
    """Evaluate a run again, by one process, or by those that a launcher has started."""
    return in_processes(lambda: evaluate(folder, arguments))


def evaluate(folder: str, arguments: list[str]) -> int:
    """Evaluate a run again, whose settings are the defaults of the options."""
    run = Path(folder)
    arguments, prints = without_print_config(with_bare_json(arguments))
    config = load_config(run)

    def parse(config: RunConfig) -> EvalArguments:
        default = EvalArguments(config.eval, config.emcl, PlaceConfig.of_run(config.data))
        return tyro.cli(EvalArguments, args=arguments, default=default, prog=f"emcl-train eval {run}")

    # As in training: the mode decides the defaults of the other settings.
    asked = parse(config)
    if asked.emcl.mode != config.emcl.mode:
        asked = parse(in_mode(config, asked.emcl.mode))
    if prints:
        return print_file(EvalArguments, asked)

    with json_result(asked.json) as result:
        return evaluate_and_print(run, config, asked, arguments, result)


def evaluate_and_print(
    run: Path, config: RunConfig, asked: EvalArguments, arguments: list[str], result: Callable[[Any], None]
) -> int:
    """Evaluate, print the table and write the report."""
    with of_command(Command(flags_of(EvalArguments), "eval.", elsewhere=OF_THE_RUN)):
        check_config(replace(config, eval=asked.settings, emcl=asked.emcl))
        if asked.out is not None and is_first_process():  # which makes the folder
            require_new(asked.out)
        say_if_ended(lambda: f"the figures in {run} are as they were, or whole and new; run the command again")

        from emcl_train.report import render_table, write_report

        evaluation = evaluated_questions if config.answers_questions else evaluated
        results, written = evaluation(run, config, asked, arguments)

    if not is_first_process():
        return 0
    console = console_of()
    console.print(render_table(results))
    with of_command(Command(flags_of(report), elsewhere=OF_THE_RUN)):
        say_if_ended(lambda: f"the figures in {written} are whole; `emcl-train report {written}` writes their report")
        with writing(written):
            page = write_report(written)
        console.print(f"report: {escaped(page)}", soft_wrap=True)
    result({"run": run, "folder": written, "report": page, **results})
    return 0


def evaluated(run: Path, config: RunConfig, asked: EvalArguments, arguments: list[str]) -> tuple[dict[str, Any], Path]:
    """What a run of retrieval gives, and the folder of its figures."""
    from emcl_train.evaluation.run import evaluate_run

    return evaluate_run(
        run,
        asked.settings,
        place=asked.data,
        emcl=asked.emcl,
        render="--data.root" in named(arguments),
        split=asked.split,
        from_features=asked.from_features,
        out=asked.out,
    )


def evaluated_questions(
    run: Path, config: RunConfig, asked: EvalArguments, arguments: list[str]
) -> tuple[dict[str, Any], Path]:
    """The same of a run that answers questions.

    Raises:
        UserError: a setting was given that changes nothing in its answers, or there are several processes.
    """
    size = asked.settings.batch_size
    given = [
        name
        for name, is_other in (
            ("from_features", asked.from_features is not None),
            ("emcl", asked.emcl != config.emcl),
            ("eval", replace(asked.settings, batch_size=config.eval.batch_size) != config.eval),
        )
        if is_other
    ]
    if given:
        raise UserError(
            f"{run} answers questions, which neither stored features nor settings of {', '.join(given)} change; leave "
            f"these out: --split, --data.*, --batch-size, --out and --json are for such a run"
        )
    if process_count() > 1:
        raise UserError(f"{run} answers questions in one process, and {process_count()} were started; start one alone")

    from emcl_train.evaluation.answering import evaluate_answers

    return evaluate_answers(run, place=asked.data, split=asked.split, batch_size=size, out=asked.out)


def describe() -> None:
    """The help of eval without a run."""
    default = EvalArguments(EvalConfig(), EMCLConfig(), PlaceConfig.of(DataConfig()))
    of_whom = (
        "RUN is the folder that `emcl-train train` wrote, such as runs/shapes. The defaults below are those of no run "
        "in particular: `emcl-train eval RUN --help` shows the run's own."
    )
    show_help(EvalArguments, default, "eval RUN", f"{cleandoc(EvalArguments.__doc__ or '')}\n\n{of_whom}")


COMMANDS = {
    "eval": Entry(
        "RUN [--OPTION VALUE ...]",
        "evaluate the best weights of a run folder again; --out DIR for the results",
        after_a_word(run_eval, "eval needs the folder of a run before its options, such as runs/shapes", describe),
        in_processes=True,
    ),
}
