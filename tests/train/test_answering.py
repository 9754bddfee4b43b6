"""Video question answering from the command line: examined, trained, evaluated and reported, with both accuracies."""

import contextlib
import io
import json
import shutil

import pytest
from fake_run import make_run
from safetensors.torch import load_file
from stopped_training import stopped_after
from tiny_layouts import SMALL, msrvtt_qa

from emcl_train import cli
from emcl_train.errors import UserError
from emcl_train.models import ahead
from emcl_train.recipes import SMOKE_TEST, load_recipe
from emcl_train.report.groups import load_group
from emcl_train.report.paper_table import paper_tables
from emcl_train.runs.contents import load_config, save_config
from emcl_train.runs.records import MEASURED
from emcl_train.training import trainer

pytestmark = pytest.mark.usefixtures("one_thread")
# Narrower, the numbers that its layers begin with make answers so small that 20 steps move nothing.
TINY = [*SMALL, "--model.answers.joint", "256", "--model.answers.hidden", "1024"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A data set, and a run of 20 steps on it."""
    root = tmp_path_factory.mktemp("answering")
    msrvtt_qa(root / "set")
    flags = ["--data.root", str(root / "set"), "--out", str(root / "run"), *TINY, "--train.max-steps", "20"]
    flags += ["--train.lr", "5e-3", "--train.epochs", "5", "--train.tracker", "none"]
    assert cli.main(["train", "msrvtt-qa", *flags]) == 0
    return root / "set", root / "run"


@pytest.fixture(scope="module")
def seeds(trained, tmp_path_factory):
    """What is printed of two runs of six steps with different seeds, and their folder."""
    out = tmp_path_factory.mktemp("seeds") / "runs"
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(trainer, "write_report", lambda folder: folder)  # plots take longer than all the rest
        assert cli.main(["train", "msrvtt-qa", *six_steps(trained[0], out), "--seeds", "2"]) == 0
    return printed.getvalue(), out


def six_steps(root, out):
    """Four are an epoch; a state is saved after the fourth and the fifth."""
    flags = ["--data.root", str(root), "--out", str(out), *TINY, "--train.max-steps", "6", "--train.epochs", "2"]
    return [*flags, "--train.save-every", "5", "--train.seed", "3", "--train.tracker", "none"]


def test_the_data_set_is_examined(trained, capsys):
    assert cli.main(["data", "doctor", "msrvtt-qa", str(trained[0])]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "test: 8 questions, of which 6 (75.0 %) have one of the listed answers; 2 are left out." in said
    assert "are whole" in said


def test_a_dry_run_counts_questions(trained, tmp_path, capsys):
    flags = ["--data.root", str(trained[0]), "--out", str(tmp_path / "run"), *TINY, "--dry-run"]
    assert cli.main(["train", "msrvtt-qa", *flags]) == 0
    assert "steps: 20, 4 in each of 5 epochs of 4 pairs, stopped after 2" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_every_step_is_recorded_and_both_accuracies_are_there(trained):
    _, run = trained
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert len(losses) == 20
    assert sum(losses[-4:]) < sum(losses[:4]) - 0.2, losses
    assert sum(line["kind"] == "validation" for line in lines) == 5

    results = json.loads((run / "results.json").read_text())
    assert list(results["accuracies"]) == [
        "accuracy over the 6 kept questions",
        "top-5 accuracy over the 6 kept questions",
        "accuracy over all 8 questions",
        "top-5 accuracy over all 8 questions",
    ]
    kept, _, asked, _ = results["accuracies"].values()
    assert kept * 6 == pytest.approx(asked * 8)
    assert SMOKE_TEST in results["notes"]
    assert results["selection"] == "the last epoch, since 3 validation questions are too few to choose by: epoch 5"
    assert (results["origin"]["epoch"], results["origin"]["step"]) == (5, 20)

    # By hand, from what each question was answered.
    answers = json.loads((run / "answers.json").read_text())
    assert len(answers) == 6
    right = sum(row["answer"] == row["given"][0] for row in answers)
    assert kept == pytest.approx(100 * right / 6)
    assert (run / "finished.json").is_file()


def test_it_is_evaluated_again_and_reported(trained, capsys):
    _, run = trained
    before = (run / "results.json").read_text()
    assert cli.main(["eval", str(run)]) == 0
    assert json.loads((run / "results.json").read_text()) == json.loads(before)
    assert cli.main(["eval", str(run), "--split", "val"]) == 0
    results = json.loads((run / "evaluations" / "split-val" / "results.json").read_text())
    assert (results["split"], results["figures"]["kept"], results["figures"]["asked"]) == ("val", 3, 4)
    capsys.readouterr()
    assert cli.main(["report", str(run)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "accuracy over the 6 kept questions" in said
    assert "accuracy over all 8 questions" in said
    assert "chance: one of 4 answers" in said
    assert "published: EMCL-QA" not in said  # of other questions


def record(out):
    """Everything that must not depend on whether the run was interrupted."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    lines = [{name: value for name, value in line.items() if name not in MEASURED} for line in lines]
    weights = {name: value.numpy().tobytes() for name, value in load_file(out / "model.safetensors").items()}
    return (
        lines,
        weights,
        json.loads((out / "results.json").read_text()),
        json.loads((out / "answers.json").read_text()),
    )


def test_a_run_that_was_stopped_in_an_epoch_goes_on_to_the_bit(trained, seeds, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    with stopped_after(5):
        cli.main(["train", "msrvtt-qa", *six_steps(trained[0], out)])

    # So far it can be shown and evaluated.
    assert cli.main(["report", str(out)]) == 0
    assert cli.main(["eval", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "was stopped: epoch 2 of 2, step 5 of 6" in said
    assert "Last validation, after epoch 1: accuracy" in said
    assert "Video question answering, recipe" in (out / "report.html").read_text()
    assert not (out / "results.json").exists()
    [so_far] = (out / "evaluations").iterdir()
    assert "The run was not finished" in (so_far / "results.json").read_text()

    monkeypatch.setattr(trainer, "write_report", lambda folder: folder)
    assert cli.main(["resume", str(out)]) == 0
    assert "after step 5 of 6" in capsys.readouterr().out
    assert record(out) == record(seeds[1] / "seed-3")
    assert cli.main(["verify", str(out)]) == 0


@pytest.fixture
def without_pages(monkeypatch):
    monkeypatch.setattr("emcl_train.report.write_locked", lambda path, **how: path / "report.html")


@pytest.mark.usefixtures("without_pages")
def test_seeds_are_reported_as_mean_and_deviation(seeds, capsys):
    printed, out = seeds
    found = [json.loads((out / f"seed-{seed}/results.json").read_text())["figures"]["top5_of_all"] for seed in (3, 4)]
    assert cli.main(["report", str(out)]) == 0
    for text in (printed, capsys.readouterr().out):
        said = " ".join(text.split())
        assert "2 seeds, mean ± deviation, test split" in said
        assert f"top-5 accuracy over all 8 questions {sum(found) / 2:.1f}±" in said
        assert said.count("weights ") >= 1


@pytest.mark.usefixtures("without_pages")
def test_two_runs_stand_in_one_table_and_are_not_compared(trained, seeds, tmp_path, capsys):
    first, second = str(trained[1]), str(seeds[1])
    assert cli.main(["report", first, second]) == 0
    captured = capsys.readouterr()
    said = " ".join(captured.out.split())
    assert "3 runs that answer questions" in said
    assert "train.max_steps: 20 (run), 6 (runs)" in said
    assert "comparison:" not in said

    assert cli.main(["report", first, second, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [len(found["runs"]), found["comparisons"]] == [3, []]
    assert cli.main(["report", first, second, "--out", str(tmp_path / "both.html")]) == 1
    assert "such runs are not compared query by query: leave out --out" in " ".join(capsys.readouterr().err.split())
    make_run(tmp_path / "retrieval")
    assert cli.main(["report", first, str(tmp_path / "retrieval")]) == 1
    assert "which have no figure in common" in " ".join(capsys.readouterr().err.split())


def test_the_page_is_one_file_with_figures_questions_and_settings(trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained[1], run)
    path = run / "answers.json"
    path.write_text(path.read_text().replace("what is shown in te0?", "what is <script>shown</script> in te0?", 1))
    assert cli.main(["report", str(run), "--share"]) == 0
    text = (run / "report.html").read_text()
    assert "http" not in text.partition("<main>")[2].partition("</main>")[0].replace("http://www.w3.org", "")
    assert "what is &lt;script&gt;shown&lt;/script&gt; in te0?" in text
    assert "Content-Security-Policy" in text
    assert 'name="color-scheme"' in text
    for said in ("accuracy over all 8 questions", "Answered wrong", "Answered right", "answers.joint", "commit"):
        assert said in text
    assert "Accuracy on the validation split after each epoch." in text
    assert "num_bases" in text
    assert "em_block" not in text
    assert str(tmp_path) not in text


def test_other_figures_are_not_replaced(trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained[1], run)
    results = json.loads((run / "results.json").read_text())
    results["figures"]["top1_of_kept"] += 1
    (run / "results.json").write_text(json.dumps(results))
    assert cli.main(["eval", str(run)]) == 0
    assert json.loads((run / "results.json").read_text()) == results
    again = json.loads((run / "evaluations/again/results.json").read_text())
    assert again["figures"]["top1_of_kept"] == results["figures"]["top1_of_kept"] - 1
    assert "the figures are not those in" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("results.json", lambda results: results.pop("figures"), "figures"),
        ("results.json", lambda results: results["figures"].update(top1_of_kept=140), "figures.top1_of_kept is 140"),
        ("results.json", lambda results: results.pop("selection"), "selection"),
        ("results.json", lambda results: results["emcl"].update(bases=1), "bases is no setting"),
        ("answers.json", lambda answers: answers.pop(), "it has 5 questions"),
        ("answers.json", lambda answers: answers[0].update(given="cat"), "[0].given is 'cat', expected a list"),
    ],
)
def test_a_damaged_file_is_one_clear_error(trained, tmp_path, capsys, name, damage, said):
    run = tmp_path / "run"
    shutil.copytree(trained[1], run)
    content = json.loads((run / name).read_text())
    damage(content)
    (run / name).write_text(json.dumps(content))
    assert cli.main(["report", str(run)]) == 1
    [error] = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert str(run / name) in error
    assert said in error
    assert f"`emcl-train eval {run}` writes" in error


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--query-bank", "5"], "neither stored features nor settings of eval change"),
        (["--emcl.num-iters", "9"], "settings of emcl change"),
        (["--from-features", "x"], "settings of from_features change"),
    ],
)
def test_an_evaluation_takes_no_setting_that_changes_nothing(trained, capsys, flags, said):
    assert cli.main(["eval", str(trained[1]), *flags]) == 1
    assert said in " ".join(capsys.readouterr().err.split())


def test_it_trains_in_one_process(monkeypatch):
    monkeypatch.setattr(ahead, "process_count", lambda: 2)
    with pytest.raises(UserError, match="question answering trains in one process, and 2 were started"):
        ahead.look_ahead(load_recipe("msrvtt-qa"))


def as_whole(run, out, *, mode="train", seed=0, plus=0.0):
    """A copy of a run that says that its test split was the published one, with towers that nothing names."""
    shutil.copytree(run, out)
    (out / "clip_config.json").unlink()
    config = load_config(run)
    config.model.clip = "/models/vit"
    config.emcl.mode = mode
    config.train.seed = seed
    save_config(out, config)
    results = json.loads((run / "results.json").read_text())
    results["figures"] |= {"asked": 72821, "top1_of_kept": 44.0 + plus, "top1_of_all": 40.9}
    results["emcl"]["mode"] = mode
    (out / "results.json").write_text(json.dumps(results))
    return out


def answers_table(*paths):
    paper = paper_tables([load_group(path, so_far=True) for path in paths])
    return next(table for table in paper.tables if table.title == "Video question answering, MSRVTT-QA"), paper


def test_it_stands_beside_the_published_row_with_both_accuracies(trained, tmp_path):
    _, run = trained
    table, paper = answers_table(as_whole(run, tmp_path / "qa"), as_whole(run, tmp_path / "off", mode="off"))
    published, own = table.entries[0].rows
    assert published.figures == {"accuracy": {"kept": 45.8}}
    assert (own.name, own.figures) == ("qa", {"accuracy": {"kept": 44.0, "all": 40.9}})
    assert [entry.system.label for entry in table.entries] == ["EMCL-QA", "EMCL-QA, trained without EMCL"]
    absent, without = table.entries[1].rows
    assert (absent.kind, without.name) == ("absent", "off")
    assert paper.apart == []
    assert "nothing says which towers /models/vit has; the published rows have ViT-B/16." in own.remarks
    assert any(remark.startswith("Measured on weights ") for remark in own.remarks)


def test_seeds_stand_there_as_mean_and_deviation(trained, tmp_path):
    for seed in range(3):
        as_whole(trained[1], tmp_path / f"seeds/seed-{seed}", seed=seed, plus=seed)
    own = answers_table(tmp_path / "seeds")[0].entries[0].rows[1]
    assert (own.seeds, own.figures["accuracy"]["kept"], own.deviations["accuracy"]["kept"]) == ((0, 1, 2), 45.0, 1.0)


def test_other_questions_or_towers_than_the_published_ones_stand_apart(trained, tmp_path):
    apart = answers_table(trained[1])[1].apart[0]
    assert apart.reason == (
        "it answered 8 questions of the test split, the published row is of the 72821 of MSRVTT-QA's test split"
    )
    out = as_whole(trained[1], tmp_path / "run")
    shutil.copy(trained[1] / "clip_config.json", out)
    table, paper = answers_table(out)
    assert "those of the published rows CLIP ViT-B/16" in paper.apart[0].reason
    assert not table.entries[0].has_own


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--emcl.mode", "inference"], "since answers do not pass through EMCL"),
        (["--model.temporal", "mean"], "transformer, which question answering has"),
        (["--train.chunks", "2"], "train.chunks is 2, expected 1"),
        (["--data.test-captions", "one"], "since each question is one of its own"),
    ],
)
def test_what_it_cannot_do_is_said(trained, tmp_path, capsys, flags, said):
    assert cli.main(["train", "msrvtt-qa", "--data.root", str(trained[0]), "--out", str(tmp_path / "run"), *flags]) == 1
    assert said in " ".join(capsys.readouterr().err.split())


def test_an_unknown_answer_of_training_is_said(trained, tmp_path, capsys):
    root = tmp_path / "set"
    msrvtt_qa(root)
    path = root / "train.jsonl"
    path.write_text(path.read_text().replace('"cat"', '"a cat"', 1))
    assert cli.main(["train", "msrvtt-qa", "--data.root", str(root), "--out", str(tmp_path / "run"), *TINY]) == 1
    assert "train.jsonl, line 1: the answer 'a cat' is not in train_ans2label.json" in capsys.readouterr().err


def test_the_recipe_has_the_released_settings():
    config = load_recipe("msrvtt-qa")
    emcl, train, data = config.emcl, config.train, config.data
    assert config.model.clip == "openai/clip-vit-base-patch16"
    assert (emcl.mode, emcl.num_bases, emcl.num_iters, emcl.temperature, emcl.residual_weight) == ("train", 16, 5, 1, 1)
    assert (emcl.momentum, emcl.init) == (0.9, "sign")
    assert (train.optimizer, train.lr, train.weight_decay, train.betas) == ("bertadam", 1e-4, 0.2, (0.9, 0.98))
    assert (train.epochs, train.batch_size, train.max_grad_norm, train.warmup) == (5, 32, 1.0, 0.1)
    assert (data.num_frames, data.max_words, data.frame_sampling) == (12, 32, "1fps")
    assert (config.model.answers.joint, config.model.answers.hidden) == (2048, 8192)
