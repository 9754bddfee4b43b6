"""Settings that change nothing in a run are left out of its page; every other one is there."""

from dataclasses import asdict

import pytest
from fake_run import make_run

from emcl_train.config import RunConfig, flattened
from emcl_train.recipes import RECIPES, load_recipe
from emcl_train.report import write_report
from emcl_train.report.settings import DEPENDS, matters, settings_of


def changed(**values):
    config = RunConfig()
    for name, value in values.items():
        section, _, setting = name.partition("__")
        setattr(getattr(config, section), setting, value)
    return config


@pytest.mark.parametrize(
    ("name", "with_it", "without_it"),
    [
        ("model.random_clip.width", {"model__clip": "random"}, {"model__clip": "openai/clip-vit-base-patch32"}),
        ("emcl.num_bases", {"emcl__mode": "inference"}, {"emcl__mode": "off"}),
        ("emcl.momentum", {"emcl__mode": "train"}, {"emcl__mode": "inference"}),
        ("eval.em_block", {"emcl__mode": "train"}, {"emcl__mode": "off"}),
        ("model.temporal_layers", {"model__temporal": "transformer"}, {"model__temporal": "mean"}),
        ("model.lstm_padding", {"model__temporal": "lstm"}, {"model__temporal": "transformer"}),
        ("train.decorrelation_weight", {"model__head": "wti"}, {"model__head": "mean"}),
        ("model.wti_padding", {"model__head": "wti"}, {"model__head": "text-conditioned"}),
        ("model.pooling_temperature", {"model__head": "text-conditioned"}, {"model__head": "wti"}),
        ("data.msrvtt_split", {"data__layout": "msrvtt"}, {"data__layout": "jsonl"}),
        ("data.shapes.size", {"data__layout": "shapes"}, {"data__layout": "msrvtt"}),
        ("train.batches", {"data__train_captions": "all"}, {"data__train_captions": "one"}),
    ],
)
def test_a_setting_is_there_if_the_run_has_what_it_is_of(name, with_it, without_it):
    assert matters(name, changed(**with_it))
    assert not matters(name, changed(**without_it))


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_each_setting_is_shown_or_counted(recipe):
    config = load_recipe(recipe)
    sections, left_out = settings_of(config)
    assert sum(map(len, sections.values())) + left_out == len(flattened(asdict(config)))
    assert "tracker" not in sections["train"]
    assert "lr" in sections["train"]


def test_every_rule_is_of_a_setting_that_there_is():
    names = list(flattened(asdict(RunConfig())))
    assert [
        key for key in DEPENDS if not any(n == key or (key.endswith(".") and n.startswith(key)) for n in names)
    ] == []


def test_the_page_leaves_them_out_and_says_so(tmp_path):
    make_run(tmp_path / "on")
    make_run(tmp_path / "off", mode="off")
    on, off = (write_report(tmp_path / name).read_text() for name in ("on", "off"))
    assert "<bdi>num_bases</bdi>" in on
    assert "<bdi>num_bases</bdi>" not in off
    assert "settings that change nothing in such a run are left out" in off
    assert "<bdi>tracker</bdi>" not in on
