"""`data cache`: what is kept of data sets is shown, and goes where it is not in use; nothing else does."""

import os
import re
import subprocess
import sys
import time

import pytest
from tiny_layouts import WRITERS

from emcl_train import cli
from emcl_train.config import DataConfig
from emcl_train.data import cache_use
from emcl_train.data.annotations import load_annotations
from emcl_train.data.cache import FrameCache, cache_folder
from emcl_train.data.loader import check_clips
from emcl_train.tools.cache import ID

DAY = 86400


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A data set, with a cache folder of its own that keeps its frames, and that nobody uses."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    WRITERS["csv"](tmp_path / "set")
    config = DataConfig(layout="csv", root=tmp_path / "set", image_size=16, num_frames=3, cache_frames=True, workers=0)
    assert not check_clips(load_annotations(config).train.clips, config)
    release()
    return config


def release() -> None:
    """Use no cache any more, as if the process had ended."""
    if cache_use._held is not None:
        os.close(cache_use._held[1])
        cache_use._held = None


def run(*arguments: str) -> int:
    return cli.main(["data", "cache", *arguments])


def test_what_is_kept_is_listed_with_its_data_set_and_size(config, capsys, tmp_path):
    assert run() == 0
    said = capsys.readouterr().out
    folder = cache_folder(config)
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert said.startswith(f"{tmp_path}/cache/emcl keeps {size / 1e3:.1f} kB of 1 data set\n")
    assert re.search(rf"^{folder.name} +{size / 1e3:.1f} kB +today +{tmp_path}/set$", said, re.MULTILINE)
    assert "    3 frames of 16² of 8 clips\n" in said
    assert "    which of 8 clips are whole\n" in said
    assert ID.fullmatch(folder.name)


def test_pruned_caches_are_gone_and_found_out_again(config, capsys):
    clips = load_annotations(config).train.clips
    assert FrameCache.open(config, clips) is not None
    assert run("--prune", cache_folder(config).name[:5]) == 0
    assert re.search(r"kB freed in .*: what was kept of 1 data set is gone", capsys.readouterr().out)
    assert not cache_folder(config).exists()
    assert FrameCache.open(config, clips) is None
    assert not check_clips(clips, config)
    assert FrameCache.open(config, clips) is not None


def test_what_another_process_uses_stays(config, capsys):
    code = (
        "import sys; from pathlib import Path; from emcl_train.config import DataConfig\n"
        "from emcl_train.data.cache_use import hold, use_cache\n"
        f"use_cache(DataConfig(root=Path({str(config.root)!r}))); print('ready', flush=True); sys.stdin.read()"
    )
    user = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert user.stdout.readline() == "ready\n"
        before = sorted(path.name for path in cache_folder(config).iterdir())
        assert run("--prune") == 1
        assert f"{cache_folder(config).name} is in use, and stays: {config.root}" in capsys.readouterr().out
        assert sorted(path.name for path in cache_folder(config).iterdir()) == before
    finally:
        user.communicate("", timeout=300)
    assert run("--prune") == 0
    assert not cache_folder(config).exists()


def test_a_run_in_this_process_uses_its_cache(config, capsys):
    assert not check_clips(load_annotations(config).train.clips, config)
    assert run("--prune") == 1
    release()
    assert run("--prune") == 0


def test_only_what_was_not_used_for_so_many_days_goes(config, capsys):
    assert run("--prune", "--older-than", "1") == 0
    assert "what was kept of 0 data sets is gone" in capsys.readouterr().out
    for path in cache_folder(config).iterdir():
        os.utime(path, (time.time() - 3 * DAY,) * 2)
    assert run("--older-than", "4") == 0
    assert "keeps 0 B of 0 data sets" in capsys.readouterr().out
    assert run("--older-than", "2") == 0
    assert "3 days ago" in capsys.readouterr().out

    # Reading it is a use.
    assert not check_clips(load_annotations(config).train.clips, config)
    release()
    assert run("--prune", "--older-than", "2") == 0
    assert cache_folder(config).exists()


def test_nothing_of_others_is_removed(config, capsys, tmp_path):
    folder = cache_folder(config)
    home = folder.parent
    (folder / "notes.txt").write_text("mine")
    (folder / "frames-0123456789abcdef.npy").symlink_to(tmp_path / "set" / "clips.csv")
    (home / "other").mkdir()
    (home / "other" / "doctor.json").write_text("{}")
    (home / ("0" * 16)).symlink_to(tmp_path / "set")
    (tmp_path / "set" / "doctor.json").write_text("{}")
    assert run("--prune") == 0
    said = capsys.readouterr().out
    assert f"{folder} stays: it holds what this program did not write, such as frames-0123456789abcdef.npy" in said
    assert sorted(path.name for path in folder.iterdir()) == ["frames-0123456789abcdef.npy", "notes.txt"]
    assert (home / "other" / "doctor.json").exists()
    assert (tmp_path / "set" / "doctor.json").exists()
    assert (tmp_path / "set" / "clips.csv").exists()


def test_parts_of_films_of_a_library_are_listed_and_removed_unless_it_is_served(config, capsys, tmp_path):
    folder = tmp_path / "cache" / "emcl" / "serve" / ("5" * 16)
    folder.mkdir(parents=True)
    part = folder / f"{'a' * 32}_0_4000000_10.mp4"
    part.write_bytes(bytes(5000))
    (folder / "notes.txt").write_text("of somebody else")
    descriptor = cache_use.hold(folder, b"/home/somebody/library")
    try:
        assert run() == 0
        said = capsys.readouterr().out
        assert "of 1 data set and 1 library\n" in said
        assert re.search(rf"^{folder.name} +5\.0 kB +today +/home/somebody/library$", said, re.MULTILINE)
        assert "    1 part of films, as browsers play them\n" in said
        assert run("--prune", folder.name) == 1
        assert f"{folder.name} is in use, and stays: /home/somebody/library" in capsys.readouterr().out
        assert part.exists()
    finally:
        os.close(descriptor)
    assert run("--prune", folder.name) == 0
    assert "what was kept of 1 library is gone" in capsys.readouterr().out
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    assert cache_folder(config).is_dir()


def test_folders_of_earlier_versions_are_listed_and_removed(config, capsys):
    """They say whose they are only if doctor has looked."""
    (cache_folder(config) / cache_use.NAME).unlink()
    assert run() == 0
    assert "of an unknown data set" in capsys.readouterr().out
    assert cli.main(["data", "doctor", "csv", str(config.root)]) == 0
    release()
    assert run() == 0
    assert str(config.root) in capsys.readouterr().out
    assert run("--prune") == 0
    assert not cache_folder(config).exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ffff"], "the id 'ffff': nothing kept has it in "),
        ([""], "the id '': nothing kept has it in "),
        (["--older-than", "-1"], "--older-than is -1, expected days, 0 or more"),
        (["--older-than", "nan"], "--older-than is nan, expected days, 0 or more"),
    ],
)
def test_what_is_not_kept_is_one_line(config, capsys, arguments, message):
    assert run("--prune", *arguments) == 1
    assert message in capsys.readouterr().err
    assert cache_folder(config).exists()


def test_no_cache_is_no_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    assert run() == 0
    assert "keeps 0 B of 0 data sets" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()
