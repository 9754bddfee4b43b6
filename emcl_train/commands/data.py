"""The commands on data sets: data shapes, data doctor, data compress."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import Positional

from emcl_train.commands.entry import Entry, in_processes, of_function
from emcl_train.commands.everywhere import is_dry_run
from emcl_train.commands.output import json_file, json_result
from emcl_train.config import LAYOUTS, MAX_PIXELS, ShapesConfig
from emcl_train.endings import say_if_ended
from emcl_train.errors import UserError
from emcl_train.recipes import RECIPES
from emcl_train.runs.files import read_json, require_folder
from emcl_train.runs.machine import is_first_process

if TYPE_CHECKING:
    DataSetName = str
else:
    DataSetName = tyro.extras.literal_type_from_choices([*LAYOUTS, *sorted(set(RECIPES) - set(LAYOUTS))])


def shapes(
    root: Positional[Path], shapes: Annotated[ShapesConfig, tyro.conf.arg(name="")], json: Path | None = None
) -> None:
    """Render the bundled video set in the MSR-VTT layout.

    Args:
        root: Folder to write to.
        shapes: What to render.
        json: Write what was rendered to this file; alone, or with -, print it in place of all else.
    """
    say_if_ended(lambda: f"the clips in {root} are whole; the same command goes on with those that are missing")
    from emcl_train.data.shapes import render_shapes

    with json_result(json) as result:
        render_shapes(root, shapes)
        clips = {"train": shapes.train_clips, "val": shapes.val_clips, "test": shapes.test_clips}
        result({"root": root, "clips": clips})


def doctor(
    layout: Positional[DataSetName],
    root: Positional[Path],
    videos: Path | None = None,
    deep: bool = False,
    max_pixels: int = MAX_PIXELS,
    json: Path | None = None,
) -> int:
    """Examine a data set; exits with 1 if clips are damaged or missing, or the annotations cannot be used.

    Of a recipe on experts, such as mmt-msrvtt, the features of every clip are read in place of videos.

    Args:
        layout: How the files lie: a layout, or a recipe ("msrvtt" is msrvtt-9k).
        root: Folder with the annotation files and a `videos/` folder.
        videos: Folder of the clips, in place of `videos/`.
        deep: Decode what a run samples of every clip, not only headers, packets and the first frame.
        max_pixels: Pixels of a frame at most; a clip with larger ones is one that cannot be decoded.
        json: Write what was found to this file, in place of doctor.json in the user's cache folder; alone, or with -,
            print it in place of all else.
    """
    say_if_ended(lambda: f"nothing in {root} was changed; run the command again")
    return in_processes(lambda: _examine(layout, root, videos, deep, max_pixels, json if is_first_process() else None))


def _examine(layout: str, root: Path, videos: Path | None, deep: bool, max_pixels: int, json: Path | None) -> int:
    require_folder(root, "the annotation files and videos/")
    from emcl_train.tools.doctor import run_doctor
    from emcl_train.tools.doctor_experts import expert_files_of, run_expert_doctor

    if (files := expert_files_of(layout, root)) is not None:
        if deep or videos is not None:
            raise UserError(
                f"{layout} reads features and no videos, so --deep and --videos have no use; leave them out"
            )
        with json_file(json) as path:
            return run_expert_doctor(files, layout, json_path=path)

    with json_file(json) as path:
        return run_doctor(layout, root, videos=videos, deep=deep, max_pixels=max_pixels, json_path=path)


def compress(
    folder: Positional[Path],
    out: Positional[Path],
    fps: float = 3.0,
    short_side: int = 224,
    workers: int = 0,
    max_pixels: int = MAX_PIXELS,
    json: Path | None = None,
) -> int:
    """Copy every video of a folder, small; started again it goes on. Exits with 1 if videos cannot be decoded.

    Args:
        folder: Folder of videos, and of folders of them. Nothing in it is changed.
        out: Folder for the copies, which keep their places and names, as .mp4.
        fps: Frames a second.
        short_side: Height or width of a copy in pixels, whichever is smaller.
        workers: Videos at a time; 0: one for each core.
        max_pixels: Pixels of a frame at most; a video with larger ones is one that cannot be decoded.
        json: Write what was done to this file; alone, or with -, print it in place of all else.
    """
    say_if_ended(lambda: f"the copies in {out} are whole; the same command goes on with those that are missing")
    result = json if is_first_process() else None
    return in_processes(lambda: _compress(folder, out, fps, short_side, workers, max_pixels, result))


def _compress(
    folder: Path, out: Path, fps: float, short_side: int, workers: int, max_pixels: int, json: Path | None
) -> int:
    require_folder(folder, "the videos")
    from emcl_train.data.provenance import COMPRESSED
    from emcl_train.tools.compress import compress as compress_videos
    from emcl_train.tools.compress import plan_of_copies

    if is_dry_run():
        return plan_of_copies(folder, out, fps, short_side) if is_first_process() else 0
    with json_result(json) as result:
        code = compress_videos(folder, out, fps=fps, short_side=short_side, workers=workers, max_pixels=max_pixels)
        if not is_first_process():
            return 0
        record = read_json(out / COMPRESSED, "run it again", keys=())
        result({"folder": folder, "out": out, "exit_code": code, **record})
    return code


def cache(
    ids: Positional[list[str]],
    prune: bool = False,
    older_than: float | None = None,
    json: Path | None = None,
) -> int:
    """List what is kept of data sets in the user's cache folder, or remove it; all of it can be found out again.

    Frames of clips, which clips are whole, and what doctor has found lie in $XDG_CACHE_HOME/emcl or ~/.cache/emcl, in a
    folder for each data set, and parts of films that serve has converted in one for each library. What lies in a
    `data.cache_dir`, or in a `--cache` of serve, is not looked at.

    Args:
        ids: Of what is meant, or how they begin; without one, all that is kept.
        prune: Remove it. What a process uses stays, and the exit code is 1; files of others stay.
        older_than: Only what was not used for this many days.
        json: Write the list, or what was removed, to this file; alone, or with -, print it in place of all else.
    """
    say_if_ended(lambda: "what is gone is gone, and the rest is as it was; run the command again")
    from emcl_train.tools.cache import run_cache

    with json_result(json) as result:
        return run_cache(ids, prune=prune, older_than=older_than, result=result)


COMMANDS = {
    "data shapes": Entry(
        "DIR",
        "render the bundled video set",
        of_function("data shapes", shapes, prefix="data.shapes.", positional={"data.root": "DIR"}),
    ),
    "data doctor": Entry(
        "RECIPE DIR",
        "examine a data set: counts, captions, clips that are missing or damaged",
        of_function("data doctor", doctor, prefix="data.", positional={"data.root": "DIR"}),
        in_processes=True,
    ),
    "data compress": Entry(
        "DIR OUT",
        "small copies of videos: 3 frames a second, short side 224, no sound",
        of_function("data compress", compress, prefix="data."),
        in_processes=True,
    ),
    "data cache": Entry(
        "[ID ...] [--prune]",
        "list what is kept of data sets in the user's cache folder, or remove it",
        of_function("data cache", cache),
    ),
}
