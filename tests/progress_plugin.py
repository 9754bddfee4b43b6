"""The part of run_on_gpu.py inside each pytest process: which tests it runs, and a record of their outcomes.

A kernel that fails can take the CUDA context of its process with it. So each test's start and end is written to a file
at once, and a new process goes on after it.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

PROGRESS = Path(os.environ["EMCL_TEST_PROGRESS"])
SHARD, SHARDS = (int(number) for number in os.environ["EMCL_TEST_SHARD"].split("/"))
LOST = 70  # exit code if the CUDA context is lost
_reports: dict[str, tuple[str, str]] = {}


# After pytest's own, which applies -k and -m, and that of tests/kernels: shards share what is left.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    started = {line["start"] for line in lines() if "start" in line}
    kept = [item for item in items[SHARD::SHARDS] if item.nodeid not in started]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def pytest_runtest_logstart(nodeid: str) -> None:
    _reports[nodeid] = ("passed", "")
    write({"start": nodeid})


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.outcome != "passed" and _reports[report.nodeid][0] != "failed":
        _reports[report.nodeid] = (report.outcome, reason(report))


def pytest_runtest_logfinish(nodeid: str) -> None:
    outcome, why = _reports.pop(nodeid)
    write({"end": nodeid, "outcome": outcome, "reason": why})
    if outcome == "failed" and torch.cuda.is_available():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            pytest.exit(f"the CUDA context is lost: {str(error).splitlines()[0]}", returncode=LOST)


def reason(report: pytest.TestReport) -> str:
    """One line: why a test was skipped, or how it failed."""
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[-1])
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash else str(report.longrepr)).partition("\n")[0][:300]


def lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in PROGRESS.read_text().splitlines()] if PROGRESS.exists() else []


def write(line: dict[str, Any]) -> None:
    with PROGRESS.open("a") as file:
        file.write(json.dumps(line) + "\n")
