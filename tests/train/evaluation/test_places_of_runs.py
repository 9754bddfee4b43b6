"""A run's config.json, which a stranger may have written, does not decide where anything is written."""

from dataclasses import replace
from pathlib import Path

import pytest

from emcl_train import cli
from emcl_train.commands.entry import named
from emcl_train.config import MAX_PIXELS, DataConfig, PlaceConfig, RunConfig, ShapesConfig
from emcl_train.data.annotations import load_annotations, require_made
from emcl_train.errors import UserError
from emcl_train.report import retrievals
from emcl_train.runs.contents import save_config

SHAPES = ShapesConfig(train_clips=12, val_clips=2, test_clips=2, size=16, seconds=0.5)


@pytest.fixture
def run(tmp_path):
    """A run whose configuration names an empty folder of the user's for the bundled set."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "run").mkdir()
    data = DataConfig(layout="shapes", root=tmp_path / "mine", shapes=SHAPES, cache_dir=tmp_path / "mine" / "cache")
    config = RunConfig(data=data, out=tmp_path / "mine" / "out")
    save_config(tmp_path / "run", config)
    return tmp_path / "run", config


def test_nothing_is_rendered_where_a_run_says(run, tmp_path, capsys):
    folder, config = run
    with pytest.raises(UserError, match=r"are not in .*mine, the folder that its configuration names, .*--data.root"):
        require_made(config.data)
    assert cli.main(["embed", str(folder), "--out", str(tmp_path / "features")]) == 1
    assert "nothing is rendered there unasked; pass --data.root" in capsys.readouterr().err
    with pytest.raises(UserError):
        retrievals._clips(config.data, "test")
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_set_that_is_there_is_read(run):
    _, config = run
    load_annotations(config.data)
    require_made(config.data)
    assert len(retrievals._clips(config.data, "test")) == 2


def test_frames_are_kept_where_the_user_says(tmp_path):
    data = DataConfig(cache_dir=tmp_path, cache_frames=True, max_pixels=10**12, outside_root="refuse", workers=7)
    place = PlaceConfig.of_run(data)
    assert (place.cache_dir, place.cache_frames, place.max_pixels) == (None, False, MAX_PIXELS)
    assert (place.outside_root, place.workers) == ("refuse", 7)
    assert PlaceConfig.of_run(replace(data, cache_dir=None)).cache_frames
    assert PlaceConfig.of_run(replace(data, max_pixels=5)).max_pixels == 5
    assert PlaceConfig.of(data).cache_dir == tmp_path


@pytest.mark.parametrize(
    "arguments", [["--data.root", "x"], ["--data.root=x"], ["--emcl.mode", "off", "--data.root", "x"]]
)
def test_a_folder_that_the_user_names_is_known(arguments):
    assert "--data.root" in named(arguments)
    assert "--data.root" not in named([str(Path("--data"))])
