"""A run as a folder for others: what loading and measuring it again needs, a card, and nothing of this machine.

The folder is a run's, without what only its training needs: `emcl_train.load`, `eval` and `index --model` take it as
they take the run. Beside a run's own files it has what the hub shows, README.md, and of a CLIP what other
programs read, `tokenizer_config.json` and `preprocessor_config.json`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from emcl_train.config import PlaceConfig, RunConfig, require_towers
from emcl_train.data.text import CaptionTokenizer, load_tokenizer
from emcl_train.errors import UserError
from emcl_train.kinds import HEADS
from emcl_train.recipes import RECIPES
from emcl_train.report.paths import Paths
from emcl_train.runs.checksums import read_checksums
from emcl_train.runs.clip_config import read_clip_config
from emcl_train.runs.contents import (
    CLIP_CONFIG,
    ENVIRONMENT,
    FINISHED,
    METRICS,
    RESULTS,
    TOKENIZER,
    WEIGHTS,
    load_config,
    load_environment,
    save_config,
)
from emcl_train.runs.files import (
    give_usual_mode,
    read_json,
    require_free,
    whole_folder,
    write_json_atomic,
    write_text_atomic,
)
from emcl_train.runs.finished import epoch_of_weights, read_mark, require_finished
from emcl_train.runs.lock import making
from emcl_train.runs.origin import ORIGIN, what_is_stale
from emcl_train.runs.state import hash_of_tensors, read_weights, save_tensors_atomic
from emcl_train.tools.card import CARD, base_model_of, card_of
from emcl_train.tools.export import PREPROCESSOR, fast_tokenizer, preprocessor, whole_weights
from emcl_train.weights.hub import is_place

UNKNOWN = "unknown"
"""The licence of weights whose owner has named none, as the hub calls it."""
OF_FRAMES = ("decoder", "sampler", "sampling", "pictures", "compression")
"""What environment.json keeps: how frames were taken from files, which an evaluation compares."""
ANOTHER = "choose another folder"


@dataclass(frozen=True)
class Published:
    """What a published folder is made of."""

    config: RunConfig
    """As the run was trained; places of this machine are taken out when it is written."""
    weights: Mapping[str, Tensor]
    tokenizer: CaptionTokenizer
    clip_config: Mapping[str, Any]
    """Of the towers, in transformers' format."""
    records: Path | None = None
    """The folder of the run that they are of; None: no run trained them."""

    def figures(self) -> dict[str, Any] | None:
        """What results.json of the run holds; None if there is none.

        Raises:
            UserError: the run is not finished, or its figures are of other weights.
        """
        if self.records is None:
            return None
        require_finished(self.records)
        path = self.records / RESULTS
        if not path.is_file():
            return None
        results = dict(read_json(path, f"measure it again by `emcl-train eval {self.records}`", keys=("rows", "split")))
        if (stale := what_is_stale(self.records, results)) is not None:
            raise UserError(f"the figures in {path} are {stale}")
        return results


def publish_run(run_dir: Path, out: Path, licence: str = UNKNOWN) -> dict[str, Any]:
    """Write a finished run's model, its figures and a card into a new folder.

    Args:
        run_dir: folder of the run.
        out: the folder, which must not exist and appears when it is whole.
        licence: of the weights, as the hub names it, such as "mit" or "cc-by-nc-4.0".

    Returns:
        What was written: the folder, its files, the fingerprint of the weights and the licence.

    Raises:
        UserError: the run is not finished, is none that `emcl_train.load` takes, or its figures are not those of its
            weights; `out` exists.
    """
    config = load_config(run_dir)
    require_rows(config, run_dir, "publish")
    require_finished(run_dir)
    clip_config = read_clip_config(run_dir)
    if clip_config is None:
        raise UserError(f"{run_dir} was written by an earlier version, which kept no sizes of its towers; train again")

    tokenizer = load_tokenizer(config, run_dir)
    weights = whole_weights(config, run_dir)
    write_published(Published(config, weights, tokenizer, clip_config, run_dir), out, licence)
    return {
        "run": run_dir,
        "folder": out,
        "files": sorted(path.name for path in out.iterdir()),
        "weights": hash_of_tensors(read_weights(out)),
        "license": licence,
    }


def require_rows(config: RunConfig, run_dir: Path, command: str) -> None:
    """Raise a UserError where a run is none that makes a row of each text and of each video by itself.

    Args:
        config: of the run.
        run_dir: its folder, for errors.
        command: what was to be done with it.
    """
    require_towers(config, command)
    if config.answers_questions:
        raise UserError(
            f"{run_dir} answers questions about a video, and compares none; pass the folder of a retrieval run"
        )
    if HEADS[config.model.head].differences:
        others = ", ".join(name for name in HEADS if not HEADS[name].differences)
        raise UserError(
            f"{run_dir} compares what changes between frames (head {config.model.head!r}), which no row of a video "
            f"holds; pass a run with another head, such as {others}"
        )


def write_published(published: Published, out: Path, licence: str = UNKNOWN, name: str | None = None) -> None:
    """Write a published folder.

    Args:
        published: what it is made of.
        out: the folder, which must not exist and appears when it is whole.
        licence: of the weights.
        name: by which the card loads it, such as that of an entry of the hub; None: the folder's.

    Raises:
        UserError: `out` exists; the run is not finished, or its figures are of other weights.
    """
    config = for_others(published.config)
    results = published.figures()
    with making(out):
        require_free(out, ANOTHER)
        with whole_folder(out, ANOTHER) as folder:
            epoch = None if published.records is None else epoch_of_weights(published.records)
            save_tensors_atomic(folder / WEIGHTS, dict(published.weights), epoch=epoch)
            save_config(folder, config)
            write_json_atomic(folder / CLIP_CONFIG, dict(published.clip_config))
            if published.clip_config.get("model_type", "clip") == "clip":
                fast_tokenizer(published.tokenizer).save_pretrained(folder)
                write_json_atomic(folder / PREPROCESSOR, preprocessor(config.data.image_size))
            published.tokenizer.save(folder / TOKENIZER)  # as a run has it, with what it is cut and padded to

            mark = _write_records(published, folder)
            (checksum,) = read_checksums(folder)[WEIGHTS]
            if results is not None:
                results = _for_others(results, published, checksum)
                write_json_atomic(folder / RESULTS, results)
            trained = (folder / METRICS).is_file()
            card = card_of(
                config,
                results,
                name=name or out.name,
                licence=licence,
                base_model=base_model_of(published.config),
                trained=trained,
            )
            write_text_atomic(folder / CARD, card)
            write_json_atomic(folder / FINISHED, {**mark, "weights": checksum})
            for path in list(folder.iterdir()):
                give_usual_mode(path)


def _write_records(published: Published, folder: Path) -> dict[str, Any]:
    """Copy a run's records, and how its frames were taken from files. Returns the mark of its end; {} without a run."""
    records = published.records
    if records is None:
        return {}
    environment = load_environment(records)
    write_json_atomic(folder / ENVIRONMENT, {key: environment[key] for key in OF_FRAMES if key in environment})
    if (records / METRICS).is_file():
        write_text_atomic(folder / METRICS, (records / METRICS).read_text(encoding="utf-8"))
    return {key: value for key, value in (read_mark(records) or {}).items() if key != "weights"}


def _for_others(results: dict[str, Any], published: Published, checksum: str) -> dict[str, Any]:
    """Figures without absolute paths, which say of which file of weights they are: this one may have the towers too."""
    assert published.records is not None
    environment = load_environment(published.records)
    paths = Paths(results, environment, str(published.records.absolute()), leave_out=True)
    origin = {**results.get(ORIGIN, {}), "weights": hash_of_tensors(published.weights), "checksum": checksum}
    return {**_without_paths(results, paths), ORIGIN: origin}


def for_others(config: RunConfig) -> RunConfig:
    """The same settings without places of this machine.

    Data set and folders are the recipe's; files that training started from are named without their folders.
    """
    usual = RECIPES[config.recipe]() if config.recipe in RECIPES else RunConfig()
    model = config.model
    return replace(
        config,
        out=usual.out,
        from_features=None,
        resume=False,
        seeds=1,
        data=replace(config.data, **vars(PlaceConfig.of(usual.data))),
        model=replace(
            model,
            clip=_without_folders(model.clip),
            tokenizer=None if model.tokenizer is None else _without_folders(model.tokenizer),
            init_from=None if model.init_from is None else Path(model.init_from.name),
        ),
    )


def _without_folders(name: str) -> str:
    return Path(name).expanduser().name if is_place(name) else name


def _without_paths(value: Any, paths: Paths) -> Any:
    """A value of JSON whose sentences have no absolute paths."""
    if isinstance(value, dict):
        return {name: _without_paths(one, paths) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_paths(one, paths) for one in value]
    return paths.shown(value) if isinstance(value, str) else value
