"""The command embed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from emcl_train.commands.embedding_corpora import FLAG, EmbedCorpusArguments, embed_corpus
from emcl_train.commands.entry import OF_THE_RUN, Entry, after_a_word, flags_of, in_processes, named, show_help
from emcl_train.commands.everywhere import is_dry_run
from emcl_train.commands.options_file import print_file, without_print_config
from emcl_train.commands.output import json_result, with_bare_json
from emcl_train.config import PlaceConfig, RunConfig, check_config, require_towers
from emcl_train.endings import say_if_ended
from emcl_train.errors import UserError
from emcl_train.flags import Command, of_command
from emcl_train.recipes import OF_CLIP, RECIPES, load_recipe
from emcl_train.runs.contents import CONFIG, load_config
from emcl_train.runs.lock import require_new
from emcl_train.runs.machine import is_first_process
from emcl_train.weights.hub import plain_names, require_places
from emcl_train.weights.settling import said_in, settled

WITH_TOWERS = ", ".join(sorted(OF_CLIP))


@dataclass
class EmbedArguments:
    """Encode the frames and captions of a recipe's data set once, into the folder `--out`."""

    settings: Annotated[RunConfig, tyro.conf.arg(name="")]
    """Of the recipe; those that no feature depends on are left as they are in training."""
    tokens: bool = False
    """Store the features of every token too, as the head "wti" needs them."""
    json: Path | None = None
    """Write what was written to this file; alone, or with -, print it in place of all else."""


@dataclass
class EmbedRunArguments:
    """Encode the frames and captions of a run's data set with the run's towers, into the folder `--out`."""

    out: Path
    """Folder to write."""
    data: PlaceConfig
    """In place of the run's, where its data set lies elsewhere by now."""
    tokens: bool = False
    """Store the features of every token too, as the head "wti" needs them."""
    videos: Path | None = None
    """Encode the videos in this folder, one row each, in place of the run's data set."""
    texts: Path | None = None
    """Encode the texts in this file, one row each: .txt with a text a line, or a table (.csv, .jsonl) of videos with
    captions."""
    json: Path | None = None
    """Write what was written to this file; alone, or with -, print it in place of all else."""


@dataclass
class EmbedListsArguments:
    """Encode videos or texts that are no data set, one row each, into the folder `--out`.

    It gets video.npy [N, D] with video_ids.json, and text.npy [M, D] with texts.json, which `refine` takes as they are.
    A table of videos with captions gives both, and pairs.npy, the video's row for each text.
    """

    settings: Annotated[RunConfig, tyro.conf.arg(name="")]
    """`model` and `data` decide which towers see which frames."""
    videos: Path | None = None
    """Encode the videos in this folder too."""
    texts: Path | None = None
    """Encode the texts in this file, one row each: .txt with a text a line, or a table (.csv, .jsonl) of videos with
    captions."""
    json: Path | None = None
    """Write what was written to this file; alone, or with -, print it in place of all else."""


def run_embed(what: str, arguments: list[str]) -> int:
    """Encode the data set of a recipe, by its name, or of the run in a folder; or else videos or texts in a place."""
    return in_processes(lambda: _embed(what, arguments))


def _embed(what: str, arguments: list[str]) -> int:
    if FLAG in named(arguments):
        return embed_corpus(what, arguments)
    if what not in RECIPES and not Path(what).exists():
        raise UserError(
            f"there is no recipe {what!r}, and no such folder of a run or of videos, nor such a file of texts; known "
            f"recipes: {WITH_TOWERS}"
        )
    if not named(arguments) & {"--out", "--help", "-h"}:
        raise UserError("embed needs --out, the folder to write features to")

    kind = arguments_of(what)
    if kind is EmbedArguments:
        return embed_recipe(what, arguments)
    return (embed_run if kind is EmbedRunArguments else embed_lists)(Path(what), arguments)


def arguments_of(what: str, arguments: Sequence[str] = ()) -> type:
    """What the options are made of: for a recipe, a run, videos and texts that are no data set, and for a corpus."""
    if FLAG in arguments:
        return EmbedCorpusArguments
    if what in RECIPES:
        return EmbedArguments
    is_run = (Path(what) / CONFIG).is_file() or any(Path(what).glob(f"seed-*/{CONFIG}"))
    return EmbedRunArguments if is_run else EmbedListsArguments


def embed_recipe(recipe: str, arguments: list[str]) -> int:
    """Encode with the towers that training by the recipe starts from."""
    arguments, prints = without_print_config(with_bare_json(arguments))
    default = EmbedArguments(load_recipe(recipe))
    asked = tyro.cli(EmbedArguments, args=arguments, default=default, prog=f"emcl-train embed {recipe}")
    config = replace(asked.settings, model=plain_names(asked.settings.model))
    if prints:
        return print_file(EmbedArguments, replace(asked, settings=_settled(config, arguments)))

    with of_command(Command(flags_of(EmbedArguments) - {"--resume", "--no-resume"})):
        require_towers(config, "embed")
        check_config(replace(config, from_features=None))
        if is_first_process():  # which makes the folder
            require_new(config.out)
        say_if_ended(lambda: f"{config.out} appears when it is whole, and is not there; run the command again")
        require_places(config.model)
        config = _settled(config, arguments)
        return with_result(asked.json, config.out, lambda: encode(config, config.out, asked.tokens))


def embed_run(run: Path, arguments: list[str]) -> int:
    """Encode with the towers of a run."""
    arguments, prints = without_print_config(with_bare_json(arguments))
    config = load_config(run)
    default = EmbedRunArguments(Path("features"), PlaceConfig.of_run(config.data))
    asked = tyro.cli(EmbedRunArguments, args=arguments, default=default, prog=f"emcl-train embed {run}")
    if prints:
        return print_file(EmbedRunArguments, asked)
    of_run = config.data
    config = replace(config, data=replace(of_run, **vars(asked.data)))
    if (asked.videos is not None or asked.texts is not None) and "--data.videos" not in named(arguments):
        config = replace(config, data=replace(config.data, videos=None))  # the run's own are not those of a list

    with of_command(Command(flags_of(EmbedRunArguments), elsewhere=OF_THE_RUN)):
        require_towers(config, "embed")
        check_config(replace(config, from_features=None))
        if is_first_process():
            require_new(asked.out)
        say_if_ended(lambda: f"{asked.out} appears when it is whole, and is not there; run the command again")

        from emcl_train.data.cache import say_what_is_not_followed

        say_what_is_not_followed(of_run, config.data)
        if asked.videos is not None or asked.texts is not None:
            lists = config, asked.out, asked.videos, asked.texts, run
            return with_result(asked.json, asked.out, lambda: encode_lists(*lists))

        render = "--data.root" in named(arguments)
        return with_result(asked.json, asked.out, lambda: encode(config, asked.out, asked.tokens, run, render=render))


def embed_lists(what: Path, arguments: list[str]) -> int:
    """Encode a folder of videos, or a file of texts, with the towers that are asked for."""
    arguments, prints = without_print_config(with_bare_json(arguments))
    default = EmbedListsArguments(load_recipe("csv"), videos=what if what.is_dir() else None)
    if not what.is_dir():
        default.texts = what
    asked = tyro.cli(EmbedListsArguments, args=arguments, default=default, prog=f"emcl-train embed {what}")
    config = replace(asked.settings, model=plain_names(asked.settings.model))
    if prints:
        return print_file(EmbedListsArguments, replace(asked, settings=_settled(config, arguments)))

    with of_command(Command(flags_of(EmbedListsArguments) - {"--resume", "--no-resume"})):
        check_config(replace(config, from_features=None))
        if is_first_process():  # which makes the folder
            require_new(config.out)
        say_if_ended(lambda: f"{config.out} appears when it is whole, and is not there; run the command again")
        require_places(config.model)

        lists = _settled(config, arguments), config.out, asked.videos, asked.texts
        return with_result(asked.json, config.out, lambda: encode_lists(*lists))


def _settled(config: RunConfig, arguments: list[str]) -> RunConfig:
    """With what the model brings along that is not among the options, typed or of a file."""
    return settled(replace(config, from_features=None), said_in(arguments))


def with_result(json: Path | None, out: Path, work: Callable[[], int]) -> int:
    """Do the work, and give programs the folder and the files that it wrote."""
    with json_result(json if is_first_process() else None) as result:
        code = work()
        if not is_dry_run() and is_first_process():
            result({"out": out, "files": sorted(path.name for path in out.iterdir()), "exit_code": code})
    return code


def encode(config: RunConfig, out: Path, tokens: bool, run_dir: Path | None = None, *, render: bool = False) -> int:
    """Encode a data set, or say what that would write."""
    if is_dry_run():
        from emcl_train.tools.plan import print_plan_of_features

        if is_first_process():
            print_plan_of_features(config, out, tokens=tokens, run_dir=run_dir)
        return 0

    from emcl_train.tools.embed import embed

    embed(config, out, tokens=tokens, run_dir=run_dir, render=render, settle=False)
    return 0


def encode_lists(
    config: RunConfig, out: Path, videos: Path | None, texts: Path | None, run_dir: Path | None = None
) -> int:
    """Encode what is no data set, or say what that would write."""
    if is_dry_run():
        from emcl_train.tools.plan import print_plan_of_lists

        if is_first_process():
            print_plan_of_lists(config, out, videos=videos, texts=texts, run_dir=run_dir)
        return 0

    from emcl_train.tools.embed_lists import embed_lists as embed_these

    return embed_these(config, out, videos=videos, texts=texts, run_dir=run_dir, settle=False)


def describe() -> None:
    """The help of embed without a recipe or a run."""
    shown = "jsonl"
    show_help(
        EmbedArguments,
        EmbedArguments(load_recipe(shown)),
        "embed RECIPE|RUN|VIDEOS|TEXTS",
        "Encode the frames and captions of a data set once, into the folder `--out`; then train with --from-features."
        f"\n\nA recipe ({WITH_TOWERS}) is encoded with the towers that it starts from, and takes the options below, "
        f"whose defaults are those of {shown}. The folder of a run is encoded with the run's towers, and takes --out, "
        "--tokens and what says where the data lies: `emcl-train embed RUN --help`.\n\nA folder of videos, a .txt with "
        "a text a line, or a table (.csv, .jsonl) of videos with captions gives one row for each, as `refine` takes "
        "them: `emcl-train embed VIDEOS --help`.\n\nWith --shards, a corpus of any size is embedded into a folder of "
        "shards: `emcl-train embed CORPUS --shards --help`.",
    )


COMMANDS = {
    "embed": Entry(
        "RECIPE|RUN|VIDEOS|TEXTS --out DIR",
        "encode frames and captions once: for train --from-features, or for refine",
        after_a_word(
            run_embed, "embed needs a recipe, the folder of a run or of videos, or a file of texts, first", describe
        ),
        in_processes=True,
        library=lambda arguments: "" if FLAG in named(arguments) else None,
        place="the corpus",
        stores=("s3",),
        switches=frozenset({FLAG, "--frames", "--no-frames"}),
    ),
}
