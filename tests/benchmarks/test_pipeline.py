"""The benchmark of what surrounds the model: the same frames by every decoder, parts that add up, pairs of a turn."""

import argparse
import importlib
import json
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from tiny_videos import write_video

from benchmarks.pipeline import __main__ as pipeline
from benchmarks.pipeline import clips, evaluation, steps, texts
from benchmarks.record import markdown


@pytest.fixture
def folder(tmp_path):
    write_video(tmp_path / "a.mp4", range(30), size=(96, 48), noise=True, options={"g": "10", "bf": "2"})
    write_video(tmp_path / "b.avi", range(9), size=(48, 64), noise=True)
    (tmp_path / "broken.mp4").write_bytes(b"no film")
    (tmp_path / "notes.txt").write_text("no film either")
    return tmp_path


class Decoder:
    """What torchcodec's decoder gives, by PyAV."""

    def __init__(self, path, dimension_order, num_ffmpeg_threads):
        assert (dimension_order, num_ffmpeg_threads) == ("NHWC", 1)
        with av.open(path) as container:
            self.frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]

    def get_frames_at(self, numbers):
        return SimpleNamespace(data=torch.from_numpy(np.stack([self.frames[number] for number in numbers])))


def test_other_decoders_give_the_frames_that_ours_gives(folder, monkeypatch):
    real = importlib.import_module

    def only_torchcodec(name):
        if name == "torchcodec.decoders":
            return SimpleNamespace(VideoDecoder=Decoder)
        if name in ("decord", "cv2"):
            raise ImportError(f"No module\nnamed {name}")
        return real(name)

    monkeypatch.setattr(importlib, "import_module", only_torchcodec)
    wanted, damaged = clips.wanted_of(folder, frames=4, size=32)
    assert damaged == ["broken.mp4"]
    assert [clip.numbers for clip in wanted] == [[3, 11, 18, 26], [1, 3, 5, 7]]
    assert [clip.scaled for clip in wanted] == [(32, 64), (42, 32)]

    ways, missing = clips.ways()
    assert list(ways) == ["ours", "torchcodec, scaled as ours"]
    assert missing == {"decord": "No module named decord", "OpenCV": "No module named cv2"}
    assert clips.difference(ways["torchcodec, scaled as ours"], wanted) == 0
    assert clips.difference(lambda clip: ways["ours"](clip)[::-1], wanted) > 1


def test_every_way_is_first_equally_often(capsys):
    order = []
    ways = {name: lambda name=name: order.append(name) or 1.0 for name in ("a", "b", "c")}
    assert pipeline.in_turns(ways, 3) == {name: [1.0] * 3 for name in ways}
    assert order[3::3] == ["a", "b", "c"]
    assert capsys.readouterr().out.startswith("turn 1 of 3: a 1.00 s, b 1.00 s, c 1.00 s\n")


def test_a_record_judges_pairs_and_says_what_is_missing():
    slow = [1.0, 1.2, 4.0]
    seconds = {"ours": [0.9 * s for s in slow], "decord, scaled as ours": slow, "decord, its own scaling": slow}
    rows = [pipeline.target("clips", seconds, "ours", name, "as ours" in name) for name in list(seconds)[1:]]
    assert [(row["measured"], row["verdict"]) for row in rows] == [
        ("0.900 [0.900, 0.900]", "met"),
        (rows[0]["measured"], ""),
    ]

    case = pipeline.case("2 clips", "uint8", seconds, {"ours": "1.85 clips a second"}, {"torchcodec": "no CUDA"})
    page = markdown(pipeline.record_of([case], rows), "name")
    assert "| clips, ours ÷ decord, scaled as ours | < 1 | 0.900 [0.900, 0.900] | met |" in page
    assert "| torchcodec |  |  |  | not measured: no CUDA |" in page
    assert "| ours | 1.08 s |" in page


def test_captions_are_tokenized_alike_together_and_alone(tmp_path):
    file = tmp_path / "captions.jsonl"
    rows = [{"clip_id": "a", "text": ["a dog runs", "The  dog's ball!"]}, {"caption": "two dogs"}]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    captions = texts.captions_of(file)
    assert captions == ["a dog runs", "The  dog's ball!", "two dogs"]

    ways = texts.ways(captions)
    [(together, _)] = ways["ours"]()
    alone = [ids for ids, _ in ways["one at a time"]()]
    assert together.shape == (3, texts.WORDS)
    assert torch.equal(together, torch.cat(alone))
    assert len(set(together[0].tolist())) > 3


def test_a_step_in_its_parts_has_the_gradient_of_a_whole_one():
    config = steps.configuration(3, width=64, layers=1, patch=16, size=32, frames=2)
    made = steps.Step(config, texts.byte_pairs(["a person does thing number 1"], 300))
    made.model.eval()  # without dropout
    made.optimizer = SimpleNamespace(step=lambda: None, zero_grad=lambda **_: None)

    clock = iter(range(99))
    assert made(lambda: next(clock)) == dict(zip(steps.PARTS, (2, 1, 1), strict=True))
    in_parts = {
        name: value.grad.clone() for name, value in made.model.towers.named_parameters() if value.grad is not None
    }

    made.model.zero_grad()
    features = made.model(made.batch)
    [similarity] = made.model.similarities(features.text, features.video, emcl=True)
    made.loss(similarity, features.logit_scale.detach()).backward()
    whole = {name: value.grad for name, value in made.model.towers.named_parameters() if value.grad is not None}
    assert in_parts.keys() == whole.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(in_parts[name], gradient, rtol=1e-3, atol=1e-6)


def test_both_evaluations_compare_alike():
    gallery = evaluation.Gallery("small", 70, 3)
    inputs = evaluation.features_of(gallery, width=16)
    similarity = evaluation.released(inputs)
    torch.testing.assert_close(similarity, evaluation.compared(inputs), rtol=0, atol=3e-4)
    assert torch.equal(evaluation.released(inputs, 1), similarity[:32])
    there, back = evaluation.released_ranks(similarity.numpy()), evaluation.released_ranks(similarity.numpy().T)
    assert (there, back) == evaluation.ranks(similarity)
    assert there > 1

    # Of a sample of one block of three the similarity takes as much longer as there are more texts.
    sampled = evaluation.Gallery("small", 70, 3, sampled=1)
    clock = iter([0.0, 1.0, 4.0, 10.0, 10.5, 12.0])
    found = evaluation.timed(sampled, inputs, lambda: next(clock))
    assert found == {"ours": 70 / 32 + 0.5, "eager": 3 * 70 / 32 + 1.5}


def test_all_parts_run_reduced(folder, tmp_path, monkeypatch, capsys):
    arguments = ["pipeline", str(folder), "--turns", "2", "--frames", "2", "--size", "32", "--pairs", "2", "--reduced"]
    monkeypatch.setattr("sys.argv", arguments)
    assert pipeline.main() == 0
    printed = capsys.readouterr().out
    assert "evaluation of 1k-A, 70 × 70: ours" in printed
    assert "wrote" not in printed
    monkeypatch.setattr("sys.argv", ["pipeline", str(tmp_path / "none")])
    with pytest.raises(SystemExit):
        pipeline.main()


def test_a_step_is_shown_by_its_shares():
    options = argparse.Namespace(pairs=2, frames=1, size=32, turns=2, reduced=True)
    [case], targets = pipeline.measure_step(options)
    assert targets == []
    shares = [float(way["note"].split(" %")[0]) for way in case["ways"].values()]
    assert sum(shares) == pytest.approx(100, abs=10)
