"""The command export."""

from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from emcl_train.commands.entry import Entry, of_function
from emcl_train.endings import say_if_ended
from emcl_train.runs.contents import load_config
from emcl_train.runs.lock import require_new


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


COMMANDS = {
    "export": Entry(
        "RUN FILE --layout LAYOUT",
        "write a run's weights under the names of CLIP4Clip, the EMCL release, OpenAI, ...",
        of_function("export", export),
    ),
}
