"""The command export: weights of a run, or the moments of a library, for other programs."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from emcl_train.commands.entry import Entry, named, of_function, switches_of
from emcl_train.commands.output import json_result
from emcl_train.endings import say_if_ended
from emcl_train.errors import UserError
from emcl_train.extras import require_packages
from emcl_train.runs.contents import load_config
from emcl_train.runs.lock import require_new
from emcl_train.search.ways import Format

FLAT = "Flat"
"""The FAISS index unless another one is asked for."""


def export(
    run: Positional[Path],
    out: Positional[Path],
    layout: Literal["clip4clip", "emcl", "openai", "transformers"],
    json: Path | None = None,
) -> None:
    """Write the best weights of a run under the names of another program.

    The moments of a library, for a vector database: `emcl-train export LIBRARY --to parquet --out DIR`.

    Args:
        run: Folder of a training run.
        out: File to write, as safetensors if its name ends so; a folder for "transformers". It must not exist.
        layout: Whose names: of the whole model CLIP4Clip's or the EMCL release's, of CLIP OpenAI's or transformers'.
        json: Write what was written to this file; alone, or with -, print it in place of all else.
    """
    load_config(run)
    require_new(out, "choose another name")
    say_if_ended(lambda: f"{out} appears when it is whole: {_is_there(out)}")
    from emcl_train.tools.export import export_run

    with json_result(json) as result:
        left_out = export_run(run, out, layout)
        result({"run": run, "out": out, "layout": layout, "left_out": left_out})


def export_moments(
    library: Positional[str],
    *,
    to: Format,
    out: Path,
    rows: Literal["auto", "refined", "plain"] = "auto",
    description: Annotated[str, tyro.conf.arg(metavar="INDEX")] = FLAT,
    json: Path | None = None,
) -> None:
    """Write the moments of a library for other programs: id, path, start, end and vector.

    Args:
        library: What `index` has made.
        to: A parquet file, a FAISS index, or what Qdrant takes, with the program that loads it there.
        out: Folder to write. It must not exist.
        rows: Refined rows, or the model's own; "auto": refined ones where the library has a bank.
        description: Of the FAISS index, as its `index_factory` takes it, such as "IVF1024,Flat".
        json: Write what was written to this file; alone, or with -, print it in place of all else.
    """
    require_packages("search")
    if to != "faiss" and description != FLAT:
        raise UserError(f"--description is of a FAISS index, and --to is {to}; leave it out, or pass --to faiss")
    require_new(out)
    say_if_ended(lambda: f"{out} appears when it is whole: {_is_there(out)}")
    from emcl_train.search.exporting import export_library
    from emcl_train.search.library import Library
    from emcl_train.search.reaching import reaching
    from emcl_train.terminal import console_of, escaped

    refined = {"auto": None, "refined": True, "plain": False}[rows]
    with json_result(json) as result:
        with reaching(library):
            written = export_library(Library(library), to, out, refined=refined, description=description)
        for line in written.said():
            console_of().print(escaped(line), soft_wrap=True, highlight=False)
        result({"library": library, "to": to, **asdict(written)})


def _is_there(out: Path) -> str:
    return "it is there, and no more is to be done" if out.exists() else "it is not there; run the command again"


_OF_RUN = of_function("export", export)
_OF_LIBRARY = of_function("export", export_moments)


def _run(arguments: list[str]) -> int:
    """A library is known by --to."""
    return (_OF_LIBRARY if "--to" in named(arguments) else _OF_RUN)(arguments)


COMMANDS = {
    "export": Entry(
        "RUN FILE --layout LAYOUT",
        "write a run's weights for other programs, or with --to a library's moments",
        _run,
        library=lambda arguments: "" if "--to" in named(arguments) else None,
        switches=switches_of(export_moments),
    ),
}
