"""`data doctor` on features of experts: counts, and every fault in a table and as JSON."""

import json

import pytest
from expert_files import write_ce, write_mmt, write_own

from emcl_train.data.experts.split import ExpertFiles
from emcl_train.tools.doctor_experts import examine_experts, expert_files_of, run_expert_doctor

pytest.importorskip("h5py")


@pytest.mark.parametrize(("system", "dataset", "expert"), [("ce", "msrvtt", "audio"), ("mmt", "lsmdc", "s3d")])
def test_faults_are_counted_and_named(system, dataset, expert, tmp_path, capsys):
    faults = {"wrong-width", "nan-inside", "no-features", "unlisted", "no-caption"}
    made = {"ce": write_ce, "mmt": write_mmt}[system](tmp_path, dataset, faults=faults)
    files = ExpertFiles(system, dataset, tmp_path, cache_dir=tmp_path / "cache")
    assert run_expert_doctor(files, f"{system}-{dataset}", json_path=tmp_path / "found.json") == 1

    printed = " ".join("".join(capsys.readouterr()).split())
    assert f"{made.faulty['no-features']} has no features" in printed
    assert f"{expert} of {made.faulty['wrong-width']} is" in printed
    assert "stand in no list: 1, video_of_nobody" in printed

    found = json.loads((tmp_path / "found.json").read_text())
    kinds = {fault["kind"]: fault["video_id"] for fault in found["faults"]}
    assert kinds == {
        "no features": made.faulty["no-features"],
        "no caption": made.faulty["no-caption"],
        f"wrong width: {expert}": made.faulty["wrong-width"],
        f"NaN or infinite: {expert}": made.faulty["nan-inside"],
    }
    assert found["experts"][expert]["faults"] == {"wrong width": 1, "NaN or infinite": 1}
    assert found["splits"]["test"]["no_features"] == 1
    assert sum(found["experts"]["face"]["missing"].values()) > 0
    assert found["unlisted"] == ["video_of_nobody"]


def test_a_whole_set(tmp_path):
    write_own(tmp_path)
    report = examine_experts(ExpertFiles("own", "own", tmp_path))
    assert report.exit_code == 0
    assert report.experts["sound"].missing == {"train": 1, "val": 0, "test": 0}
    assert report.experts["sound"].clips == 11
    assert report.splits["train"].queries == 16


def test_files_that_cannot_be_opened(tmp_path):
    write_mmt(tmp_path, faults={"missing-list"})
    report = examine_experts(ExpertFiles("mmt", "msrvtt", tmp_path))
    assert report.exit_code == 1
    assert "there is no file" in report.problems[0]


def test_recipes_and_their_files(tmp_path):
    assert expert_files_of("msrvtt-9k", tmp_path) is None
    files = expert_files_of("ce-msrvtt-full", tmp_path)
    assert (files.system, files.dataset, files.split) == ("ce", "msrvtt", "full")
    assert expert_files_of("mmt-own", tmp_path).system == "own"
