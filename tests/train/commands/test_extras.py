"""A plain install: what works without the extra "train", and the line that is said where it does not."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from emcl_train import extras
from emcl_train.errors import UserError
from emcl_train.recipes import load_recipe
from emcl_train.runs.contents import save_config

ROOT = Path(__file__).parents[3]

BLOCKED = """
import sys
from importlib.abc import MetaPathFinder

class NotInstalled(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in NAMES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

NAMES = sys.argv.pop(1).split(",")
sys.meta_path.insert(0, NotInstalled())
"""


def without(packages, *arguments, cwd):
    """The program on a machine that lacks packages, as modules."""
    code = BLOCKED + "from emcl_train.cli import program; program()"
    command = [sys.executable, "-c", code, ",".join(packages), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


TRAIN = tuple(extras.EXTRAS["train"].values())
LINE = re.compile(
    r'error: [\w, -]+? of the extra "train" (is|are) not installed; install with `pip install .+\[train\]\'?`\n'
)


@pytest.fixture
def place(tmp_path):
    """A run, two files of embeddings, and a folder of videos that has none."""
    save_config(tmp_path / "run", load_recipe("shapes"))
    rng = np.random.default_rng(0)
    for name in ("text", "video"):
        np.save(tmp_path / f"{name}.npy", rng.normal(size=(8, 64)).astype(np.float32))
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize("arguments", [
    ["--help"], ["--version"], ["train", "--help"], ["train", "shapes", "--help"], ["eval", "run", "--help"],
    ["refine", "text.npy", "video.npy", "--out", "refined", "--paired"],
])  # fmt: skip
def test_what_a_plain_install_can_do(arguments, place):
    ended = without(TRAIN, *arguments, cwd=place)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("arguments", [
    ["train", "shapes"], ["resume", "run"], ["eval", "run"], ["embed", "shapes", "--out", "new"],
    ["embed", "run", "--out", "new"], ["export", "run", "x.bin", "--layout", "emcl"], ["report", "run"],
    ["verify", "run"],
    ["data", "shapes", "new"], ["data", "doctor", "msrvtt", "empty"], ["data", "compress", "empty", "new"],
    ["train", "shapes", "--print-config"],
], ids=" ".join)  # fmt: skip
def test_other_commands_name_the_extra_in_a_line(arguments, place):
    before = sorted(place.rglob("*"))
    ended = without(TRAIN, *arguments, cwd=place)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert LINE.fullmatch(ended.stderr), ended.stderr
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("package", ["av", "transformers", "matplotlib", "jinja2", "ftfy", "pillow", "accelerate"])
def test_a_training_begins_with_all_that_its_end_needs(package, place):
    ended = without([extras.EXTRAS["train"][package]], "train", "shapes", cwd=place)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f'error: {package} of the extra "train" is not installed; install with `pip install')
    assert not (place / "runs").exists()


@pytest.mark.parametrize("module", ["tyro", "rich"])
def test_even_what_parses_and_prints_may_be_missing(module, place):
    ended = without([module], "--help", cwd=place)
    assert ended.returncode == 1
    assert ended.stderr == f"error: {module} is not installed; install with `pip install {ROOT}`\n"


def test_an_import_that_fails_for_another_reason_is_no_missing_package():
    assert extras.said_of_missing(ImportError("cannot import name 'x' from 'y'")) is None
    error = KeyError("x")
    error.__context__ = ModuleNotFoundError("No module named 'av'", name="av")
    assert extras.said_of_missing(error) is None


def test_a_library_that_says_it_in_its_own_words_is_understood(monkeypatch):
    monkeypatch.setattr(extras, "missing_of", lambda extra: ["pillow"] if extra == "train" else [])
    error = RuntimeError("Failed to import transformers.models.clip")
    error.__cause__ = ImportError("CLIPImageProcessor requires the PIL library but it was not found")
    assert extras.said_of_missing(error).startswith('pillow of the extra "train" is not installed')


def test_packages_are_those_of_pyproject():
    """As metadata of what is built from it has them, too."""
    tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements):
        return {re.match(r"[\w-]+", requirement)[0] for requirement in requirements}

    assert names(project["dependencies"]) == extras.EXTRAS[""].keys()
    assert names(project["optional-dependencies"]["train"]) == extras.EXTRAS["train"].keys()


class Distribution:
    def __init__(self, url):
        self.url = url

    def read_text(self, name):
        assert name == "direct_url.json"
        return self.url and json.dumps(self.url)


def test_the_line_is_that_of_the_way_of_the_installation(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert extras.install_line("train") == f"pip install '{ROOT}[train]'"
    monkeypatch.chdir(ROOT)
    assert extras.install_line("train") == "pip install '.[train]'"

    wheel = tmp_path / "my wheels" / "emcl-1-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.touch()
    monkeypatch.setattr(extras, "ROOT", tmp_path)
    lines = {
        wheel.as_uri(): f"pip install '{wheel}[train]'",
        tmp_path.as_uri(): f"pip install '{tmp_path}[train]'",
        (tmp_path / "gone.whl").as_uri(): f"pip install {' '.join(extras.EXTRAS['train'])}",
        "https://host/emcl.whl": "pip install 'emcl[train] @ https://host/emcl.whl'",
    }
    for url, line in lines.items():
        noted = {"url": url}
        monkeypatch.setattr(extras.metadata, "distribution", lambda name, noted=noted: Distribution(noted))
        assert extras.install_line("train") == line
    noted = {"url": "https://host/emcl.git", "vcs_info": {"vcs": "git"}}
    monkeypatch.setattr(extras.metadata, "distribution", lambda name: Distribution(noted))
    assert extras.install_line("train") == "pip install 'emcl[train] @ git+https://host/emcl.git'"
    monkeypatch.setattr(extras.metadata, "distribution", lambda name: Distribution(None))
    assert extras.install_line("train") == "pip install 'emcl[train]'"


def test_want_of_a_package_is_said_before_anything_else(monkeypatch):
    monkeypatch.setattr(extras, "_is_there", lambda module: module not in ("av", "PIL", "pyarrow"))
    with pytest.raises(UserError, match='pillow and av of the extra "train" are not installed'):
        extras.require_packages()
