"""The command line: train, eval, data, refine, report. What a user can put right is one line on stderr, exit code 1."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, get_args, get_type_hints

import tyro
from tyro.conf import Positional

from emcl_train.config import (
    LAYOUTS,
    MAX_PIXELS,
    EMCLConfig,
    EvalConfig,
    PlaceConfig,
    RefineConfig,
    RunConfig,
    ShapesConfig,
    check_config,
    inference_emcl,
)
from emcl_train.endings import (
    AFTER_A_SIGNAL,
    READER_GONE,
    Ended,
    end_with,
    is_want_of_memory,
    open_missing_streams,
    received,
    say_if_ended,
    signals_as_exceptions,
    what_there_is,
)
from emcl_train.errors import UserError
from emcl_train.flags import Command, of_command
from emcl_train.recipes import RECIPES, load_recipe
from emcl_train.runs.contents import STATE, check_run_folder, load_config, may_begin, require_run, seed_folders
from emcl_train.runs.files import require_folder
from emcl_train.runs.lock import require_new, without_locks, writing
from emcl_train.runs.machine import is_first_process
from emcl_train.terminal import Output, console_of, escaped, tell, tolerant_output
from emcl_train.weights.hub import require_places

if TYPE_CHECKING:
    DataSetName = str
else:
    DataSetName = tyro.extras.literal_type_from_choices([*LAYOUTS, *sorted(set(RECIPES) - set(LAYOUTS))])


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


@dataclass
class EmbedArguments:
    """Encode the frames and captions of a recipe's data set once, into the folder `--out`."""

    settings: Annotated[RunConfig, tyro.conf.arg(name="")]
    """Of the recipe; those that no feature depends on are left as they are in training."""
    tokens: bool = False
    """Store the features of every token too, as the head "wti" needs them."""


@dataclass
class EmbedRunArguments:
    """Encode the frames and captions of a run's data set with the run's towers, into the folder `--out`."""

    out: Path
    """Folder to write."""
    data: PlaceConfig
    """In place of the run's, where its data set lies elsewhere by now."""
    tokens: bool = False
    """Store the features of every token too, as the head "wti" needs them."""


def program() -> NoReturn:
    """The program `emcl-train`: `main` on what it was started with, and the end of the process."""
    end_with(main())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code, which docs/cli.md explains."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    open_missing_streams()
    code = None
    try:
        with tolerant_output() as output, signals_as_exceptions():
            try:
                code = run_command(arguments)
            except SystemExit as end:  # of tyro: after a command's help, or a flag that there is not
                code = end.code if isinstance(end.code, int) else 0
                raise SystemExit(code_after_printing(code, [], output)) from None
            code = code_after_printing(code, arguments, output)
    except Ended:  # before the command began, or when its work was done
        return code_of_signal(received()) or 1 if code is None else code
    return code


def run_command(arguments: list[str]) -> int:
    """Run one command; what ends it is said in one line."""
    debug = "--debug" in arguments
    unlocked = "--no-lock" in arguments
    say_if_ended(None)

    # Those of transformers and of the hub, who ask when they are imported.
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

    try:
        with without_locks() if unlocked else nullcontext():
            return dispatch([argument for argument in arguments if argument not in EVERYWHERE])
    except (KeyboardInterrupt, Exception) as error:
        if debug:
            raise
        number = signal.SIGINT if isinstance(error, KeyboardInterrupt) else None
        code = code_of_signal(received() or number) or code_of_error(error)
        if code is None:
            raise
        return code


def code_of_signal(number: int | None) -> int | None:
    """Say what a signal has ended. Returns the exit code; None without a signal."""
    if number is None:
        return None
    if is_first_process():  # the others say nothing
        tell(f"{'interrupted' if number == signal.SIGINT else 'terminated'}; {what_there_is()}")
    return AFTER_A_SIGNAL + number


def code_of_error(error: BaseException) -> int | None:
    """Say what was wrong with the input or the machine. Returns the exit code; None if it was the program."""
    if is_want_of_memory(error):
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        tell(
            f"error: there is not enough memory: {reason}; {what_there_is()}. Smaller batches take less, and so do "
            f"fewer data.workers; or end other programs"
        )
    elif isinstance(error, UserError):
        tell(f"error: {error}")
    elif isinstance(error, OSError):
        reason = error.strerror or str(error) or type(error).__name__
        if error.filename:
            tell(f"error: {error.filename}: {reason}; choose another place, or see --debug")
        else:
            tell(f"error: the system says: {reason}; {what_there_is()}; --debug shows where it came from")
    else:
        return None
    return 1


def code_after_printing(code: int, arguments: list[str], output: Output) -> int:
    """The exit code of a command of which not all may have been printed; all that it writes has been written."""
    output.flush()
    if output.lost is None:
        return code

    reason = output.lost.strerror
    if [argument for argument in arguments if argument not in EVERYWHERE][:1] == ["train"]:
        if code == 0:
            tell(f"not all could be printed: {reason}; the run is whole without it")
        return code
    if isinstance(output.lost, BrokenPipeError):
        return code or READER_GONE
    tell(f"error: not all could be printed: {reason}; print to another place")
    return code or 1


def dispatch(arguments: list[str]) -> int:
    """Find the command by its words and let it parse the rest."""
    if not arguments:
        print(USAGE, end="")
        return 2
    if asks_for_help(arguments[:1]) or (arguments[0] == "data" and asks_for_help(arguments[1:2])):
        print(USAGE, end="")
        return 0

    # The longer name first: "data shapes" before "data".
    for words in (2, 1):
        entry = COMMANDS.get(" ".join(arguments[:words]))
        if entry is not None:
            return entry.run(arguments[words:])

    raise UserError(f"there is no command {' '.join(arguments[:2])!r}; see emcl-train --help")


def named(arguments: Sequence[str]) -> set[str]:
    """The flags among what a user typed."""
    return {argument.split("=")[0] for argument in arguments}


def asks_for_help(arguments: Sequence[str]) -> bool:
    return "--help" in arguments or "-h" in arguments


def after_a_word(run: Callable[[str, list[str]], int], missing: str) -> Callable[[list[str]], int]:
    """A command whose first word decides the defaults of its options, so that it is read before they are parsed.

    Args:
        run: takes the word and the options.
        missing: said if the options come first.
    """

    def call(arguments: list[str]) -> int:
        if arguments and not arguments[0].startswith("-"):
            return run(arguments[0], arguments[1:])
        if asks_for_help(arguments):
            print(USAGE, end="")
            return 0
        raise UserError(missing)

    return call


def of_function(name: str, function: Callable[..., int | None], **command: Any) -> Callable[[list[str]], int]:
    """A command whose options tyro makes of a function's parameters.

    Args:
        name: what users type.
        function: does the work; None stands for the exit code 0.
        command: how errors name settings, as fields of `Command`.
    """

    def call(arguments: list[str]) -> int:
        with of_command(Command(flags_of(function), **command)):
            return tyro.cli(function, args=arguments, prog=f"emcl-train {name}") or 0

    return call


EVERYWHERE = ("--debug", "--no-lock")
"""Flags of every command."""

OF_THE_RUN = "{name} in the run's config.json"


def flags_of(target: Any, prefix: str = "") -> frozenset[str]:
    """Every flag that tyro makes of a dataclass or of a function's parameters.

    tyro has no lasting call for this: `tyro.extras.get_parser` is deprecated.
    """
    hints = get_type_hints(target, include_extras=True)
    names = [field.name for field in fields(target)] if is_dataclass(target) else list(signature(target).parameters)

    found: set[str] = set()
    for name in names:
        kind, *marks = get_args(hints[name]) if hasattr(hints[name], "__metadata__") else (hints[name],)
        if tyro.conf.Positional in marks or tyro.conf.Suppress in marks:
            continue

        # `arg(name=...)` renames the parameter, and `arg(prefix_name=False)` takes it out of its group.
        renamed = next((mark for mark in marks if hasattr(mark, "prefix_name")), None)
        own = name if renamed is None or renamed.name is None else renamed.name
        dotted = own if renamed is not None and renamed.prefix_name is False else f"{prefix}{own}"

        if is_dataclass(kind):
            found |= flags_of(kind, f"{dotted}." if own else prefix)
            continue
        found.add("--" + dotted.replace("_", "-"))
        if kind is bool:
            *groups, last = dotted.split(".")
            found.add("--" + ".".join([*groups, f"no-{last}"]).replace("_", "-"))
    return frozenset(found)


# torch and transformers take seconds to import: each command imports what it runs, after it has looked at what it was
# given, so that --help and a mistake are answered at once.


def run_train(recipe: str, arguments: list[str]) -> int:
    """Train by a recipe, whose settings are the defaults of the options."""
    default = load_recipe(recipe)

    def parse(default: RunConfig) -> RunConfig:
        description = RECIPES[recipe].__doc__
        return tyro.cli(
            RunConfig, args=arguments, default=default, prog=f"emcl-train train {recipe}", description=description
        )

    # EMCL at inference has other defaults, which are known to be wanted once the options are parsed.
    config = parse(default)
    if config.emcl.mode == "inference" != default.emcl.mode:
        config = parse(replace(default, emcl=inference_emcl()))

    with of_command(Command(flags_of(RunConfig))):
        check_config(config)
        say_if_ended(lambda: what_training_leaves(config))
        if config.from_features is None:
            require_places(config.model)
        if config.seeds == 1 and is_first_process():  # which makes the folder
            check_run_folder(config)
        run_training(config)
    return 0


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
            "goes on with --resume, and finished ones are kept"
        )
    return f"{config.out} is saved as of its last state; a training run goes on with --resume"


def run_training(config: RunConfig) -> None:
    """One run, or one for each seed."""
    if config.seeds > 1:
        from emcl_train.training.seeds import train_seeds

        train_seeds(config)
    else:
        from emcl_train.training.trainer import train

        train(config)


def run_eval(folder: str, arguments: list[str]) -> int:
    """Evaluate a run again, whose settings are the defaults of the options."""
    run = Path(folder)
    config = load_config(run)

    def parse(emcl: EMCLConfig) -> EvalArguments:
        default = EvalArguments(config.eval, emcl, PlaceConfig.of_run(config.data))
        return tyro.cli(EvalArguments, args=arguments, default=default, prog=f"emcl-train eval {run}")

    # As in training: the mode decides the defaults of the other settings.
    asked = parse(config.emcl)
    if asked.emcl.mode == "inference" != config.emcl.mode:
        asked = parse(inference_emcl())

    with of_command(Command(flags_of(EvalArguments), "eval.", elsewhere=OF_THE_RUN)):
        check_config(replace(config, eval=asked.settings, emcl=asked.emcl))
        if asked.out is not None:
            require_new(asked.out)
        say_if_ended(lambda: f"the figures in {run} are as they were, or whole and new; run the command again")

        from emcl_train.evaluation.run import evaluate_run
        from emcl_train.report import render_table, write_report

        results, written = evaluate_run(
            run,
            asked.settings,
            place=asked.data,
            emcl=asked.emcl,
            render="--data.root" in named(arguments),
            split=asked.split,
            from_features=asked.from_features,
            out=asked.out,
        )

    console = console_of()
    console.print(render_table(results))
    with of_command(Command(flags_of(report), elsewhere=OF_THE_RUN)):
        say_if_ended(lambda: f"the figures in {written} are whole; `emcl-train report {written}` writes their report")
        with writing(written):
            page = write_report(written)
        console.print(f"report: {escaped(page)}", soft_wrap=True)
    return 0


def run_embed(what: str, arguments: list[str]) -> int:
    """Encode the data set of a recipe, by its name, or else that of the run in a folder."""
    if what not in RECIPES and not Path(what).is_dir():
        raise UserError(f"there is no recipe {what!r} and no such folder of a run; known recipes: {KNOWN_RECIPES}")
    if not named(arguments) & {"--out", "--help", "-h"}:
        raise UserError("embed needs --out, the folder to write features to")

    if what in RECIPES:
        embed_recipe(what, arguments)
    else:
        embed_run(Path(what), arguments)
    return 0


def embed_recipe(recipe: str, arguments: list[str]) -> None:
    """Encode with the towers that training by the recipe starts from."""
    default = EmbedArguments(load_recipe(recipe))
    asked = tyro.cli(EmbedArguments, args=arguments, default=default, prog=f"emcl-train embed {recipe}")
    config = asked.settings

    with of_command(Command(flags_of(EmbedArguments) - {"--resume", "--no-resume"})):
        check_config(replace(config, from_features=None))
        require_new(config.out)
        say_if_ended(lambda: f"{config.out} appears when it is whole, and is not there; run the command again")
        require_places(config.model)

        from emcl_train.tools.embed import embed

        embed(config, config.out, tokens=asked.tokens)


def embed_run(run: Path, arguments: list[str]) -> None:
    """Encode with the towers of a run."""
    config = load_config(run)
    default = EmbedRunArguments(Path("features"), PlaceConfig.of_run(config.data))
    asked = tyro.cli(EmbedRunArguments, args=arguments, default=default, prog=f"emcl-train embed {run}")
    of_run = config.data
    config = replace(config, data=replace(of_run, **vars(asked.data)))

    with of_command(Command(flags_of(EmbedRunArguments), elsewhere=OF_THE_RUN)):
        check_config(replace(config, from_features=None))
        require_new(asked.out)
        say_if_ended(lambda: f"{asked.out} appears when it is whole, and is not there; run the command again")

        from emcl_train.data.cache import say_what_is_not_followed
        from emcl_train.tools.embed import embed

        say_what_is_not_followed(of_run, config.data)
        embed(config, asked.out, tokens=asked.tokens, run_dir=run, render="--data.root" in named(arguments))


def export(
    run: Positional[Path],
    out: Positional[Path],
    layout: Literal["clip4clip", "emcl", "openai", "transformers"],
) -> None:
    """Write the best weights of a run under the names of another program.

    Args:
        run: Folder of a training run.
        out: File to write, as safetensors if its name ends so; a folder for "transformers". It must not exist.
        layout: Whose names: of the whole model CLIP4Clip's or the EMCL release's, of CLIP OpenAI's or transformers'.
    """
    load_config(run)
    require_new(out, "choose another name")
    say_if_ended(lambda: f"{out} appears when it is whole: {_is_there(out)}")
    from emcl_train.tools.export import export_run

    export_run(run, out, layout)


def _is_there(out: Path) -> str:
    return "it is there, and no more is to be done" if out.exists() else "it is not there; run the command again"


def shapes(root: Positional[Path], shapes: Annotated[ShapesConfig, tyro.conf.arg(name="")]) -> None:
    """Render the bundled video set in the MSR-VTT layout.

    Args:
        root: Folder to write to.
        shapes: What to render.
    """
    say_if_ended(lambda: f"the clips in {root} are whole; the same command goes on with those that are missing")
    from emcl_train.data.shapes import render_shapes

    render_shapes(root, shapes)


def doctor(
    layout: Positional[DataSetName],
    root: Positional[Path],
    videos: Path | None = None,
    deep: bool = False,
    max_pixels: int = MAX_PIXELS,
    json: Path | None = None,
) -> int:
    """Examine a data set; exits with 1 if clips are damaged or missing, or the annotations cannot be used.

    Args:
        layout: How the files lie: a layout, or a recipe ("msrvtt" is msrvtt-9k).
        root: Folder with the annotation files and a `videos/` folder.
        videos: Folder of the clips, in place of `videos/`.
        deep: Decode what a run samples of every clip, not only headers, packets and the first frame.
        max_pixels: Pixels of a frame at most; a clip with larger ones is one that cannot be decoded.
        json: Write what was found to this file, in place of doctor.json in the user's cache folder.
    """
    require_folder(root, "the annotation files and videos/")
    say_if_ended(lambda: f"nothing in {root} was changed; run the command again")
    from emcl_train.tools.doctor import run_doctor

    return run_doctor(layout, root, videos=videos, deep=deep, max_pixels=max_pixels, json_path=json)


def compress(
    folder: Positional[Path],
    out: Positional[Path],
    fps: float = 3.0,
    short_side: int = 224,
    workers: int = 0,
    max_pixels: int = MAX_PIXELS,
) -> int:
    """Copy every video of a folder, small; started again it goes on. Exits with 1 if videos cannot be decoded.

    Args:
        folder: Folder of videos, and of folders of them. Nothing in it is changed.
        out: Folder for the copies, which keep their places and names, as .mp4.
        fps: Frames a second.
        short_side: Height or width of a copy in pixels, whichever is smaller.
        workers: Videos at a time; 0: one for each core.
        max_pixels: Pixels of a frame at most; a video with larger ones is one that cannot be decoded.
    """
    require_folder(folder, "the videos")
    say_if_ended(lambda: f"the copies in {out} are whole; the same command goes on with those that are missing")
    from emcl_train.tools.compress import compress as compress_videos

    return compress_videos(folder, out, fps=fps, short_side=short_side, workers=workers, max_pixels=max_pixels)


def refine(
    text: Positional[str],
    video: Positional[str],
    out: Path,
    settings: Annotated[RefineConfig, tyro.conf.arg(name="")],
    paired: bool = False,
    pairs: Path | None = None,
) -> None:
    """Improve retrieval with embeddings that exist already, without training and without pairs.

    TEXT and VIDEO are files of embeddings [N, D]: .npy, .npz, .safetensors or .parquet. FILE:NAME names one of several
    arrays of a file, and FILE.npy:0 the first part of an array [2, N, D].

    Args:
        text: File of text embeddings.
        video: File of video or image embeddings, of the same width.
        out: Folder for the refined files, in their own formats, and the map. Replaces only what refine wrote there.
        settings: Of the map.
        paired: Row i of TEXT belongs to row i of VIDEO: print the table before and after. Fitting never uses it.
        pairs: File with the row of its video for each text, .npy or one number a line: print the table.
    """
    say_if_ended(lambda: f"the files in {out} are as they were, or all new; run the command again")
    from emcl_train.tools.refine import refine_files

    refine_files(text, video, out, settings, paired=paired, pairs=pairs)


def report(runs: Positional[list[Path]], json: Path | None = None, share: bool = False) -> None:
    """Write report.html of each run, and compare them in one table and query by query.

    Args:
        runs: Folders of training runs; a folder of seeds counts as one. Each is compared with the first.
        json: Write the comparisons to this file as well.
        share: Leave absolute paths of this machine out of report.html, for pages that others get.
    """
    if not runs:
        raise UserError("report needs the folder of at least one run, such as runs/shapes")
    for run in runs:
        if not run.is_dir():
            require_run(run)
    say_if_ended(lambda: "each run has its earlier report, or a new one that is whole; run the command again")
    from emcl_train.report import report_runs

    report_runs(runs, json_path=json, share=share)


def verify(folder: Positional[Path], accept: bool = False) -> int:
    """Compare files with their checksums; exits with 1 if one is damaged or missing.

    Args:
        folder: Of a run, of runs with different seeds, of features, or of refined files.
        accept: Take the files as they are, and write their checksums anew: after replacing one on purpose.
    """
    require_folder(folder, "a run, features or refined files")
    say_if_ended(lambda: f"the files in {folder} are as they were; run the command again")
    from emcl_train.tools.verify import verify as verify_folder

    return verify_folder(folder, accept=accept)


@dataclass(frozen=True)
class Entry:
    """One line of the program's help."""

    takes: str
    """What follows the command's words."""
    summary: str
    run: Callable[[list[str]], int]
    """Takes the arguments behind the command's words, and returns the exit code."""


KNOWN_RECIPES = ", ".join(sorted(RECIPES))
COMMANDS = {
    "train": Entry(
        "RECIPE [--OPTION VALUE ...]",
        f"train, evaluate and write a report; recipes: {KNOWN_RECIPES}",
        after_a_word(run_train, f"train needs a recipe before its options; known recipes: {KNOWN_RECIPES}"),
    ),
    "eval": Entry(
        "RUN [--OPTION VALUE ...]",
        "evaluate the best weights of a run folder again; --out DIR for the results",
        after_a_word(run_eval, "eval needs the folder of a run before its options, such as runs/shapes"),
    ),
    "embed": Entry(
        "RECIPE|RUN --out DIR",
        "encode frames and captions once; then train RECIPE --from-features DIR",
        after_a_word(run_embed, "embed needs a recipe or the folder of a run before its options"),
    ),
    "export": Entry(
        "RUN FILE --layout LAYOUT",
        "write a run's weights under the names of CLIP4Clip, the EMCL release, OpenAI, ...",
        of_function("export", export),
    ),
    "data shapes": Entry(
        "DIR",
        "render the bundled video set",
        of_function("data shapes", shapes, prefix="data.shapes.", positional={"data.root": "DIR"}),
    ),
    "data doctor": Entry(
        "RECIPE DIR",
        "examine a data set: counts, captions, clips that are missing or damaged",
        of_function("data doctor", doctor, prefix="data.", positional={"data.root": "DIR"}),
    ),
    "data compress": Entry(
        "DIR OUT",
        "small copies of videos: 3 frames a second, short side 224, no sound",
        of_function("data compress", compress, prefix="data."),
    ),
    "refine": Entry(
        "TEXT VIDEO --out DIR",
        "improve retrieval with the embeddings that two files hold, without training",
        of_function("refine", refine),
    ),
    "report": Entry(
        "RUN [RUN ...]",
        "write report.html of each run, and compare them query by query",
        of_function("report", report, elsewhere=OF_THE_RUN),
    ),
    "verify": Entry(
        "DIR",
        "compare the files of a run, of features, or of refine with their checksums",
        of_function("verify", verify),
    ),
}
COMMAND_LINES = "\n".join(f"  {f'{name} {entry.takes}':<35} {entry.summary}" for name, entry in COMMANDS.items())
USAGE = f"""\
usage: emcl-train [--debug] COMMAND ...

{COMMAND_LINES}

  --debug    show the traceback of an error
  --no-lock  lock no folder, for file systems that cannot; let no other process write there
  --help     after any command: all its options
"""


if __name__ == "__main__":
    sys.exit(main())
