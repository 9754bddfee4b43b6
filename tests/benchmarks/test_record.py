"""Records from made-up timings: what is in them, how ratios are formed, and that none is ever overwritten."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import record


def bench(group: str, way: str, seconds: float, **extra: float) -> dict[str, Any]:
    stats = {"median": seconds, "iqr": seconds / 10, "rounds": 9}
    return {"group": group, "params": {"way": way}, "extra_info": extra, "stats": stats}


@pytest.fixture
def measured() -> dict[str, Any]:
    """What pytest-benchmark writes, cut down to what is read."""
    return {
        "datetime": "2026-01-02T03:04:05.678+00:00",
        "commit_info": {"id": "0123abc", "dirty": True},
        "machine_info": {
            "cpu": {"brand_raw": "Some(R) CPU 9000", "count": 2},
            "system": "Linux",
            "release": "6.1",
            "python_version": "3.11.7",
            "emcl": {"torch": "2.13", "threads": 2, "emcl": "0.1.0", "isa": "AVX2", "command": "make bench"},
        },
        "benchmarks": [
            bench("em_project [256, 512] forward", "eager", 2e-3),
            bench("em_project [256, 512] forward", "compiled", 4e-3),
            bench("em_project [256, 512] forward", "ours", 0.5e-3),
            bench("big A=B=9 forward + backward", "EMCL off", 0.2, peak_mib=3.4),
            bench("big A=B=9 forward + backward", "ours", 0.3, peak_mib=4.6, gflop=6.0, mbyte=30.0),
        ],
    }


def cells(text: str, way: str) -> list[str]:
    """Cells of the first row of a way."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {way} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_cpu_record_says_where_it_comes_from(measured: dict[str, Any]) -> None:
    text = record.markdown(record.from_pytest_benchmark(measured), "name")
    for fact in ("0123abc, with changes that are not committed", "Some(R) CPU 9000, 2 cores", "AVX2", "`make bench`",
                 "torch: 2.13", "2026-01-02 03:04:05 UTC", "2 threads"):  # fmt: skip
        assert fact in text


def test_ratios_and_rates_by_hand(measured: dict[str, Any]) -> None:
    text = record.markdown(record.from_pytest_benchmark(measured), "name")
    assert cells(text, "eager") == ["eager", "2 ms", "200 µs", "9", ""]
    assert cells(text, "compiled")[-1] == "0.5", "a way that is slower stays in the table"
    assert cells(text, "ours")[-1] == "4"
    # 6 GFLOP and 30 MB in 0.3 s, 1.5 times the time without EMCL
    row = next(line for line in text.splitlines() if line.startswith("| ours | 300 ms"))
    assert row == "| ours | 300 ms | 30 ms | 9 | 1.50 | 5 | 20 G | 0.1 G |"


def test_a_second_run_with_less_stands_beside_the_first(measured: dict[str, Any]) -> None:
    wide = copy.deepcopy(measured)
    wide["machine_info"]["emcl"]["isa"] = "AVX512"
    for bench in measured["benchmarks"]:
        bench["stats"]["median"] *= 2 if bench["params"]["way"] == "ours" else 1.5
    made = record.from_pytest_benchmark(wide)
    record.put_narrower(made, measured)
    text = record.markdown(made, "name")
    assert "| way | median | IQR | repeats | × eager | as on AVX2: median | as on AVX2: × eager |" in text
    assert cells(text, "eager")[-3:] == ["", "3 ms", ""]
    assert cells(text, "ours")[-3:] == ["4", "1 ms", "3"]
    assert "may use no more than AVX2" in text


def test_a_second_run_with_the_same_says_nothing(measured: dict[str, Any]) -> None:
    made = record.from_pytest_benchmark(measured)
    before = copy.deepcopy(made)
    record.put_narrower(made, measured)
    assert made == before


def test_columns_that_no_way_has_are_left_out(measured: dict[str, Any]) -> None:
    text = record.markdown(record.from_pytest_benchmark(measured), "name")
    assert text.count("| way | median | IQR | repeats | × eager |\n") == 1
    assert text.count("| way | median | IQR | repeats | ÷ EMCL off | peak MiB | FLOP/s | byte/s |\n") == 1


def test_shares_of_the_ceilings_by_hand() -> None:
    ceilings = {"copy": {"per_second": 2e12}, "bf16": {"per_second": 8e12}, "tf32": {"per_second": 4e12}}
    way = {"median_s": 1e-3, "iqr_s": 0.0, "repeats": 20, "cost": {"flops": 1e9, "bytes": 5e8}}
    case = {"shape": "s", "dtype": "float32", "ways": {"cuda": way}}
    assert "| 1 T (25 %) | 500 G (25 %) |" in record.table(case, ceilings)
    assert "| 1 T (12 %) |" in record.table(case | {"dtype": "bfloat16"}, ceilings)


def test_a_failed_way_keeps_its_row_and_its_reason() -> None:
    timed = {"median_s": 3e-5, "iqr_s": 1e-6, "repeats": 20, "errors": {"y": 2e-6}}
    case = {"shape": "s", "dtype": "float32", "ways": {"eager": {"failed": "out of memory"}, "cuda": timed}}
    text = record.table(case)
    assert cells(text, "eager") == ["eager", "", "", "", "", "out of memory"]
    assert cells(text, "cuda") == ["cuda", "30 µs", "1 µs", "20", "y 2e-06", ""]


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.5, "1.5 s"), (0.25, "250 ms"), (0.0123, "12.3 ms"), (3e-5, "30 µs"), (5e-7, "0.5 µs")]
)
def test_times_have_the_unit_that_suits_them(seconds: float, text: str) -> None:
    assert record.shown_time(seconds) == text


def test_slug() -> None:
    assert record.slug("NVIDIA H200") == "nvidia-h200"
    assert record.slug("Intel(R) Xeon(R) CPU @ 2.00GHz") == "intel-xeon-cpu-2-00ghz"


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["record.py", *map(str, arguments)])
    return record.main()


def test_a_record_is_written_once(
    measured: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "bench.json", tmp_path / "results"
    file.write_text(json.dumps(measured))
    assert run_main(monkeypatch, file, "--out", out) == 0
    name = "2026-01-02-some-cpu-9000"
    assert sorted(path.name for path in out.iterdir()) == [f"{name}.json", f"{name}.md", f"{name}.png"]
    assert f"]({name}.png)" in (out / f"{name}.md").read_text()
    assert json.loads((out / f"{name}.json").read_text())["cases"][0]["ways"]["ours"]["median_s"] == 0.5e-3

    before = {path: path.read_bytes() for path in out.iterdir()}
    assert run_main(monkeypatch, file, "--out", out) == 1
    assert "exists, and records are never edited; pass --name" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert run_main(monkeypatch, file, "--out", out, "--name", "again") == 0
    assert (out / "again.md").exists()


def test_only_the_plot(measured: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, picture = tmp_path / "bench.json", tmp_path / "speed.png"
    file.write_text(json.dumps(measured))
    assert run_main(monkeypatch, file, "--plot", picture, "--cases", "em_project") == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "speed.png"]


def test_nothing_is_drawn_where_nothing_is_compared(measured: dict[str, Any], tmp_path: Path) -> None:
    made = record.from_pytest_benchmark(measured)
    made["cases"] = made["cases"][1:]
    assert not record.plot(made, tmp_path / "speed.png", record.CPU_WAYS)
    assert list(tmp_path.iterdir()) == []


def test_labels_of_the_plot() -> None:
    def label(shape: str, dtype: str = "float32") -> str:
        return record.label({"shape": shape, "dtype": dtype})

    assert label("em_project [9, 5] forward", "bfloat16") == "em_project [9, 5] forward bfloat16"
    assert label("em_project [9, 5] forward + backward full") == "em_project [9, 5] fwd + bwd full"
    assert label("b64-f12 A=B=64 F=12 forward + backward") == "training step, A=B=64 F=12"
    assert label("msrvtt-eval-1k 10 × 10 F=12") == "evaluation 10 × 10 F=12"
