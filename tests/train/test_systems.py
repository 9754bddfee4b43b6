"""CE, MMT and JSFusion from their files to the table, from the CLI: examined, trained, resumed, evaluated, reported."""

import json
from dataclasses import replace
from pathlib import Path

import expert_files
import pytest
import torch
from fake_run import make_run
from safetensors.torch import load_file
from stopped_training import stopped_after

from emcl_train import cli
from emcl_train.config import check_config
from emcl_train.errors import UserError
from emcl_train.recipes import OF_CLIP, RECIPES, load_recipe
from emcl_train.report import html, write_report
from emcl_train.report.notes import differences
from emcl_train.report.settings import matters
from emcl_train.runs.contents import save_config
from emcl_train.runs.folder import load_run
from emcl_train.runs.records import MEASURED
from emcl_train.tools.sides import read_sides
from emcl_train.training import trainer
from emcl_train.training.divergence import Watch

pytest.importorskip("h5py")
pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = [
    "--experts.widths", "files", "--experts.width", "8", "--data.workers", "0", "--train.tracker", "none",
    "--train.batch-size", "8", "--eval.batch-size", "4", "--train.max-steps", "20", "--train.save-every", "7",
]  # fmt: skip
OF_SYSTEM = {
    "ce": ["--experts.max-steps", "4"],
    "mmt": ["--experts.text", "random", "--experts.hidden", "16", "--experts.layers", "1", "--experts.heads", "2",
            "--experts.max-steps", "4", "--train.lr", "1e-2", "--train.margin", "0.5", "--experts.dropout", "0"],
    "jsfusion": ["--experts.max-steps", "8", "--data.max-words", "8", "--train.lr", "3e-3"],
}  # fmt: skip
"""As small as they get; at a rate at which twenty steps show."""

VIDEOS = 32
"""Of each data set, 8 of them to test on: some steps an epoch, since each epoch costs a validation."""
WRITERS = {
    "ce-msrvtt": lambda root: expert_files.write_ce(root, "msrvtt", videos=VIDEOS),
    "ce-msrvtt-full": lambda root: expert_files.write_ce(root, "msrvtt", videos=VIDEOS),
    "ce-activitynet": lambda root: expert_files.write_ce(root, "activitynet", videos=VIDEOS),
    "ce-lsmdc": lambda root: expert_files.write_ce(root, "lsmdc", videos=VIDEOS),
    "mmt-msrvtt": lambda root: expert_files.write_mmt(root, "msrvtt", videos=VIDEOS),
    "mmt-activitynet": lambda root: expert_files.write_mmt(root, "activitynet", videos=VIDEOS),
    "mmt-lsmdc": lambda root: expert_files.write_mmt(root, "lsmdc", videos=VIDEOS),
    "mmt-own": lambda root: expert_files.write_own(root, videos=VIDEOS),
    "jsfusion-msrvtt": lambda root: expert_files.write_jsfusion(root, "msrvtt", videos=VIDEOS),
    "jsfusion-lsmdc": lambda root: expert_files.write_jsfusion(root, "lsmdc", videos=VIDEOS),
}
"""A tiny data set in the real files, for each recipe."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of data sets, each written when it is asked for first."""
    return tmp_path_factory.mktemp("experts")


@pytest.fixture
def data(folder):
    def of(recipe: str) -> Path:
        root = folder / recipe
        if not root.exists():
            WRITERS[recipe](root)
        return root

    return of


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """Its plots take longer than everything else; one test writes it."""
    import emcl_train.report

    monkeypatch.setattr(trainer, "write_report", lambda run: run / "report.html")
    monkeypatch.setattr(emcl_train.report, "write_report", lambda run: run / "report.html")


def options(recipe: str, *more: str) -> list[str]:
    return [*SMALL, *OF_SYSTEM[recipe.partition("-")[0]], *more]


def train(recipe: str, root: Path, out: Path, *more: str) -> int:
    return cli.main(["train", recipe, "--data.root", str(root), "--out", str(out), *options(recipe, *more)])


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def fell(values: list[float]) -> bool:
    return len(values) == 20 and sum(values[-5:]) < sum(values[:5])


def test_every_recipe_of_experts_has_a_data_set_here():
    assert set(WRITERS) == set(RECIPES) - set(OF_CLIP)
    assert {load_recipe(name).emcl.mode for name in WRITERS} == {"off"}


@pytest.mark.parametrize("recipe", WRITERS)
def test_a_recipe_runs_from_the_files_to_the_table(recipe, data, tmp_path, capsys):
    root = data(recipe)
    # All but one's own have widths that are small, and not the authors'.
    assert cli.main(["data", "doctor", recipe, str(root)]) == (0 if recipe == "mmt-own" else 1)
    said = "".join(capsys.readouterr())
    assert ("can be used" if recipe == "mmt-own" else "--experts.widths files") in said

    assert train(recipe, root, tmp_path / "run") == 0
    assert fell(losses(tmp_path / "run"))
    trained = json.loads((tmp_path / "run/results.json").read_text())
    capsys.readouterr()
    assert cli.main(["eval", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run/results.json").read_text()) == trained
    label = {"ce": "CE", "mmt": "MMT", "jsfusion": "JSFusion"}[recipe.partition("-")[0]]
    assert trained["rows"][0]["name"] == label
    captions = 159 if recipe == "ce-msrvtt-full" else 8  # one of the clips has 19
    assert (trained["gallery"], trained["queries"]) == (8, captions)
    assert all(0 <= row[side]["R@1"] <= 100 for row in trained["rows"] for side in ("text_to_video", "video_to_text"))


@pytest.mark.parametrize("recipe", ["ce-msrvtt", "mmt-msrvtt", "mmt-own"])
@pytest.mark.parametrize("mode", ["train", "inference"])
def test_emcl_acts_where_it_is_asked_for(recipe, mode, data, tmp_path):
    more = ["--emcl.mode", mode, "--emcl.num-bases", "4", "--train.max-steps", "3"]
    assert (
        train(recipe, data(recipe), tmp_path / "run", *more, *(["--train.top-k", "2"] if mode == "train" else [])) == 0
    )
    results = json.loads((tmp_path / "run/results.json").read_text())
    names = [row["name"] for row in results["rows"]]
    label = "CE" if recipe.startswith("ce") else "MMT"
    assert names[:2] == [f"{label} + EMCL" if mode == "train" else f"{label}, EMCL at inference only", OFF]
    config = json.loads((tmp_path / "run/config.json").read_text())
    as_released = label == "MMT" and mode == "train"
    assert config["train"]["loss"] == ("top-k-margin" if as_released else "max-margin")
    assert config["experts"]["gated_video"] == as_released
    of_batch = 16  # of captions and videos
    assert (results["em_block"], results["em_rows"]) == ((32, None) if as_released else (None, of_batch))

    # In training the start moves; in an evaluation it stays.
    tensors = load_file(tmp_path / "run/embeddings.safetensors")
    weights = load_file(tmp_path / "run/model.safetensors")
    assert torch.equal(tensors["bases_of_experts"], weights["emcl.bases"])
    assert not torch.equal(tensors["similarity_on"], tensors["similarity_off"])
    assert torch.isfinite(tensors["similarity_on"]).all()


OFF = "EMCL off (same weights)"


@pytest.mark.parametrize(
    ("recipe", "more"),
    [
        ("ce-msrvtt", []),
        ("mmt-msrvtt", ["--emcl.mode", "train", "--emcl.num-bases", "4", "--experts.max-steps", "3"]),
        ("jsfusion-lsmdc", []),
    ],
)
def test_a_run_that_ended_in_between_goes_on_to_the_bit(recipe, more, data, tmp_path):
    def record(out):
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            for name in MEASURED:
                line.pop(name, None)
        return lines

    more = [*more, "--train.max-steps", "8", "--train.save-every", "4"]
    assert train(recipe, data(recipe), tmp_path / "whole", *more) == 0

    with stopped_after(5):
        train(recipe, data(recipe), tmp_path / "again", *more)
    assert cli.main(["resume", str(tmp_path / "again")]) == 0

    assert record(tmp_path / "again") == record(tmp_path / "whole")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "again"))
    assert all(torch.equal(second[name], value) for name, value in first.items())


def test_a_report_is_written_and_shows_what_the_run_is(data, tmp_path):
    assert train("ce-msrvtt", data("ce-msrvtt"), tmp_path / "run", "--train.max-steps", "2") == 0
    write_report(tmp_path / "run")
    page = (tmp_path / "run/report.html").read_text()
    assert "CE: collaborative experts" in page
    assert "knows no videos" in page
    assert "openai/clip-vit-base-patch32" not in page


def authors_checkpoint(recipe: str, run: Path, path: Path) -> None:
    """A run's weights under the authors' names, as their programs save them."""
    from emcl_train.weights.ce import ce_to_authors
    from emcl_train.weights.mmt import mmt_to_authors

    state = {
        name.removeprefix("system."): value
        for name, value in load_file(run / "model.safetensors").items()
        if name.startswith("system.")
    }
    named = ce_to_authors(state, sorted(expert_files.CE_WIDTHS)) if recipe.startswith("ce") else mmt_to_authors(state)
    torch.save({"arch": "CENet", "epoch": 3, "state_dict": dict(named)}, path)


@pytest.mark.parametrize("recipe", ["ce-msrvtt", "mmt-msrvtt"])
def test_a_checkpoint_with_the_authors_names_is_what_a_run_starts_from(recipe, data, tmp_path):
    assert train(recipe, data(recipe), tmp_path / "first", "--train.max-steps", "2") == 0
    authors_checkpoint(recipe, tmp_path / "first", tmp_path / "trained_model.pth")
    expected = load_file(tmp_path / "first/model.safetensors")
    figures = json.loads((tmp_path / "first/results.json").read_text())["rows"]

    # Without a step of training, the figures are those of the checkpoint.
    for name, start in (("theirs", "trained_model.pth"), ("ours", "first")):
        more = ["--model.init-from", str(tmp_path / start), "--train.max-steps", "0"]
        assert train(recipe, data(recipe), tmp_path / name, *more) == 0
        begun = load_file(tmp_path / name / "model.safetensors")
        assert all(torch.equal(begun[key], value) for key, value in expected.items() if key.startswith("system."))
        assert json.loads((tmp_path / name / "results.json").read_text())["rows"] == figures


@pytest.mark.parametrize(
    ("recipe", "arguments", "said"),
    [
        (
            "jsfusion-lsmdc",
            ["--emcl.mode", "train"],
            "JSFusion has one score for a pair, and no rows",
        ),
        ("ce-msrvtt", ["--train.chunks", "2"], "train.chunks is 2, and for CE it can be 1 alone"),
        ("ce-msrvtt", ["--train.batch-size", "1"], "train.batch_size is 1"),
        ("ce-msrvtt", ["--train.loss", "sigmoid"], "train.loss is sigmoid, and CE has no bias"),
        ("mmt-msrvtt", ["--train.loss", "sigmoid"], "train.loss is sigmoid, and MMT has no bias"),
        ("jsfusion-lsmdc", ["--train.loss", "sigmoid"], "train.loss is sigmoid, and JSFusion has no bias"),
        ("mmt-msrvtt", ["--from-features", "x"], "from_features is x, and for MMT it can be None alone"),
        ("mmt-msrvtt", ["--emcl.mode", "train", "--emcl.init", "sign"], "for MMT it can be normal alone"),
        (
            "mmt-msrvtt",
            ["--emcl.mode", "train", "--eval.query-bank", "9"],
            "cannot compare a bank of training captions",
        ),
        ("mmt-msrvtt", ["--experts.heads", "3"], "8 wide, which 3 heads do not divide"),
        ("mmt-msrvtt", ["--experts.names", "rgb", "smell"], "experts.names has smell"),
        ("mmt-msrvtt", ["--data.msrvtt-split", "7k"], "have lists of 9k, 1k-B, full alone"),
        ("mmt-msrvtt", ["--experts.text", "./bert"], "experts.text is ./bert, which is neither a file nor a folder"),
        ("ce-msrvtt", ["--experts.widths", "published"], "features are of other widths than the authors'"),
        ("ce-msrvtt", ["--experts.sizes", "own"], "experts.sizes is own"),
        ("jsfusion-lsmdc", ["--experts.max-steps", "6"], "experts.max_steps is 6"),
    ],
)
def test_what_a_system_cannot_do_is_one_clear_error(recipe, arguments, said, data, tmp_path, capsys):
    assert train(recipe, data(recipe), tmp_path / "run", *arguments) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert said in error


@pytest.mark.parametrize("recipe", ["ce-msrvtt", "mmt-msrvtt", "jsfusion-lsmdc"])
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("wrong-width", "wide, expected"),
        ("nan-inside", "NaN or infinite"),
        ("no-features", "has no features"),
        ("missing-list", "train"),
    ],
)
def test_a_fault_of_the_files_is_one_clear_error(recipe, fault, said, tmp_path, capsys):
    system, _, dataset = recipe.partition("-")
    write = {"ce": expert_files.write_ce, "mmt": expert_files.write_mmt, "jsfusion": expert_files.write_jsfusion}[
        system
    ]
    write(tmp_path / "set", dataset, faults={fault})
    assert train(recipe, tmp_path / "set", tmp_path / "run", "--train.max-steps", "3") == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert said in error


def test_clips_without_features_can_be_left_out_and_are_counted(tmp_path, capsys):
    made = expert_files.write_mmt(tmp_path / "set", "msrvtt", faults={"no-features", "no-caption"})
    more = ["--data.on-bad-video", "skip", "--train.max-steps", "2"]
    assert train("mmt-msrvtt", tmp_path / "set", tmp_path / "run", *more) == 0
    left_out = json.loads((tmp_path / "run/results.json").read_text())["left_out"]
    assert left_out == {made.faulty["no-features"]: "no features", made.faulty["no-caption"]: "no caption"}


@pytest.mark.parametrize("command", [["embed", "RUN", "--out", "OUT"], ["export", "RUN", "OUT", "--layout", "emcl"]])
def test_commands_for_towers_say_that_there_are_none(command, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    save_config(tmp_path / "run", load_recipe("mmt-msrvtt"))
    named = {"RUN": str(tmp_path / "run"), "OUT": str(tmp_path / "out")}
    assert cli.main([named.get(word, word) for word in command]) == 1
    assert f"`{command[0]}` is for CLIP's towers, and mmt-msrvtt is MMT" in capsys.readouterr().err


@pytest.mark.parametrize("of", ["recipe", "run"])
def test_embeddings_are_not_what_answers_are_made_of(of, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    save_config(tmp_path / "run", load_recipe("msrvtt-qa"))
    assert (
        cli.main(["embed", "msrvtt-qa" if of == "recipe" else str(tmp_path / "run"), "--out", str(tmp_path / "out")])
        == 1
    )
    assert "`embed` is for retrieval, and msrvtt-qa answers questions" in capsys.readouterr().err


def test_a_run_on_experts_has_no_rows_to_refine(tmp_path):
    of_system(tmp_path / "run", "mmt")
    with pytest.raises(UserError, match=r"is a run of MMT, which has no row for each text and video"):
        read_sides(str(tmp_path / "run"), None)


def of_system(path: Path, system: str) -> None:
    """A run of another system, as far as its settings say it."""
    config = make_run(path, clips=4)
    config.model.system = system
    save_config(path, config)


@pytest.mark.parametrize(("system", "text"), [("mmt", "bert-base-cased"), ("mmt", "random"), ("ce", None)])
def test_the_head_of_a_page_names_the_system_and_its_text_model(system, text, tmp_path):
    config = make_run(tmp_path / "run", clips=4)
    config.model.system = system
    config.experts.text = text or config.experts.text
    save_config(tmp_path / "run", config)
    facts = " ".join(html._facts(load_run(tmp_path / "run")))
    assert f"{'MMT: multi-modal transformer' if system == 'mmt' else 'CE: collaborative experts'}" in facts
    said = {"bert-base-cased": "text: bert-base-cased", "random": "text: a small BERT with random weights"}
    assert ("text: " in facts) == (text is not None)
    assert said.get(text, "") in facts


@pytest.mark.parametrize("recipe", ["ce-msrvtt", "jsfusion-lsmdc"])
@pytest.mark.parametrize("setting", [{"dropout": 0.0}, {"missing": "left-out"}, {"gated_video": True}, {"text": "x"}])
def test_a_setting_of_mmt_is_refused_elsewhere(recipe, setting):
    config = load_recipe(recipe)
    config.experts = replace(config.experts, **setting)
    [name] = setting
    with pytest.raises(
        UserError, match=rf"^experts.{name} is .* MMT's alone; leave out --experts.{name.replace('_', '-')}$"
    ):
        check_config(config)


def test_a_first_step_that_diverges_names_what_an_expert_system_starts_from():
    config = load_recipe("mmt-msrvtt")
    said = str(Watch(config).diverged("the loss is nan", step=1, epoch=1))
    assert "look at what it starts from, the features in data/MSRVTT and bert-base-cased, too" in said
    config = load_recipe("ce-msrvtt")
    config.model.init_from = Path("a.pth")
    said = str(Watch(config).diverged("the loss is nan", step=1, epoch=1))
    assert "the features in data/MSRVTT and a.pth, too" in said


def test_other_experts_and_rows_of_em_are_not_measured_alike():
    def run(name, **facts):
        return Path(name), {"emcl": {"mode": "inference"}, "em_block": None, "em_rows": 64, "experts": ["a"]} | facts

    assert differences([run("x"), run("y")]) == []
    assert differences([run("x"), run("y", em_rows=16)]) == ["Not measured alike: rows of EM (x: 64, y: 16)."]
    [said] = differences([run("x"), run("y", experts=["a", "b"])])
    assert said == "Not measured alike: experts (x: a, y: a b)."
    off = run("y", emcl={"mode": "off"}, em_rows=None)
    clip = run("z", experts=None, em_rows=None, emcl={"mode": "off"})
    assert differences([run("x"), off]) == differences([run("x"), clip]) == []


def test_clips_that_are_left_out_matter_for_experts_too():
    assert matters("data.on_bad_video", load_recipe("mmt-msrvtt"))
