"""The command line: train, eval, data, refine, report. What a user can put right is one line on stderr, exit code 1."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

import tyro

from emcl_train.config import (
    EMCLConfig,
    EvalConfig,
    Layout,
    PlaceConfig,
    RefineConfig,
    RunConfig,
    ShapesConfig,
    check_config,
    inference_emcl,
)
from emcl_train.errors import UserError
from emcl_train.flags import Command, of_command
from emcl_train.recipes import RECIPES, load_recipe
from emcl_train.runs.contents import check_run_folder, load_config, require_run
from emcl_train.runs.files import require_folder, require_free
from emcl_train.weights.hub import require_places

Arguments = TypeVar("Arguments")

USAGE = f"""\
usage: emcl-train [--debug] COMMAND ...

  train RECIPE [--OPTION VALUE ...]   train, evaluate and write a report; recipes: {", ".join(sorted(RECIPES))}
  eval RUN [--OPTION VALUE ...]       evaluate the best weights of a run folder again; --out DIR for the results
  embed RECIPE|RUN --out DIR          encode frames and captions once; then train RECIPE --from-features DIR
  export RUN FILE --layout LAYOUT     write a run's weights under the names of CLIP4Clip, the EMCL release, OpenAI, ...
  data shapes DIR                     render the bundled video set
  data doctor RECIPE DIR              examine a data set: counts, captions, clips that are missing or damaged
  data compress DIR OUT               small copies of videos: 3 frames a second, short side 224, no sound
  refine TEXT VIDEO --out DIR         improve retrieval with the embeddings that two files hold, without training
  report RUN [RUN ...]                write report.html of each run, and compare them query by query

  --debug    show the traceback of an error
  --help     after any command: all its options
"""


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


@dataclass
class ExportArguments:
    """Write the best weights of a run under the names of another program."""

    run: tyro.conf.Positional[Path]
    """Folder of a training run."""
    out: tyro.conf.Positional[Path]
    """File to write, as safetensors where its name ends so; a folder for "transformers". It must not exist."""
    layout: Literal["clip4clip", "emcl", "openai", "transformers"]
    """Whose names: of the whole model CLIP4Clip's or the EMCL release's, or of CLIP alone OpenAI's or transformers'."""


@dataclass
class ShapesArguments:
    """Render the bundled video set in the MSR-VTT layout."""

    root: tyro.conf.Positional[Path]
    """Folder to write to."""
    shapes: Annotated[ShapesConfig, tyro.conf.arg(name="")]
    """What to render."""


@dataclass
class DoctorArguments:
    """Examine a data set; exits with 1 where clips are damaged or missing, or the annotations cannot be used."""

    layout: tyro.conf.Positional[Layout | Literal["msrvtt-9k", "msrvtt-7k", "msrvtt-full"]]
    """How the files lie: a layout, or a recipe ("msrvtt" is msrvtt-9k)."""
    root: tyro.conf.Positional[Path]
    """Folder with the annotation files and a `videos/` folder."""
    videos: Path | None = None
    """Folder of the clips, in place of `videos/`."""
    deep: bool = False
    """Decode what a run samples of every clip, not only headers, packets and the first frame."""
    json: Path | None = None
    """Write what was found to this file, in place of doctor.json in the data set's `.emcl` folder."""


@dataclass
class CompressArguments:
    """Copy every video of a folder, small; started again it goes on. Exits with 1 where videos cannot be decoded."""

    folder: tyro.conf.Positional[Path]
    """Folder of videos, and of folders of them. Nothing in it is changed."""
    out: tyro.conf.Positional[Path]
    """Folder for the copies, which keep their places and names, as .mp4."""
    fps: float = 3.0
    """Frames a second."""
    short_side: int = 224
    """Height or width of a copy in pixels, whichever is smaller."""
    workers: int = 0
    """Videos at a time; 0: one for each core."""


@dataclass
class RefineArguments:
    """Improve retrieval with embeddings that exist already, without training and without pairs.

    TEXT and VIDEO are files of embeddings [N, D]: .npy, .npz, .safetensors or .parquet. FILE:NAME names one of several
    arrays of a file, and FILE.npy:0 the first part of an array [2, N, D].
    """

    text: tyro.conf.Positional[str]
    """File of text embeddings."""
    video: tyro.conf.Positional[str]
    """File of video or image embeddings, of the same width."""
    out: Path
    """Folder for the refined files, in the formats they came in, and the map. Replaces only what refine wrote there."""
    settings: Annotated[RefineConfig, tyro.conf.arg(name="")]
    """Of the map."""
    paired: bool = False
    """Row i of TEXT belongs to row i of VIDEO: print the table before and after. Fitting never uses it."""
    pairs: Path | None = None
    """File with the row of its video for each text, .npy or one number a line: print the table."""


@dataclass
class ReportArguments:
    """Write report.html of each run, and compare them in one table and query by query."""

    runs: tyro.conf.Positional[list[Path]]
    """Folders of training runs; a folder of runs with several seeds counts as one. Each is compared with the first."""
    json: Path | None = None
    """Write the comparisons to this file as well."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    try:
        return dispatch([argument for argument in arguments if argument != "--debug"])
    except UserError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if debug or not error.filename:
            raise
        reason = error.strerror or type(error).__name__
        print(f"error: {error.filename}: {reason}; choose another place, or see --debug", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if debug:
            raise
        print("interrupted; a training run goes on with --resume", file=sys.stderr)
        return 130


def dispatch(arguments: list[str]) -> int:
    """Find the command by its words and parse the rest."""
    match arguments:
        case [] | ["-h" | "--help", *_] | ["data", "-h" | "--help", *_]:
            print(USAGE, end="")
            return 0 if arguments else 2
        case ["train", recipe, *rest] if not recipe.startswith("-"):
            return run_train(recipe, rest)
        case ["train", *rest]:
            if "--help" in rest or "-h" in rest:
                print(USAGE, end="")
                return 0
            raise UserError(f"train needs a recipe before its options; known recipes: {', '.join(sorted(RECIPES))}")
        case ["eval", run, *rest] if not run.startswith("-"):
            return run_eval(Path(run), rest)
        case ["eval", *rest]:
            if "--help" in rest or "-h" in rest:
                print(USAGE, end="")
                return 0
            raise UserError("eval needs the folder of a run before its options, such as runs/shapes")
        case ["embed", what, *rest] if not what.startswith("-"):
            return run_embed(what, rest)
        case ["embed", *rest]:
            if "--help" in rest or "-h" in rest:
                print(USAGE, end="")
                return 0
            raise UserError("embed needs a recipe or the folder of a run before its options")
        case ["export", *rest]:
            with of_command(Command(flags_of(ExportArguments))):
                return run_export(parse(ExportArguments, "export", rest))
        case ["data", "shapes", *rest]:
            with of_command(Command(flags_of(ShapesArguments), "data.shapes.", {"data.root": "DIR"})):
                return run_shapes(parse(ShapesArguments, "data shapes", rest))
        case ["data", "doctor", *rest]:
            with of_command(Command(flags_of(DoctorArguments), "data.", {"data.root": "DIR"})):
                return run_doctor_command(parse(DoctorArguments, "data doctor", rest))
        case ["data", "compress", *rest]:
            with of_command(Command(flags_of(CompressArguments))):
                return run_compress(parse(CompressArguments, "data compress", rest))
        case ["refine", *rest]:
            with of_command(Command(flags_of(RefineArguments))):
                return run_refine(parse(RefineArguments, "refine", rest))
        case ["report", *rest]:
            with of_command(Command(flags_of(ReportArguments), elsewhere=OF_THE_RUN)):
                return run_report(parse(ReportArguments, "report", rest))
    raise UserError(f"there is no command {' '.join(arguments[:2])!r}; see emcl-train --help")


OF_THE_RUN = "{name} in the run's config.json"


def flags_of(kind: Any, prefix: str = "") -> frozenset[str]:
    """Every flag that tyro makes of a dataclass."""
    found: set[str] = set()
    hints = get_type_hints(kind, include_extras=True)
    for name in (field.name for field in fields(kind)):
        if tyro.conf.Positional in get_args(hints[name]) or tyro.conf.Suppress in get_args(hints[name]):
            continue
        base, *marks = get_args(hints[name]) if hasattr(hints[name], "__metadata__") else (hints[name],)
        named = next((mark for mark in marks if hasattr(mark, "prefix_name")), None)
        own = name if named is None or named.name is None else named.name
        dotted = own if named is not None and named.prefix_name is False else f"{prefix}{own}"
        if is_dataclass(base):
            found |= flags_of(base, f"{dotted}." if own else prefix)
        else:
            found.add("--" + dotted.replace("_", "-"))
            if base is bool:
                *groups, last = dotted.split(".")
                found.add("--" + ".".join([*groups, f"no-{last}"]).replace("_", "-"))
    return frozenset(found)


def parse(kind: type[Arguments], command: str, arguments: list[str]) -> Arguments:
    return tyro.cli(kind, args=arguments, prog=f"emcl-train {command}")


# torch and transformers take seconds to import: each command imports what it runs, after it has looked at what it was
# given, so that --help and a mistake are answered at once.


def run_train(recipe: str, arguments: list[str]) -> int:
    default, description = load_recipe(recipe), RECIPES[recipe].__doc__
    prog = f"emcl-train train {recipe}"
    config = tyro.cli(RunConfig, args=arguments, default=default, prog=prog, description=description)
    if config.emcl.mode == "inference" != default.emcl.mode:
        default = replace(default, emcl=inference_emcl())
        config = tyro.cli(RunConfig, args=arguments, default=default, prog=prog, description=description)
    with of_command(Command(flags_of(RunConfig))):
        check_config(config)
        if config.from_features is None:
            require_places(config.model)
        if config.seeds == 1 and os.environ.get("RANK", "0") == "0":  # of several processes, one makes the folder
            check_run_folder(config)
        run_training(config)
    return 0


def run_training(config: RunConfig) -> None:
    if config.seeds > 1:
        from emcl_train.training.seeds import train_seeds

        train_seeds(config)
    else:
        from emcl_train.training.trainer import train

        train(config)


def run_eval(run: Path, arguments: list[str]) -> int:
    config = load_config(run)

    def asked_with(emcl: EMCLConfig) -> EvalArguments:
        return tyro.cli(
            EvalArguments,
            args=arguments,
            default=EvalArguments(config.eval, emcl, PlaceConfig.of(config.data)),
            prog=f"emcl-train eval {run}",
        )

    asked = asked_with(config.emcl)
    if asked.emcl.mode == "inference" != config.emcl.mode:
        asked = asked_with(inference_emcl())
    with of_command(Command(flags_of(EvalArguments), "eval.", elsewhere=OF_THE_RUN)):
        check_config(replace(config, eval=asked.settings, emcl=asked.emcl))
        if asked.out is not None:
            require_free(asked.out)
        from rich.console import Console

        from emcl_train.evaluation.run import evaluate_run
        from emcl_train.report import render_table, write_report

        console = Console()
        results, folder = evaluate_run(
            run,
            asked.settings,
            place=asked.data,
            emcl=asked.emcl,
            split=asked.split,
            from_features=asked.from_features,
            out=asked.out,
        )
    console.print(render_table(results))
    with of_command(Command(flags_of(ReportArguments), elsewhere=OF_THE_RUN)):
        console.print(f"report: {write_report(folder)}", soft_wrap=True)
    return 0


def run_embed(what: str, arguments: list[str]) -> int:
    """A recipe, by its name, or else the folder of a run."""
    prog, run_dir = f"emcl-train embed {what}", None
    if what not in RECIPES and not Path(what).is_dir():
        known = ", ".join(sorted(RECIPES))
        raise UserError(f"there is no recipe {what!r} and no such folder of a run; known recipes: {known}")
    given = {argument.split("=")[0] for argument in arguments}
    if not given & {"--out", "--help", "-h"}:
        raise UserError("embed needs --out, the folder to write features to")
    if what in RECIPES:
        asked = tyro.cli(EmbedArguments, args=arguments, default=EmbedArguments(load_recipe(what)), prog=prog)
        config, out, tokens = asked.settings, asked.settings.out, asked.tokens
        command = Command(flags_of(EmbedArguments) - {"--resume", "--no-resume"})
    else:
        run_dir, config = Path(what), load_config(Path(what))
        default = EmbedRunArguments(Path("features"), PlaceConfig.of(config.data))
        of_run = tyro.cli(EmbedRunArguments, args=arguments, default=default, prog=prog)
        out, tokens = of_run.out, of_run.tokens
        config = replace(config, data=replace(config.data, **vars(of_run.data)))
        command = Command(flags_of(EmbedRunArguments), elsewhere=OF_THE_RUN)
    with of_command(command):
        check_config(replace(config, from_features=None))
        require_free(out)
        if run_dir is None:
            require_places(config.model)
        from emcl_train.tools.embed import embed

        embed(config, out, tokens=tokens, run_dir=run_dir)
    return 0


def run_export(arguments: ExportArguments) -> int:
    load_config(arguments.run)
    require_free(arguments.out, "choose another name")
    from emcl_train.tools.export import export_run

    export_run(arguments.run, arguments.out, arguments.layout)
    return 0


def run_shapes(arguments: ShapesArguments) -> int:
    from emcl_train.data.shapes import render_shapes

    render_shapes(arguments.root, arguments.shapes)
    return 0


def run_doctor_command(arguments: DoctorArguments) -> int:
    require_folder(arguments.root, "the annotation files and videos/")
    from emcl_train.tools.doctor import run_doctor

    return run_doctor(
        arguments.layout, arguments.root, videos=arguments.videos, deep=arguments.deep, json_path=arguments.json
    )


def run_compress(arguments: CompressArguments) -> int:
    require_folder(arguments.folder, "the videos")
    from emcl_train.tools.compress import compress

    return compress(
        arguments.folder,
        arguments.out,
        fps=arguments.fps,
        short_side=arguments.short_side,
        workers=arguments.workers,
    )


def run_refine(arguments: RefineArguments) -> int:
    from emcl_train.tools.refine import refine_files

    given = arguments.text, arguments.video, arguments.out, arguments.settings
    refine_files(*given, paired=arguments.paired, pairs=arguments.pairs)
    return 0


def run_report(arguments: ReportArguments) -> int:
    if not arguments.runs:
        raise UserError("report needs the folder of at least one run, such as runs/shapes")
    for run in arguments.runs:
        if not run.is_dir():
            require_run(run)
    from emcl_train.report import report_runs

    report_runs(arguments.runs, json_path=arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
