"""A published run: what is in the folder, what is not, and that it gives the run's table."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_cache import put_clip
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoTokenizer

import emcl_train
from emcl_train import cli
from emcl_train.config import RunConfig
from emcl_train.data.annotations import load_annotations
from emcl_train.encoder import Encoder
from emcl_train.errors import UserError
from emcl_train.evaluation.metrics import text_to_video, video_to_text_best_similarity
from emcl_train.recipes import SMOKE_TEST
from emcl_train.runs.contents import load_config, save_config
from emcl_train.runs.files import read_json, write_json_atomic
from emcl_train.runs.origin import what_is_stale
from emcl_train.tools.card import base_model_of

pytestmark = pytest.mark.usefixtures("one_thread")

FILES = {
    "README.md", "checksums.json", "clip_config.json", "config.json", "environment.json", "finished.json",
    "metrics.jsonl", "model.safetensors", "preprocessor_config.json", "results.json", "tokenizer.json",
    "tokenizer_config.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def published(tiny_whole_run, tmp_path_factory):
    """A published folder, and the rendered set that its run was trained on."""
    folder = tmp_path_factory.mktemp("published") / "tiny-emcl"
    assert cli.main(["publish", str(tiny_whole_run[1]), str(folder), "--license", "cc-by-4.0", "--quiet"]) == 0
    return folder, tiny_whole_run[0]


@pytest.fixture(scope="module")
def split(tiny_whole_run):
    return load_annotations(load_config(tiny_whole_run[1]).data).test


def results_of(folder: Path):
    return read_json(folder / "results.json", "", keys=("rows",))


def test_it_holds_the_model_its_figures_and_a_card(published, tiny_whole_run):
    folder, run = published[0], tiny_whole_run[1]
    assert {path.name for path in folder.iterdir()} == FILES
    ours, theirs = load_file(folder / "model.safetensors"), load_file(run / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert results_of(folder)["rows"] == results_of(run)["rows"]
    assert what_is_stale(folder, results_of(folder)) is None
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {(run / "config.json").stat().st_mode & 0o777}


def test_nothing_in_it_names_a_place_of_this_machine(published, tiny_whole_run):
    folder, run = published[0], tiny_whole_run[1]
    for path in folder.iterdir():
        content = path.read_bytes()
        for place in (str(run), str(published[1]), str(folder.parent), str(Path.home()), sys.prefix):
            assert place.encode() not in content, path.name


def test_the_object_alone_reproduces_the_table(published, split, tiny_whole_run):
    model = emcl_train.load(published[0])
    text, video = model.text_features(split.captions), model.video_features(split.clips)
    caption_clip = torch.tensor(split.caption_clip)
    for emcl, row in zip((None, False), results_of(tiny_whole_run[1])["rows"], strict=False):
        similarity = model.similarity(text, video, emcl=emcl)
        assert text_to_video(similarity, caption_clip) == row["text_to_video"]
        assert video_to_text_best_similarity(similarity, caption_clip) == row["video_to_text"]
    kept = load_file(tiny_whole_run[1] / "embeddings.safetensors")
    torch.testing.assert_close(model.similarity(text, video), kept["similarity_on"])
    torch.testing.assert_close(model.similarity(text, video, emcl=False), kept["similarity_off"])


def test_em_runs_in_the_blocks_that_the_model_is_evaluated_in(published, split):
    model = emcl_train.load(published[0])
    text, video = model.text_features(split.captions), model.video_features(split.clips)
    at_once = model.similarity(text, video)
    model.config = replace(model.config, eval=replace(model.config.eval, em_block=4))
    in_blocks = model.similarity(text, video)
    assert not torch.equal(in_blocks, at_once)
    torch.testing.assert_close(in_blocks[:4, :4], model.similarity(text[:4], video[:4]))


def test_rows_are_those_of_the_run_and_compare_by_their_cosine(published, split, tiny_whole_run):
    model, run = emcl_train.load(published[0]), emcl_train.load(tiny_whole_run[1])
    assert model.fingerprint == run.fingerprint
    assert model.label == run.label
    text, video = model.encode_text(split.captions[:3]), model.encode_video(split.clips[:2])
    assert torch.equal(text, run.encode_text(split.captions[:3]))
    torch.testing.assert_close(model.similarity(text, video), text @ video.T)


def test_rows_and_features_are_not_compared_with_each_other(published, split):
    model = emcl_train.load(published[0])
    rows, features = model.encode_text(split.captions[:2]), model.video_features(split.clips[:2])
    with pytest.raises(TypeError, match="similarity got Tensor and VideoFeatures, expected rows of both"):
        model.similarity(rows, features)
    with pytest.raises(TypeError, match="whose cosine has no emcl"):
        model.similarity(rows, rows, emcl=True)
    assert model.video_features([]).frames.shape == (0, 3, model.width)


def test_an_object_of_a_run_is_published_as_the_run_was_trained(tiny_whole_run, tmp_path, split):
    model = emcl_train.load(tiny_whole_run[1])
    own = load_config(tiny_whole_run[1])
    model.config = replace(model.config, data=replace(model.config.data, augment="none", max_words=5))
    assert model.published().config == own
    assert model.similarity(model.text_features([]), model.video_features(split.clips[:2])).shape == (0, 2)


def test_options_of_the_hub_are_for_the_hub(published):
    with pytest.raises(TypeError, match="there is no option 'revison'"):
        emcl_train.load(published[0], revison="v1")
    with pytest.raises(UserError, match="is a folder here, and revision are for the hub; leave them out"):
        emcl_train.load(published[0], revision="v1")


def test_a_folder_is_no_base_model_of_the_hub(tmp_path):
    (tmp_path / "siglip").mkdir()
    names = {"nobody/clip": "nobody/clip", str(tmp_path / "siglip"): None, "siglip": None, "random": None}
    config = RunConfig()
    for name, expected in names.items():
        assert base_model_of(replace(config, model=replace(config.model, clip=name))) == expected


def test_it_is_evaluated_where_the_data_set_is(published, tmp_path, capfd):
    folder, data = published
    out = tmp_path / "figures"
    assert cli.main(["eval", str(folder), "--data.root", str(data), "--out", str(out), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["rows"] == results_of(folder)["rows"]
    assert {path.name for path in folder.iterdir()} == FILES  # it stays as it was published


CLEAN = """
import json, sys
import emcl_train
from emcl_train.evaluation.metrics import text_to_video
folder, root, asked = sys.argv[1:]
assert emcl_train.__file__.startswith(root), emcl_train.__file__
asked = json.loads(asked)
model = emcl_train.load(folder)
similarity = model.similarity(model.text_features(asked["captions"]), model.video_features(asked["clips"]))
import torch
print(json.dumps(text_to_video(similarity, torch.tensor(asked["caption_clip"]))))
"""


def test_another_process_elsewhere_reproduces_the_table(published, split, tmp_path):
    """A copy of the folder, in a process that knows nothing of the run, its recipe or this folder."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in published[0].iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    asked = {
        "captions": split.captions,
        "caption_clip": split.caption_clip,
        "clips": [str(c.path) for c in split.clips],
    }
    root = str(Path(emcl_train.__file__).parents[1])
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": root, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CLEAN, "copy", root, json.dumps(asked)],
        cwd=tmp_path, env=environment | {"HOME": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == results_of(published[0])["rows"][0]["text_to_video"]


def test_the_card_has_what_the_hub_reads(published, tiny_whole_run):
    card = ModelCard.load(published[0] / "README.md")
    assert (card.data.license, card.data.library_name, card.data.model_name) == ("cc-by-4.0", "emcl", "tiny-emcl")
    row = results_of(tiny_whole_run[1])["rows"][0]
    found = {(one.task_type, one.metric_name): one for one in card.data.eval_results}
    assert found["text-to-video-retrieval", "R@1"].metric_value == round(row["text_to_video"]["R@1"], 4)
    assert found["video-to-text-retrieval", "MnR"].metric_value == round(row["video_to_text"]["MnR"], 4)
    assert found["text-to-video-retrieval", "R@5"].metric_type == "recall_at_5"
    assert found["text-to-video-retrieval", "R@1"].dataset_split == "test"
    text = card.text
    assert "| EMCL-Net |" in text
    assert "The towers started from random numbers" in text
    assert "Ties take the mean rank." in text
    assert 'emcl_train.load("tiny-emcl")' in text
    assert "K = 4" in text


def test_other_programs_read_the_tokenizer(published):
    model = emcl_train.load(published[0])
    theirs = AutoTokenizer.from_pretrained(published[0])
    caption = "a red circle moves left"
    ids, mask = model._tokenizer.encode([caption])
    assert theirs(caption)["input_ids"] == ids[0][mask[0].bool()].tolist()


@pytest.fixture
def copied(tiny_whole_run, tmp_path):
    """A copy of the run, to be spoilt."""
    folder = tmp_path / "run"
    folder.mkdir()
    for path in tiny_whole_run[1].iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_smoke_test_says_so_first(copied, tmp_path):
    save_config(copied, replace(load_config(copied), recipe="msrvtt-9k"))
    assert cli.main(["publish", str(copied), str(tmp_path / "smoke")]) == 0
    text = ModelCard.load(tmp_path / "smoke/README.md").text
    assert text.split("\n\n")[1].startswith(f"**{SMOKE_TEST}**")
    assert "None was named" in text


def test_a_run_that_is_not_finished_is_not_published(copied, tmp_path, capsys):
    (copied / "finished.json").unlink()
    assert cli.main(["publish", str(copied), str(tmp_path / "out")]) == 1
    assert "is not the folder of a finished run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_figures_of_other_weights_are_not_published(copied, tmp_path, capsys):
    results = results_of(copied)
    write_json_atomic(
        copied / "results.json", results | {"origin": results["origin"] | {"weights": "0", "checksum": "0"}}
    )
    assert cli.main(["publish", str(copied), str(tmp_path / "out")]) == 1
    assert "not those of the weights beside them" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_there_stays(published, tiny_whole_run, tmp_path, capsys):
    (tmp_path / "mine").write_text("kept")
    assert cli.main(["publish", str(tiny_whole_run[1]), str(tmp_path / "mine")]) == 1
    assert "choose another folder" in capsys.readouterr().err
    assert (tmp_path / "mine").read_text() == "kept"


def test_runs_without_rows_are_refused(copied, tmp_path, capsys):
    config = load_config(copied)
    save_config(copied, replace(config, model=replace(config.model, head="aligned", temporal="difference")))
    assert cli.main(["publish", str(copied), str(tmp_path / "out")]) == 1
    assert "compares what changes between frames" in capsys.readouterr().err


def test_a_published_folder_is_published_again(published, tmp_path):
    assert cli.main(["publish", str(published[0]), str(tmp_path / "tiny-emcl"), "--license", "cc-by-4.0"]) == 0
    for path in published[0].iterdir():
        assert (tmp_path / "tiny-emcl" / path.name).read_bytes() == path.read_bytes(), path.name


def test_an_encoder_writes_the_same_folder_as_the_command(published, tiny_whole_run, tmp_path):
    emcl_train.load(tiny_whole_run[1]).save_pretrained(tmp_path / "tiny-emcl", licence="cc-by-4.0")
    for path in published[0].iterdir():
        ours, theirs = (tmp_path / "tiny-emcl" / path.name).read_bytes(), path.read_bytes()
        if path.name == "clip_config.json":
            ours, theirs = ({**json.loads(one), "transformers_version": None} for one in (ours, theirs))
        assert ours == theirs, path.name
    again = Encoder.from_pretrained(tmp_path / "tiny-emcl", device="cpu")
    assert again.fingerprint == emcl_train.load(published[0]).fingerprint


def test_pushing_makes_the_entry_and_sends_the_folder(published, monkeypatch):
    """What huggingface_hub is asked for, at its own functions."""
    asked = []

    def create_repo(api, **given):
        asked.append(("create", api.token, given))
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{given['repo_id']}")

    def upload_folder(api, *, folder_path, **given):
        names = {path.name for path in folder_path.iterdir()}
        asked.append(("upload", names, (folder_path / "README.md").read_text(), given))
        return "https://huggingface.co/us/tiny/commit/0"

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    model = emcl_train.load(published[0])
    assert model.push_to_hub("us/tiny", private=True, token="t", branch="new", create_pr=True).endswith("/commit/0")

    (_, token, made), (_, names, card, sent) = asked
    assert (token, made) == ("t", {"repo_id": "us/tiny", "private": True, "exist_ok": True})
    assert names == FILES
    assert 'emcl_train.load("us/tiny")' in card
    assert sent == {
        "repo_id": "us/tiny", "repo_type": "model", "commit_message": "Push model using huggingface_hub.",
        "revision": "new", "create_pr": True,
    }  # fmt: skip


def test_nothing_is_made_on_the_hub_of_a_run_that_is_not_finished(copied, monkeypatch):
    (copied / "finished.json").unlink()
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda *_, **__: pytest.fail("it was made"))
    with pytest.raises(UserError, match="is not the folder of a finished run"):
        emcl_train.load(copied).push_to_hub("us/tiny")


def test_a_clip_as_it_is_is_saved_as_one_that_nothing_trained(tmp_path):
    clip = emcl_train.load(put_clip(tmp_path / "cache"))
    clip.save_pretrained(tmp_path / "saved")
    text = ModelCard.load(tmp_path / "saved/README.md").text
    assert "Nothing was trained." in text
    assert "## Figures" not in text
    back = emcl_train.load(tmp_path / "saved")
    assert back.fingerprint == clip.fingerprint
    rows = [one.encode_text(["a red circle"]) for one in (back, clip)]
    torch.testing.assert_close(*rows, atol=1e-6, rtol=0)
