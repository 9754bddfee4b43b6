"""The command refine."""

from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from emcl_train.commands.entry import Entry, of_function
from emcl_train.commands.everywhere import is_dry_run
from emcl_train.commands.output import json_result
from emcl_train.config import RefineConfig
from emcl_train.endings import say_if_ended
from emcl_train.runs.files import read_json


def refine(
    text: Positional[str],
    video: Positional[str | None] = None,
    *,
    out: Path,
    settings: Annotated[RefineConfig, tyro.conf.arg(name="")],
    paired: bool = False,
    pairs: Path | None = None,
    queries: str | None = None,
    query_side: Literal["text", "video"] | None = None,
    json: Path | None = None,
) -> None:
    """Improve retrieval with embeddings that exist already, without training and without pairs.

    TEXT and VIDEO are files of embeddings [N, D]: .npy, .npz, .safetensors or .parquet. FILE:NAME names one of several
    arrays of a file, and FILE.npy:0 the first part of an array [2, N, D]. In place of both, one folder: a run, whose
    test split is taken, or what `embed` wrote. Pairs that the folder knows are in the table unasked.

    Args:
        text: File of text embeddings, or a folder that has both sides.
        video: File of video or image embeddings, of the same width; or a folder of shards that `embed --shards` wrote.
        out: Folder for the refined files, in their own formats, and the map. Replaces only what refine wrote there.
        settings: Of the map.
        paired: Row i of TEXT belongs to row i of VIDEO: print the table before and after. Fitting never uses it.
        pairs: File with the row of its video for each text, .npy or one number a line: print the table.
        queries: File of embeddings of other queries, which are known beforehand, raw like TEXT: a bank. Refined rows
            then have one more number, and are compared by inner product, never by cosine.
        query_side: What those queries are: text, which search videos (this is so if it is not given), or video.
        json: Write the files' names and the table to this file; alone, or with -, print them in place of all else.
    """
    say_if_ended(lambda: f"the files in {out} are as they were, or all new; run the command again")
    from emcl_train.tools.refine import MAP, RESULTS, Asked, print_plan, refine_files

    asked = Asked(text, video, out, paired, pairs, queries, query_side)
    if is_dry_run():
        print_plan(asked, settings)
        return
    with json_result(json) as result:
        refined = refine_files(asked, settings)
        table = None if refined.results is None else read_json(out / RESULTS, "run it again")
        result(
            {
                "out": out,
                "map": out / MAP,
                "similarity": "cosine" if refined.bank_rows is None else "dot",
                "bank": None if refined.bank_rows is None else {"side": asked.bank_side, "rows": refined.bank_rows},
                "table": table,
                "hubness": refined.hubness,
                "warnings": refined.warnings,
            }
        )


COMMANDS = {
    "refine": Entry(
        "TEXT VIDEO|DIR --out DIR",
        "improve retrieval with the embeddings that two files hold, without training",
        of_function("refine", refine),
    ),
}
