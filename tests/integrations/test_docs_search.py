"""The code of docs/search.md runs as it stands, in a folder with small files of the names that it uses."""

import re
from pathlib import Path

import mteb
import numpy as np
import pytest
from small_search import OTHER_QUESTIONS, PASSAGES, Stories

from emcl_kernels.testing import clustered_rows

PAGE = Path(__file__).resolve().parents[2] / "docs" / "search.md"
SECTIONS = ["sentence-transformers", "mteb", "FAISS", "LanceDB", "parquet", "One gallery of texts and videos"]


def code_of(section: str) -> str:
    text = PAGE.read_text(encoding="utf-8").partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return code


def test_every_block_is_run_here() -> None:
    assert len(re.findall(r"^```python$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)) == len(SECTIONS)


@pytest.mark.parametrize("section", SECTIONS)
def test_the_code_runs(section: str, tmp_path: Path, monkeypatch, minilm_folder: Path, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("passages.txt").write_text("\n".join(PASSAGES), encoding="utf-8")
    Path("questions.txt").write_text("\n".join(OTHER_QUESTIONS), encoding="utf-8")
    for name, rows in {"text": 63, "video": 70, "captions": 41}.items():
        np.save(f"{name}.npy", clustered_rows(rows, 64).numpy().astype(np.float32))

    # What would come from the hub: the same model by a path of its name, and a task of local data.
    Path("sentence-transformers").mkdir()
    Path("sentence-transformers", "all-MiniLM-L6-v2").symlink_to(minilm_folder)
    monkeypatch.setattr(mteb, "get_task", lambda name, eval_splits: Stories())
    monkeypatch.setattr(mteb, "get_model", local_model)

    names: dict = {}
    exec(compile(code_of(section), str(PAGE), "exec"), names)
    if section == "sentence-transformers":
        assert names["scores"].shape == (1, len(PASSAGES))
        question = ["where do owls sleep"]
        np.testing.assert_array_equal(names["same"].encode_query(question), names["better"].encode_query(question))
    elif section == "mteb":
        assert re.search(r"^gain +\+\d", capsys.readouterr().out, re.MULTILINE)
    elif section == "FAISS":
        assert names["places"].shape == (63, 10)
    elif section == "LanceDB":
        assert names["found"][0, 0].startswith("clip-")
    elif section == "parquet":
        assert names["rows"].shape == (70, 65)
    else:
        assert names["places"].shape == (5, 10)
        assert names["index"].ntotal == 128


def local_model(name: str) -> object:
    from mteb.models import SentenceTransformerEncoderWrapper
    from sentence_transformers import SentenceTransformer

    return SentenceTransformerEncoderWrapper(SentenceTransformer(name, device="cpu"))
