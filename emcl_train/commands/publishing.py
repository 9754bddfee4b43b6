"""The command publish."""

from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from emcl_train.commands.entry import Entry, of_function
from emcl_train.commands.output import json_result
from emcl_train.endings import say_if_ended
from emcl_train.runs.contents import load_config
from emcl_train.runs.lock import require_new
from emcl_train.terminal import console_of, escaped


def publish(
    run: Positional[Path],
    folder: Positional[Path],
    *,
    licence: Annotated[str, tyro.conf.arg(name="license")] = "unknown",
    json: Path | None = None,
) -> None:
    """Write a finished run's model as a folder for others: weights, settings, tokenizer, figures and a card.

    Nothing is sent anywhere. `emcl_train.load` takes the folder, and so do `eval` and `index --model`; `hf upload NAME
    FOLDER` puts it on the hub. Places of this machine are left out.

    Args:
        run: Folder of a training run.
        folder: To write. It must not exist.
        licence: Of the weights, as the hub names it, such as mit or cc-by-nc-4.0.
        json: Write what was written to this file; alone, or with -, print it in place of all else.
    """
    load_config(run)
    require_new(folder, "choose another folder")
    say_if_ended(lambda: f"{folder} appears when it is whole, and is not there; run the command again")
    from emcl_train.tools.publish import publish_run

    with json_result(json) as result:
        written = publish_run(run, folder, licence)
        console_of().print(
            f"{escaped(folder)}: the model of {escaped(run)}, with its card in README.md; `hf upload NAME "
            f"{escaped(folder)}` puts it on the hub",
            soft_wrap=True,
            highlight=False,
        )
        result(written)


COMMANDS = {
    "publish": Entry(
        "RUN FOLDER",
        "write a run's model for others, with a card: for the hub, or for emcl_train.load",
        of_function("publish", publish),
    ),
}
