"""From a model to rows of metrics, and from a run folder to its results."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_evaluation import CLIPS, FRAMES, TinyTokenizer, tiny_config, tiny_data, tiny_model, tiny_split

from emcl_train import cli
from emcl_train.config import EvalConfig, PlaceConfig, RunConfig, inference_emcl
from emcl_train.data.annotations import Annotations
from emcl_train.data.provenance import provenance
from emcl_train.data.video import VIDEO_SAMPLER_VERSION
from emcl_train.errors import UserError
from emcl_train.evaluation import run as evaluation
from emcl_train.evaluation.encode import embed_split
from emcl_train.evaluation.metrics import text_to_video
from emcl_train.evaluation.rerank import qb_norm
from emcl_train.evaluation.run import evaluate, evaluate_run
from emcl_train.evaluation.similarities import bank_of, compare_bank, similarities
from emcl_train.evaluation.table import Similarities, lines_of
from emcl_train.report.compare import compare
from emcl_train.report.groups import Group
from emcl_train.runs import asked
from emcl_train.runs.checksums import is_unchanged
from emcl_train.runs.contents import save_config
from emcl_train.runs.evaluations import set_aside, what_differs
from emcl_train.runs.files import append_line, write_json_atomic
from emcl_train.runs.finished import ENDS_WITH, mark_finished
from emcl_train.runs.folder import load_run
from emcl_train.runs.state import save_tensors_atomic
from emcl_train.terminal import with_progress

__all__ = ["tiny_data"]  # a fixture

EYE = 0.5 * torch.eye(CLIPS) + 0.1
SHIFTED = 0.5 * torch.eye(CLIPS).roll(1, dims=1) + 0.1


def save_run(path, config: RunConfig, **environment: object) -> None:
    path.mkdir()
    save_config(path, config)
    save_tensors_atomic(path / "model.safetensors", tiny_model(config).state_dict())
    write_json_atomic(path / "environment.json", provenance(config.data) | environment)
    for epoch, recall in ((1, 20.0), (2, 40.0), (3, 40.0)):
        other = {"R@5": 60.0, "R@10": 80.0, "MdR": 3.0, "MnR": 4.0}
        record = {"epoch": epoch, "text_to_video": {"R@1": recall} | other, "video_to_text": {"R@1": 0.0} | other}
        append_line(path / "metrics.jsonl", {"kind": "validation", **record})
    mark_finished(path, epochs=3, steps=30)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_embeddings_do_not_depend_on_the_batch_size(tiny_data, batch_size):
    config = tiny_config()
    model = tiny_model(config).train()
    config.eval.batch_size = 7
    whole = embed_split(model, tiny_data, TinyTokenizer(), config)
    config.eval.batch_size = batch_size
    parts = embed_split(model, tiny_data, TinyTokenizer(), config)
    assert model.training
    assert parts.video.frames.shape == (CLIPS, FRAMES, 16)
    assert parts.video.frame_mask.sum() == CLIPS * FRAMES - 2
    torch.testing.assert_close(parts.tensors(), whole.tensors())
    assert not parts.text.caption.requires_grad


def test_evaluation_does_not_move_the_maintained_bases(tiny_data):
    config = tiny_config()
    model = tiny_model(config).train()
    before = model.emcl.bases.clone()
    evaluate(model, embed_split(model, tiny_data, TinyTokenizer(), config), config)
    assert torch.equal(model.emcl.bases, before)
    assert model.training


@pytest.mark.parametrize(
    ("mode", "names"),
    [
        ("train", ["EMCL-Net", "EMCL off (same weights)", "EMCL-Net + inverted softmax"]),
        (
            "inference",
            ["EMCL at inference only", "EMCL off (same weights)", "EMCL at inference only + inverted softmax"],
        ),
        ("off", ["Trained without EMCL", "Trained without EMCL + inverted softmax"]),
    ],
)
def test_rows_are_named_for_what_ran(tiny_data, mode, names):
    config = tiny_config(mode=mode)
    model = tiny_model(config)
    rows = evaluate(model, embed_split(model, tiny_data, TinyTokenizer(), config), config)
    assert [row.name for row in rows] == names


def test_each_row_is_measured_on_its_own_similarity():
    rows = lines_of(Similarities(EYE, SHIFTED), torch.arange(CLIPS), tiny_config())
    assert [row.text_to_video["R@1"] for row in rows] == [100.0, 0.0, 100.0]
    assert [row.video_to_text["R@1"] for row in rows] == [100.0, 0.0, 100.0]
    assert "all test queries" in rows[2].note


def test_the_inverted_softmax_stands_beside_the_raw_row_and_does_not_change_it():
    hub = torch.full((3, 3), 0.1) + 0.4 * torch.eye(3)
    hub[:, 2] += 0.5  # clip 2 is near to every caption
    rows = lines_of(Similarities(hub, hub), torch.arange(3), tiny_config())
    assert rows[0].text_to_video["R@1"] == pytest.approx(100 / 3)
    assert rows[2].text_to_video["R@1"] == 100.0


def test_the_second_definition_of_video_to_text_is_given_only_where_it_differs():
    one = lines_of(Similarities(EYE, EYE), torch.arange(CLIPS), tiny_config())
    owner = torch.arange(CLIPS).repeat_interleave(2)
    several = lines_of(Similarities(EYE[owner], EYE[owner]), owner, tiny_config())
    assert {row.video_to_text_by_rank is None for row in one} == {True}
    assert {row.video_to_text_by_rank["R@1"] for row in several} == {100.0}


def test_emcl_on_and_off_differ_and_blocks_change_only_emcl(tiny_data):
    config = tiny_config(temperature=0.1)
    model = tiny_model(config)
    with torch.no_grad():
        model.emcl.bases.copy_(torch.linspace(-1.0, 1.0, 4))
    embeddings = embed_split(model, tiny_data, TinyTokenizer(), config)
    whole = similarities(model, embeddings, config)
    config.eval.em_block = 3
    blocks = similarities(model, embeddings, config)
    assert whole.emcl_on is not None
    assert not torch.allclose(whole.emcl_on, whole.emcl_off, atol=1e-4)
    assert not torch.allclose(whole.emcl_on, blocks.emcl_on, atol=1e-5)
    assert torch.equal(whole.emcl_off, blocks.emcl_off)


@pytest.mark.parametrize("em_block", [None, 3])
def test_steps_of_the_similarity_are_shown(tiny_data, monkeypatch, capsys, em_block):
    config = tiny_config()
    config.eval.em_block = em_block
    model = tiny_model(config)
    embeddings = embed_split(model, tiny_data, TinyTokenizer(), config)
    shown = {}

    def record(steps, description):
        shown[description] = len(steps)
        return with_progress(steps, description)

    monkeypatch.setattr("emcl_train.evaluation.similarities.with_progress", record)
    monkeypatch.setattr("emcl_kernels.stream.CHUNK_WEIGHTS", 3 * CLIPS * FRAMES)
    monkeypatch.setattr("emcl_kernels.stream.CHUNK_BLOCKS", 1)
    scores = similarities(model, embeddings, config)
    assert shown == {"Similarity with EMCL": 3 if em_block else 3 + 3, "Similarity without EMCL": 3}
    assert scores.emcl_on is not None
    assert bool(torch.isfinite(scores.emcl_on).all() and torch.isfinite(scores.emcl_off).all())
    assert capsys.readouterr().out == ""


def test_evaluating_a_run_writes_what_the_report_needs(tiny_data, tmp_path):
    config = tiny_config()
    save_run(tmp_path / "run", config)
    results, folder = evaluate_run(tmp_path / "run")
    assert folder == tmp_path / "run"
    assert json.loads((tmp_path / "run/results.json").read_text()) == results
    assert (results["split"], results["queries"], results["gallery"], results["em_block"]) == ("test", 7, 7, None)
    assert results["selection"] == "validation text→video R@1: epoch 2"
    assert results["notes"] == ["a note"]
    queries = json.loads((tmp_path / "run/queries.json").read_text())
    assert queries == {"video_ids": [f"video{i}" for i in range(7)], "captions": list(tiny_split().captions)}
    tensors = load_file(tmp_path / "run/embeddings.safetensors")
    assert sorted(tensors) == [
        "bases", "caption_clip", "frame_mask", "frames", "similarity_off", "similarity_on", "text",
    ]  # fmt: skip
    assert tensors["similarity_on"].shape == (7, 7)


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_results_of_other_settings_lie_beside_the_runs_own(tiny_data, tmp_path):
    run = tmp_path / "run"
    save_run(run, tiny_config(residual_weight=500.0))
    evaluate_run(run)
    own, block, paper = files_in(run), EvalConfig(em_block=3), inference_emcl()
    folders = [
        evaluate_run(run, block)[1],
        evaluate_run(run, EvalConfig(em_block=99))[1],  # with the same figures
        evaluate_run(run, replace(block, batch_size=2), split="val")[1],
        evaluate_run(run, emcl=replace(paper, num_iters=3))[1],
        evaluate_run(run, block, out=tmp_path / "chosen")[1],
    ]
    names = ("em-block-3", "em-block-99", "em-block-3_split-val", "emcl.mode-inference_emcl.num-iters-3")
    assert folders == [*(run / "evaluations" / name for name in names), tmp_path / "chosen"]
    assert files_in(run) == own
    assert evaluate_run(run, EvalConfig(batch_size=2))[1] == run  # which changes no figure
    assert (run / "results.json").read_bytes() == own["results.json"]
    run.rename(tmp_path / "moved")
    evaluated = load_run(tmp_path / "moved/evaluations/em-block-3")
    assert (evaluated.results["em_block"], evaluated.config.eval.em_block) == (3, 3)
    assert evaluated.results == load_run(tmp_path / "chosen").results
    assert compare(Group(run, (load_run(tmp_path / "moved"),)), Group(run, (evaluated,))).differences


def test_a_link_in_the_place_of_a_folder_of_results_is_not_followed(tiny_data, tmp_path):
    run = tmp_path / "run"
    save_run(run, tiny_config())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("mine")
    (run / "evaluations").mkdir()
    (run / "evaluations" / "em-block-3").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match=r"em-block-3 is a link to .*mine; what belongs to a run is written inside"):
        evaluate_run(run, EvalConfig(em_block=3))
    assert files_in(tmp_path / "mine") == {"config.json": b"mine"}


def test_figures_that_come_out_otherwise_do_not_replace_those_that_are_there(tiny_data, tmp_path, capsys):
    run = tmp_path / "run"
    save_run(run, tiny_config())
    results = evaluate_run(run)[0]
    quoted = results | {"rows": [results["rows"][0] | {"text_to_video": {"R@1": 99.0}}]}
    write_json_atomic(run / "results.json", quoted)
    assert "warning" not in capsys.readouterr().err
    again = [evaluate_run(run)[1] for _ in range(2)]
    assert again == [run / "evaluations/again"] * 2
    err = " ".join(capsys.readouterr().err.split())
    assert f"the figures are not those in {run / 'results.json'}, which stays as it is; these are in {again[0]}" in err
    write_json_atomic(again[0] / "results.json", quoted)
    assert evaluate_run(run)[1] == run / "evaluations/again-2"
    assert [json.loads((folder / "results.json").read_text()) for folder in (run, again[0])] == [quoted, quoted]
    (run / "results.json").write_text('{"rows"')
    assert evaluate_run(run)[1] == run


def test_the_end_of_training_takes_the_runs_folder_and_loses_nothing(tiny_data, tmp_path):
    run = tmp_path / "run"
    save_run(run, tiny_config())
    results = evaluate_run(run)[0]
    for place, recall in (("before-the-last-epoch", 1.0), ("before-the-last-epoch-2", 2.0)):
        early = results | {"rows": [results["rows"][0] | {"text_to_video": {"R@1": recall}}]}
        write_json_atomic(run / "results.json", early)
        assert evaluate_run(run, ends_training=True)[1] == run
        now = json.loads((run / "results.json").read_text())["rows"]
        assert now == json.loads(json.dumps(results["rows"]))
        assert json.loads((run / "evaluations" / place / "results.json").read_text())["rows"] != now
        assert cli.main(["verify", str(run)]) == 0
        assert is_unchanged(run / "evaluations" / place / "embeddings.safetensors")
    assert evaluate_run(run, ends_training=True)[1] == run
    assert len(list((run / "evaluations").iterdir())) == 2


def test_figures_that_move_aside_take_their_checksum_along(tiny_data, tmp_path, capsys):
    run = tmp_path / "run"
    save_run(run, tiny_config())
    evaluate_run(run)
    data = bytearray((run / "embeddings.safetensors").read_bytes())
    data[-1] ^= 1
    (run / "embeddings.safetensors").write_bytes(data)
    folder = set_aside(run)
    assert is_unchanged(run / "embeddings.safetensors") is None
    assert is_unchanged(folder / "embeddings.safetensors") is False  # a copy is not right by being a copy
    capsys.readouterr()
    assert cli.main(["verify", str(run)]) == 1
    assert "missing" not in capsys.readouterr().out


def test_an_evaluation_beside_the_training_names_the_weights_it_has_measured(tiny_data, tmp_path):
    """A validation is logged before the weights of its epoch are written."""
    run = tmp_path / "run"
    config = tiny_config()
    save_run(run, config)
    (run / "finished.json").unlink()
    write_json_atomic(run / "environment.json", {ENDS_WITH: "finished.json"})
    save_tensors_atomic(run / "model.safetensors", tiny_model(config).state_dict(), epoch=1)
    results, _ = evaluate_run(run, out=tmp_path / "out")
    assert results["selection"].endswith("epoch 1")
    assert "those of epoch 1 of" in results["notes"][-1]


def test_weights_that_are_replaced_while_a_run_is_read_are_read_again(tiny_data, tmp_path, monkeypatch):
    run = tmp_path / "run"
    config = tiny_config()
    save_run(run, config)
    (run / "finished.json").unlink()
    write_json_atomic(run / "environment.json", {ENDS_WITH: "finished.json"})
    read, other = asked.read_weights, {name: value + 1 for name, value in tiny_model(config).state_dict().items()}

    def then_replace(run_dir):
        weights = read(run_dir)
        monkeypatch.setattr(asked, "read_weights", read)
        save_tensors_atomic(run / "model.safetensors", other, epoch=2)
        return weights

    monkeypatch.setattr(asked, "read_weights", then_replace)
    found = asked.selected_weights(run, ends_training=False)
    assert torch.equal(found.weights["emcl.bases"], other["emcl.bases"])
    assert found.selection.endswith("epoch 2")


def test_a_place_that_another_process_took_meanwhile_is_not_written_over(tiny_data, tmp_path, monkeypatch):
    save_run(tmp_path / "run", tiny_config())
    split, out = evaluation.evaluate_split, tmp_path / "out"

    def slow(*args, **settings):
        out.mkdir()
        (out / "results.json").write_text("theirs")
        return split(*args, **settings)

    monkeypatch.setattr(evaluation, "evaluate_split", slow)
    with pytest.raises(UserError, match="exists already and is not overwritten"):
        evaluate_run(tmp_path / "run", out=out)
    assert (out / "results.json").read_text() == "theirs"


def test_a_data_set_that_was_moved_is_named_at_the_evaluation(tiny_data, tmp_path, monkeypatch):
    save_run(tmp_path / "run", tiny_config())
    asked = []
    monkeypatch.setattr(
        evaluation, "prepare", lambda config, **_: asked.append(config) or Annotations(*[tiny_data] * 3)
    )
    place = replace(PlaceConfig.of(tiny_config().data), root=tmp_path / "moved", workers=0)
    assert evaluate_run(tmp_path / "run", place=place)[1] == tmp_path / "run"
    assert asked[0].data == replace(tiny_config().data, root=tmp_path / "moved", workers=0)


def test_a_folder_that_is_there_takes_no_results(tiny_data, tmp_path):
    save_run(tmp_path / "run", tiny_config())
    with pytest.raises(UserError, match=r"run exists already and is not overwritten; choose another --out"):
        evaluate_run(tmp_path / "run", out=tmp_path / "run")


def test_the_name_of_a_folder_is_never_too_long_for_the_disk():
    run, asked = tiny_config(), tiny_config(mode="off", num_iters=1, temperature=1 / 3, residual_weight=1 / 7)
    asked.emcl.momentum, asked.eval = 1 / 9, EvalConfig(4, 5, 1 / 3, 6, 1 / 7)
    names = [what_differs(run, asked, split) for split in ("test", "val")]
    assert names[0] != names[1]
    assert all(len(name) < 140 for name in names)


def test_evaluating_a_run_twice_gives_the_same_bytes(tiny_data, tmp_path):
    save_run(tmp_path / "run", tiny_config())
    files = ("results.json", "queries.json", "embeddings.safetensors")
    evaluate_run(tmp_path / "run")
    first = [(tmp_path / "run" / file).read_bytes() for file in files]
    torch.manual_seed(99)
    evaluate_run(tmp_path / "run")
    assert [(tmp_path / "run" / file).read_bytes() for file in files] == first


@pytest.mark.parametrize(
    ("then", "warning"),
    [
        ({}, ""),
        ({"sampler": "another"}, f"video sampler version was another, now {VIDEO_SAMPLER_VERSION};"),
        ({"decoder": "PyAV 1, libavcodec 2"}, "decoder was PyAV 1, libavcodec 2, now PyAV "),
        (
            {"sampling": {"frame_sampling": "1fps"}},
            "sampling was frame_sampling 1fps, now frame_sampling uniform, num_f",
        ),
        ({"compression": {"fps": 3.0}}, "compression was fps 3.0, now None;"),
    ],
)
def test_frames_that_come_out_otherwise_are_warned_of(tiny_data, tmp_path, capsys, then, warning):
    save_run(tmp_path / "run", tiny_config(), **then)
    evaluate_run(tmp_path / "run")
    err = " ".join(capsys.readouterr().err.split())
    assert ("was trained on other frames" in err) == bool(warning)
    assert warning in err


@pytest.mark.parametrize("recorded", [{}, {"sampler": 0}])
def test_a_run_that_recorded_no_decoder_yet_is_warned_of_its_sampler_alone(tiny_data, tmp_path, capsys, recorded):
    save_run(tmp_path / "run", tiny_config())
    write_json_atomic(tmp_path / "run" / "environment.json", recorded)
    evaluate_run(tmp_path / "run")
    assert capsys.readouterr().err.count("warning:") == 1


def test_results_say_what_their_frames_depend_on(tiny_data, tmp_path):
    save_run(tmp_path / "run", tiny_config())
    results = evaluate_run(tmp_path / "run")[0]
    assert results | provenance(tiny_config().data) == results
    assert results["protocol"] == {"layout": "msrvtt", "msrvtt_split": "9k", "test_captions": "one"}
    assert results["sampling"] == {"frame_sampling": "uniform", "num_frames": 3, "image_size": 16}


def test_qb_norm_stands_beside_the_raw_row_and_takes_its_bank_from_training_clips(tiny_data, tmp_path):
    config = tiny_config()
    save_run(tmp_path / "run", config)
    results = evaluate_run(tmp_path / "run", EvalConfig(query_bank=5))[0]
    *others, row = results["rows"]
    assert row["name"] == "EMCL-Net + QB-Norm"
    assert "bank of 5 training captions" in row["note"]

    # The tiny data give the same features whatever the split, so the bank's are known.
    model = tiny_model(config).eval()
    whole = embed_split(model, tiny_data, TinyTokenizer(), config)
    chosen = embed_split(model, bank_of(tiny_data, 5), TinyTokenizer(), config)
    bank = compare_bank(model, whole, chosen, config)
    main = similarities(model, whole, config).main
    assert row["text_to_video"] == text_to_video(
        qb_norm(main, bank.text_to_video, temperature=0.05), whole.caption_clip
    )
    by_clip = qb_norm(main.T, bank.video_to_text.T, temperature=0.05)
    assert row["video_to_text"] == text_to_video(by_clip, torch.arange(CLIPS))

    without = evaluate_run(tmp_path / "run", EvalConfig(query_bank=0))[0]["rows"]
    assert without == others


def test_a_bank_is_spread_over_the_training_clips():
    split = tiny_split(captions_per_clip=2)
    bank = bank_of(split, 3)
    assert [clip.video_id for clip in bank.clips] == ["video0", "video2", "video4"]
    assert bank.captions == ("caption 0", "caption 4", "caption 8")
    assert bank.caption_clip == (0, 1, 2)
    assert len(bank_of(split, 1000).clips) == CLIPS


@pytest.mark.parametrize("head", ["text-conditioned", "mean", "wti"])
def test_emcl_at_inference_on_weights_without_it(tiny_data, tmp_path, head):
    """Seven bases where the run has four: a fresh start, the same each time, and said; without EMCL nothing changes."""
    config = tiny_config(mode="off")
    config.model.head = head
    save_run(tmp_path / "run", config)
    off = evaluate_run(tmp_path / "run")[0]
    tensors = load_file(tmp_path / "run/embeddings.safetensors")
    assert ("tokens" in tensors) == (head == "wti")
    asked, found = replace(inference_emcl(), init="normal"), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results, folder = evaluate_run(tmp_path / "run", EvalConfig(em_block=3), emcl=asked)
        found.append(results)
    assert found[0] == found[1]
    assert found[0]["emcl"]["num_bases"] == 7
    assert found[0]["notes"] == ["a note", "EM starts from 7 fresh bases (normal, seed 0), not from those of the run."]
    assert found[0]["rows"][1]["text_to_video"] == off["rows"][0]["text_to_video"]
    names = {"text-conditioned": "EMCL at", "mean": "CLIP4Clip meanP, EMCL at", "wti": "WTI, EMCL at"}
    assert found[0]["rows"][0]["name"] == f"{names[head]} inference only"
    on = load_file(folder / "embeddings.safetensors")
    assert on["bases"].shape == (7,)
    assert (on["similarity_on"] - on["similarity_off"]).abs().max() > 1e-3
    torch.testing.assert_close(on["similarity_off"], tensors["similarity_off"])
