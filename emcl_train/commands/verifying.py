"""The command verify."""

from pathlib import Path

from tyro.conf import Positional

from emcl_train.commands.entry import Entry, of_function
from emcl_train.commands.output import json_result
from emcl_train.endings import say_if_ended
from emcl_train.runs.files import require_folder


def verify(folder: Positional[Path], accept: bool = False, json: Path | None = None) -> int:
    """Compare files with their checksums; exits with 1 if one is damaged or missing.

    Args:
        folder: Of a run, of runs with different seeds, of features, or of refined files.
        accept: Take the files as they are, and write their checksums anew: after replacing one on purpose.
        json: Write what was found to this file; alone, or with -, print it in place of all else.
    """
    require_folder(folder, "a run, features or refined files")
    say_if_ended(lambda: f"the files in {folder} are as they were; run the command again")
    from emcl_train.tools.verify import verify as verify_folder

    with json_result(json) as result:
        return verify_folder(folder, accept=accept, result=result)


COMMANDS = {
    "verify": Entry(
        "DIR",
        "compare the files of a run, of features, or of refine with their checksums",
        of_function("verify", verify),
    ),
}
