"""The library of a run's test clips ranks them as the run's own evaluation does."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from several_processes import whole_run
from tiny_run import tiny_run

import emcl_train
from emcl_train import Library
from emcl_train.data.annotations import load_annotations
from emcl_train.data.video import decode_clip
from emcl_train.runs.contents import load_config
from emcl_train.search.indexing import Asked, index
from emcl_train.tools.publish import publish_run
from emcl_train.training import trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "write_report", lambda out: out)
        whole_run(folder / "set", folder)
    return folder / "run"


@pytest.fixture(scope="module")
def library(run: Path) -> Library:
    """Of the test split alone."""
    test = load_annotations(load_config(run).data).test
    videos = run.parent / "test-videos"
    videos.mkdir()
    for clip in test.clips:
        shutil.copy(clip.path, videos / clip.path.name)
    report = index(Asked(str(run.parent / "library"), (videos,), str(run), "pieces"))
    assert report.added == len(test.clips)
    return Library(run.parent / "library")


def test_it_ranks_by_the_runs_own_head(run: Path, library: Library) -> None:
    tensors = load_file(run / "embeddings.safetensors")
    queries = json.loads((run / "queries.json").read_text())
    assert library.ranks_by_head
    for row, caption in enumerate(queries["captions"]):
        scores = tensors["similarity_off"][row].float().numpy()
        expected = [queries["video_ids"][place] for place in np.argsort(-scores)]
        found = library.search(caption, k=len(expected))

        # Features are kept in 16 bits, which may change places of scores that are nearly the same.
        assert [one.score for one in found] == pytest.approx(sorted(scores, reverse=True), abs=2e-3)
        close = dict(zip(queries["video_ids"], scores, strict=True))
        for one, name in zip(found, expected, strict=True):
            assert close[one.path.stem] == pytest.approx(close[name], abs=4e-3)


def test_it_goes_on_with_the_published_run(run: Path, library: Library, tmp_path: Path) -> None:
    """Its rows are those of the run: nothing is embedded anew, and searches find the same."""
    publish_run(run, tmp_path / "published")
    shutil.copytree(run.parent / "library", tmp_path / "library")
    report = index(Asked(str(tmp_path / "library"), (), str(tmp_path / "published"), "pieces"))
    assert report.added == 0
    found = Library(tmp_path / "library").search("a red circle moves left", k=5)
    assert [(one.path, one.score) for one in found] == [
        (one.path, one.score) for one in library.search("a red circle moves left", k=5)
    ]
    assert Library(tmp_path / "library").encoder.fingerprint == library.encoder.fingerprint


@pytest.mark.parametrize("head", ["wti", "mean"])
def test_scores_are_the_similarities_of_the_runs_own_head(head: str, tmp_path: Path, monkeypatch) -> None:
    """By the run's evaluation: its file of similarities, without EMCL. WTI compares every word with every frame."""
    monkeypatch.setattr(trainer, "write_report", lambda out: out)
    config = tiny_run(tmp_path / "set", tmp_path / "run", epochs=1)
    config.model.head = head
    trainer.train(config, Console(file=io.StringIO()))
    test = load_annotations(config.data).test
    (tmp_path / "films").mkdir()
    for clip in test.clips:
        shutil.copy(clip.path, tmp_path / "films" / clip.path.name)
    index(Asked(str(tmp_path / "library"), (tmp_path / "films",), str(tmp_path / "run"), "pieces"))

    tensors = load_file(tmp_path / "run" / "embeddings.safetensors")
    queries = json.loads((tmp_path / "run" / "queries.json").read_text())
    library = Library(tmp_path / "library")
    assert library.ranks_by_head == (head == "wti")
    for row, caption in enumerate(queries["captions"]):
        own = dict(zip(queries["video_ids"], tensors["similarity_off"][row].float().tolist(), strict=True))
        found = {one.path.stem: one.score for one in library.search(caption, k=len(own))}
        assert found == pytest.approx(own, abs=2e-3)
    if head == "wti":
        rows = np.concatenate([values for _, values in library.vectors()])
        cosines = library.encoder.encode_text(caption).numpy() @ rows.T
        assert sorted(found.values()) != pytest.approx(sorted(cosines[0]), abs=1e-2)


def test_its_rows_are_those_of_embed(run: Path, library: Library) -> None:
    encoder = emcl_train.load(run)
    assert encoder.label == "EMCL-Net"
    keys, rows = next(library.vectors())
    paths = [library.moment(key).path for key in keys]
    alone = encoder.encode_video(paths)
    assert np.allclose(rows, alone.numpy(), atol=1e-6)


def test_the_rows_of_a_run_are_compared_by_cosine(run: Path) -> None:
    encoder = emcl_train.load(run)
    clips = load_annotations(load_config(run).data).test.clips[:3]
    text, video = encoder.encode_text(["a red circle", "a blue square"]), encoder.encode_video(clips)
    assert encoder.config.model.head == load_config(run).model.head
    assert torch.allclose(video.norm(dim=-1), torch.ones(3))
    assert torch.allclose(encoder.similarity(text, video), text @ video.T)


def test_frames_are_those_that_training_sees(run: Path) -> None:
    encoder = emcl_train.load(run)
    config = load_config(run)
    clip = load_annotations(config.data).test.clips[0]
    frames, mask = decode_clip(clip, config.data)
    by_itself = encoder.encode_frames(frames.unsqueeze(0), mask.unsqueeze(0)).rows
    assert torch.equal(encoder.encode_video(clip), by_itself)


def test_a_run_of_other_weights_is_another_model(run: Path, library: Library) -> None:
    other = run.parent / "other"
    shutil.copytree(run, other)
    state = load_file(other / "model.safetensors")
    name = next(name for name in state if name.startswith("temporal.") and state[name].is_floating_point())
    from safetensors.torch import save_file

    state[name] = state[name] + 1e-3
    save_file(state, other / "model.safetensors")
    for name in ("checksums.json", "finished.json"):
        (other / name).unlink()
    assert emcl_train.load(other).fingerprint != library.about["model"]["fingerprint"]
