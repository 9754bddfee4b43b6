"""The figures of docs/refine.md and of the README about refining are those of the committed table."""

import json
import re
from pathlib import Path
from statistics import mean, pstdev

import pytest

from benchmarks.refine import measure, run
from benchmarks.refine.methods import DEFAULT, EM_DEFAULT, NOTHING, WITH_BANK

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "refine.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = json.loads((Path(run.__file__).parent / "results" / "results.json").read_text(encoding="utf-8"))
PROTOCOLS = RESULTS["protocols"]
REAL = [name for name in RESULTS["sets"] if name not in RESULTS["rendered"]]
LATER = [name for name in REAL if name not in RESULTS["development"]]
MEANS = "0.7 of each side's mean"
ALL_MEANS = "all of each side's mean (GR-CLIP, I0T)"
OTHERS = ", chosen by the other sets"

WAYS = {
    "`Refiner()`: whitening": DEFAULT,
    "`EMRefiner()`": EM_DEFAULT,
    '0.7 of each side\'s mean: `Refiner("mean")`': MEANS,
    "all of the means (GR-CLIP, I0T)": ALL_MEANS,
    "`Refiner()` with a bank": WITH_BANK,
    "`EMRefiner()` with a bank": "EMRefiner with a bank",
    'CSLS (k 10): `Refiner("none")` with a bank': "CSLS (k 10)",
    "whitening of each side by itself (*)": f"whitening of each side{OTHERS}",
    "NNN as published (k 128, α 0.75)": "NNN (k 128, α 0.75)",
    "Sinkhorn as published (β 100, 10 rounds)": "Sinkhorn (β 100, 10 rounds)",
    "QB-Norm as published (β 20)": "QB-Norm (β 20)",
    "inverted softmax as released (β 100)": "inverted softmax (β 100)",
}
"""Ways that the page names otherwise than the table; (*) are those whose settings other sets choose."""
MIXED = {
    "no refinement": NOTHING,
    "`Refiner()`": DEFAULT,
    "`EMRefiner()`": EM_DEFAULT,
    "CSLS on raw rows": "CSLS (k 10)",
    "all of the means: `Refiner(Mean(1.0))`": ALL_MEANS,
    "`Refiner()` with a bank": WITH_BANK,
    "`Refiner(Whitening(mean_share=1.0))`": "Refiner, all of the means",
    "`Refiner(Whitening(mean_share=1.0))` with a bank": "Refiner, all of the means, with a bank",
}


def rows_below(head: str) -> list[list[str]]:
    """Cells of the table whose head begins so, without emphasis."""
    lines = PAGE.replace("**", "").splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith(head)) + 2
    end = next(place for place, line in enumerate(lines[start:], start) if not line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:end]]


def gain(protocol: str, group: str, way: str, sets: list[str]) -> float:
    """Mean over splits, sets and directions."""
    without = [name for name in RESULTS["sets"] if name not in sets]
    return mean(measure.mean_gain(PROTOCOLS[protocol][group][way]["gains"], without))


def number(text: str) -> float:
    return float(text.partition(" ")[0].replace("−", "-"))


@pytest.mark.parametrize("group", ["without a bank", "with a bank"])
def test_the_tables_of_gains(group):
    rows = rows_below(f"| {group} | evaluated set")
    assert len(rows) >= 9
    for label, *cells in rows:
        way = WAYS.get(label, label.replace(" (*)", OTHERS))
        for protocol, cell in zip(PROTOCOLS, cells, strict=True):
            if way not in PROTOCOLS[protocol][group]:
                assert cell == "—"
                continue
            of_splits = measure.mean_gain(PROTOCOLS[protocol][group][way]["gains"], RESULTS["rendered"])
            spread = f" ± {pstdev(of_splits):.1f}" if len(of_splits) > 1 else ""
            assert cell == f"{mean(of_splits):+.2f}{spread}", (label, protocol)


def test_the_table_of_sets():
    rows = rows_below("| | pairs |")
    assert [row[0].removesuffix(" (chosen on)") for row in rows] == list(RESULTS["sets"])
    for label, pairs, *cells in rows:
        name = label.removesuffix(" (chosen on)")
        assert label.endswith(" (chosen on)") == (name in RESULTS["development"])
        assert int(pairs) == RESULTS["sets"][name]
        groups = [("without a bank", way) for way in (EM_DEFAULT, MEANS, DEFAULT)]
        groups += [("with a bank", way) for way in ("CSLS (k 10)", WITH_BANK)]
        right = [gain("halves", group, way, [name]) for group, way in groups]
        assert [number(cell) for cell in cells] == pytest.approx(right, abs=0.051)


def test_the_table_of_mixed_galleries():
    rows = rows_below("| | R@10 |")
    assert [label for label, _ in rows] == list(MIXED)
    for label, cell in rows:
        cells = RESULTS["mixed"][MIXED[label]]
        right = mean(mean(values) for name, values in cells.items() if measure.set_of(name) in REAL)
        assert number(cell) == pytest.approx(right, abs=0.051), label


def ahead(protocol: str, group: str, way: str, other: str) -> str:
    """In how many splits a way gains more than another."""
    ways = [measure.mean_gain(PROTOCOLS[protocol][group][name]["gains"], RESULTS["rendered"]) for name in (way, other)]
    return f"{sum(ours > theirs for ours, theirs in zip(*ways, strict=True))} of {len(ways[0])}"


def real(cells: dict[str, list[float]]) -> list[float]:
    """Means of the directions of real sets."""
    return [mean(values) for name, values in cells.items() if measure.set_of(name) in REAL]


def short(value: float, digits: int = 2) -> str:
    """With its sign, as the page has it; zero has none."""
    return f"{value:+.{digits}f}" if round(abs(value), digits) else f"{0:.{digits}f}"


def test_sentences_of_the_page():
    text = " ".join(PAGE.split())
    without, with_bank = "without a bank", "with a bank"
    csls, sinkhorn, softmax = "CSLS (k 10)", "Sinkhorn (β 100, 10 rounds)", "inverted softmax (β 100)"
    later = [gain("halves", without, way, LATER) for way in (DEFAULT, EM_DEFAULT, f"whitening of both sides{OTHERS}")]
    least = [min(real(PROTOCOLS[protocol][without][DEFAULT]["gains"])) for protocol in PROTOCOLS]
    certain = [found["gain"][1] > 0 for name, found in RESULTS["rows"][DEFAULT].items() if measure.set_of(name) in REAL]
    clips = [gain("halves", without, way, RESULTS["rendered"]) for way in (MEANS, EM_DEFAULT, DEFAULT)]
    banks = [gain("halves", with_bank, way, REAL) for way in (WITH_BANK, "EMRefiner with a bank", csls)]
    on_halves, on_thirds = (
        [gain(protocol, with_bank, way, LATER) for way in (WITH_BANK, csls)]
        for protocol in ("halves", "unpaired thirds")
    )
    known = {
        way: [gain(one, with_bank, way, REAL) for one in ("evaluated set", "halves")] for way in (sinkhorn, softmax)
    }
    few = {count: (mean(real(cells)), -min(real(cells))) for count, cells in RESULTS["few rows"].items() if cells}
    hubs = [mean(real(RESULTS["hubness"][way])) for way in (NOTHING, DEFAULT)]
    mixed = [mean(RESULTS["mixed"][way]["MSR-VTT-100, VideoCLIP, video→text"])
             for way in (ALL_MEANS, "Refiner, all of the means, with a bank")]  # fmt: skip

    for sentence in (
        f"the default gains {short(later[0], 1)} there, `EMRefiner` {short(later[1], 1)}, the best setting of "
        f"whitening that other sets choose {short(later[2], 1)}.",
        f"in {ahead('halves', without, DEFAULT, EM_DEFAULT)} halves and "
        f"{ahead('unpaired thirds', without, DEFAULT, EM_DEFAULT)} thirds. The smallest mean gain of a direction of a "
        f"real set is {short(least[0])} on the evaluated sets, {short(least[1])} on halves and {short(least[2])} on "
        "thirds.",
        f"leaves zero out in {sum(certain)} of {len(certain)} directions",
        f"There 0.7 of the means gives {short(clips[0], 1)}, EM's map {short(clips[1], 1)} and whitening "
        f"{short(clips[2], 1)}.",
        f"On halves the default with one gains {short(banks[0])} and EM's map {short(banks[1])}, against CSLS's "
        f"{short(banks[2])} without a map; the default is ahead of it in {ahead('halves', with_bank, WITH_BANK, csls)} "
        f"halves and {ahead('unpaired thirds', with_bank, WITH_BANK, csls)} thirds.",
        f"the default with a bank has {short(on_halves[0])} on halves and CSLS {short(on_halves[1])}; on thirds "
        f"{short(on_thirds[0])} and {short(on_thirds[1])}.",
        f"Sinkhorn as published gains {short(known[sinkhorn][0])} with the test queries as its bank, and "
        f"{short(known[sinkhorn][1])} with others; the released inverted softmax {short(known[softmax][0])} and "
        f"{short(known[softmax][1])}.",
        f"with the test queries as its bank has {short(gain('evaluated set', with_bank, WITH_BANK, REAL))}.",
        f"**EMCL as released** loses ({short(gain('evaluated set', without, 'EMCL as released, at inference', REAL))})",
        f"falls from {hubs[0]:.2f} to {hubs[1]:.2f} on halves.",
        f"fitted to 50 rows a side the default gains {short(few['50'][0])} on halves, and no direction loses more than "
        f"{few['50'][1]:.2f}; "
        + "; ".join(f"to {n}, {short(few[n][0])} and {few[n][1]:.2f}" for n in ("20", "5", "2")),
        f"(video→text {mixed[0]:.1f} against {mixed[1]:.1f})",
    ):
        assert sentence in text, sentence

    # R@1 of the files as they are, by which a reader knows them.
    for name, found in RESULTS["recall"]["evaluated set"].items():
        assert f"{found[0]:.1f}" in text.partition("tells whether they are the same files:")[2], name


def test_the_section_on_the_sign():
    text = " ".join(PAGE.split())
    coco, msrvtt = (RESULTS["sign"][name] for name in RESULTS["development"])
    for name, found in (("COCO", coco), ("MSR-VTT", msrvtt)):
        leading, random = found["leading together"], found["random"]
        assert (
            f"| {name}: 8 leading directions | {leading['gap']:.0%} | {leading['rows']:.0%} |".replace("%", " %")
            in PAGE
        )
        assert f"| 8 random directions | {random['gap']:.0%} | {random['rows']:.0%} |".replace("%", " %") in PAGE

    gaps = [found["weight"]["0.3"]["gap"] for found in (coco, msrvtt)]
    assert f"at +0.3 the gap is {gaps[0]:.1f} and {gaps[1]:.1f} times as long and hubness 2.3 times" in text
    for found in (coco, msrvtt):
        assert found["weight"]["0.3"]["hubness"] / found["weight"]["0.0"]["hubness"] == pytest.approx(2.3, abs=0.051)
    hubs = [found["weight"][weight]["hubness"] for found in (coco, msrvtt) for weight in ("0.0", "-0.1")]
    assert "from 0 to −0.1 hubness falls from {:.1f} to {:.1f} on COCO and from {:.1f} to {:.1f} on MSR-VTT".format(
        *hubs
    ) in text  # fmt: skip

    third = coco["directions"][2]
    assert f"(COCO, direction 3: from {coco['before']['recall']:.1f} to {third['recall']:.1f})" in text
    assert f"although it holds {third['gap']:.0%} of the gap".replace("%", " %") in text
    lost = [found["before"]["recall"] - one["recall"] for found in (coco, msrvtt) for one in found["directions"]]
    assert max(lost) == pytest.approx(21.1, abs=0.051)


def test_what_is_said_of_settings():
    sweep = {name: found for name, found in RESULTS["sweep"]["strength"].items() if name in REAL}
    assert all(gain > 0 for found in sweep.values() for value, gain in found.items() if float(value) <= 0.02)
    assert any(found["0.1"] < 0 for found in sweep.values())
    assert all(found["0.05"] > 0 for found in sweep.values())
    shares = RESULTS["sweep"]["mean_share"]
    assert sorted(max(f["0.2"], f["0.4"], f["0.6"]) - min(f["0.2"], f["0.4"], f["0.6"]) < 0.65
                  for name, f in shares.items() if name in REAL) == [False, True, True, True, True]  # fmt: skip
    msrvtt, (clips,) = shares["MSR-VTT-100, VideoCLIP"], (shares[name] for name in RESULTS["rendered"])
    assert max(msrvtt, key=msrvtt.get) == "0.4"
    assert max(clips, key=clips.get) == "1.0"
    assert all(found["1.0"] < found["0.4"] for name, found in shares.items() if name in REAL)


def test_figures_of_the_readme():
    text = " ".join(README.split())
    found = re.search(r"on the next three R@1 rises by ([\d.]+) points in the mean, and by ([\d.]+) with a bank", text)
    assert found is not None
    right = [gain("halves", "without a bank", DEFAULT, LATER), gain("halves", "with a bank", WITH_BANK, LATER)]
    assert [float(value) for value in found.groups()] == pytest.approx(right, abs=0.051)

    found = re.search(r"COCO ([\d.]+), ([\d.]+) and ([\d.]+); MSR-VTT ([\d.]+), ([\d.]+) and ([\d.]+)\]", text)
    assert found is not None
    right = []
    for name in RESULTS["development"]:
        before = mean(mean(RESULTS["recall"]["halves"][f"{name}, {direction}"]) for direction in measure.DIRECTIONS)
        gains = [gain("halves", "without a bank", DEFAULT, [name]), gain("halves", "with a bank", WITH_BANK, [name])]
        right += [before, *(before + more for more in gains)]
    assert [float(value) for value in found.groups()] == pytest.approx(right, abs=0.051)
