"""The cost model: figures worked out by hand, the choice, and the errors."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emcl_kernels import __version__

_bindings = pytest.importorskip("emcl_kernels._bindings", reason="emcl_kernels._bindings was not built here")
plan = _bindings.plan

sizes = st.integers(1, 4096)


def test_costs_worked_out_by_hand() -> None:
    chosen = plan(rows=3, width=4, bases=2, iters=5, dtype="float32")
    assert chosen["loop"] == {
        "flops": 4 * 3 * 4 * 2 * 5 + 2 * 3 * 4 * 2,  # two products an iteration, and the reconstruction
        "bytes": (11 * 12 + 12) * 4,  # x [3, 4] read eleven times, y written once
    }
    assert chosen["gram"] == {
        "flops": 3 * 4 * 5 + 2 * 16 * 2 * 5 + 4 * 3 * 4 * 2,  # half of xᵀx, gram·r five times, two thin products
        "bytes": 3 * 12 * 4 + 16 * 5 * 4,  # x read twice and y written once, the Gram matrix read five times
    }


@pytest.mark.parametrize(("rows", "form"), [(1, "loop"), (256, "loop"), (1056, "gram"), (65536, "gram")])
def test_few_rows_take_the_loop_and_many_the_gram_form(rows: int, form: str) -> None:
    assert plan(rows, 512, 32, 9)["form"] == form


def test_a_tie_takes_the_gram_form() -> None:
    chosen = plan(rows=1, width=1, bases=1, iters=2)
    assert chosen["gram"]["flops"] == chosen["loop"]["flops"] == 10
    assert chosen["form"] == "gram"


def test_the_gram_form_moves_the_same_bytes_of_x_whatever_the_iterations() -> None:
    one, nine = plan(100_000, 64, 8, 1), plan(100_000, 64, 8, 9)
    assert nine["gram"]["bytes"] - one["gram"]["bytes"] == 8 * 64 * 64 * 4
    assert nine["loop"]["bytes"] - one["loop"]["bytes"] == 16 * 100_000 * 64 * 4


def test_a_narrow_dtype_halves_x_but_not_the_gram_matrix() -> None:
    wide, narrow = plan(10, 4, 2, 3, "float32"), plan(10, 4, 2, 3, "bfloat16")
    assert wide["loop"]["bytes"] == 2 * narrow["loop"]["bytes"]
    assert wide["gram"]["bytes"] - narrow["gram"]["bytes"] == 3 * 40 * 2


@settings(max_examples=200, deadline=None)
@given(sizes, sizes, sizes, st.integers(1, 50), st.sampled_from(["float64", "float32", "bfloat16", "float16"]))
def test_the_cheaper_form_is_chosen_and_tiles_fit(rows: int, width: int, bases: int, iters: int, dtype: str) -> None:
    chosen = plan(rows, width, bases, iters, dtype)
    other = "loop" if chosen["form"] == "gram" else "gram"
    assert chosen[chosen["form"]]["flops"] <= chosen[other]["flops"]
    row_tile, column_tile = chosen["tiles"]
    assert 1 <= row_tile <= rows
    assert 1 <= column_tile <= width


def test_sizes_beyond_int64_do_not_wrap_around() -> None:
    assert plan(2**40, 2**14, 2**10, 100)["loop"]["flops"] == pytest.approx(4.0 * 2**64 * 100, rel=0.01)


@pytest.mark.parametrize(
    ("argument", "value"), [("rows", 0), ("rows", -3), ("width", 0), ("bases", 0), ("iters", 0), ("dtype", "int8")]
)
def test_a_bad_argument_is_named(argument: str, value: object) -> None:
    arguments = {"rows": 8, "width": 8, "bases": 2, "iters": 1, "dtype": "float32"} | {argument: value}
    with pytest.raises(ValueError, match=rf'{argument} is "?{value}"?, expected'):
        plan(**arguments)


def test_build_info_names_version_and_compiler() -> None:
    info = _bindings.build_info()
    assert info["version"] == __version__
    assert info["compiler"].split()[0] in ("gcc", "clang")
    assert info["cxx_standard"] >= 17


def test_pooled_costs_worked_out_by_hand() -> None:
    sizes = {"texts": 2, "videos": 3, "frames": 2, "width": 4, "iters": 5}
    off, on = _bindings.pooled_cost(bases=0, **sizes), _bindings.pooled_cost(bases=3, **sizes)
    dots, products = (
        2 * 2 * 6 * 4,
        6 * 3 * 4 + 2 * 2 * 6 * 2,
    )  # t·fᵀ; half of f·fᵀ per video, and that times the weights
    assert off["forward"]["flops"] == dots + products
    gram = 2 * 6 * 3 + 2 * 6 * 2 * 4 + 8 * 4 * 5  # S of each video, S·f, half of the Gram matrix of 8 rows
    assert on["forward"]["flops"] == dots + products + gram + 2 * 16 * 3 * 5 + 2 * 8 * 4 * 3 + 2 * 2 * 6 * 3
    assert off["backward"]["flops"] == 3 * dots + products + 2 * 6 * 3 + 2 * 6 * 2 * 4
    of_bases = 4 * 8 * 4 * 3 + 6 * 2 * 6 * 3
    assert on["backward"]["flops"] == off["backward"]["flops"] + of_bases - dots
    anew = _bindings.pooled_cost(bases=3, kept=False, **sizes)  # nothing kept: t·fᵀ for the cosine and for backward
    assert anew["forward"]["flops"] == on["forward"]["flops"] + dots
    assert anew["backward"]["flops"] == off["backward"]["flops"] + of_bases

    for dtype, size in (("bfloat16", 2), ("float64", 8)):  # of the rows; everything else is in float32 or wider
        off, on = (_bindings.pooled_cost(bases=bases, dtype=dtype, **sizes) for bases in (0, 3))
        rows, wide = (2 + 6) * 4 * size, max(4, size)
        assert off["forward"]["bytes"] == rows + 2 * 6 * wide  # cosines and lengths
        assert (
            off["backward"]["bytes"] == 2 * rows + 3 * 6 * wide
        )  # rows and their gradients; cosines, lengths, d_cosine
        kept = 2 * 6 * wide  # t·fᵀ, written, and read twice
        assert on["forward"]["bytes"] == off["forward"]["bytes"] + rows + 16 * 5 * wide + 2 * kept
        assert on["backward"]["bytes"] == off["backward"]["bytes"] + kept
        anew = _bindings.pooled_cost(bases=3, dtype=dtype, kept=False, **sizes)
        assert anew["forward"]["bytes"] == on["forward"]["bytes"] - 2 * kept
        assert anew["backward"]["bytes"] == off["backward"]["bytes"]


def test_em_costs_less_and_less_beside_the_pooling() -> None:
    share = []
    for pairs in (64, 128, 512, 2048):
        on, off = (_bindings.pooled_cost(pairs, pairs, 12, 512, bases, 9) for bases in (32, 0))
        share.append(sum(on[part]["flops"] for part in on) / sum(off[part]["flops"] for part in off))
    assert share == sorted(share, reverse=True)
    assert share[-1] < 1.2


@pytest.mark.parametrize(
    ("argument", "value"),
    [("texts", 0), ("videos", 0), ("frames", 0), ("width", 0), ("iters", 0), ("bases", -1), ("dtype", "int8")],
)
def test_pooled_costs_of_impossible_sizes_are_refused(argument: str, value: object) -> None:
    sizes = dict.fromkeys(("texts", "videos", "frames", "width", "bases", "iters"), 4)
    with pytest.raises(ValueError, match=rf'{argument} is "?{value}"?, expected'):
        _bindings.pooled_cost(**sizes | {argument: value})


# ---- EM on a Gram matrix, on CUDA ------------------------------------------------------------------------------------

FIT = {"problems": 1, "width": 512, "bases": 32, "iters": 9}


@pytest.mark.parametrize(
    ("way", "blocks", "rows", "launches"),
    [("auto", 8, 64, 1), ("cluster8", 8, 64, 1), ("cluster16", 16, 32, 1), ("steps", 32, 16, 10)],
)
def test_a_gram_matrix_is_laid_out_as_asked(way: str, blocks: int, rows: int, launches: int) -> None:
    chosen = _bindings.fit_plan(**FIT, way=way)
    assert chosen["way"] == ("cluster8" if way == "auto" else way)
    assert (chosen["blocks"], chosen["rows"], chosen["launches"]) == (blocks, rows, launches)
    assert 0 < chosen["shared"] <= 227 * 1024


@pytest.mark.parametrize(
    ("width", "architecture", "way"),
    [(512, 90, "cluster8"), (513, 90, "cluster16"), (513, 120, "steps"), (769, 90, "steps"), (512, 80, "steps")],
)
def test_by_itself_a_matrix_takes_the_fewest_blocks_that_hold_it(width: int, architecture: int, way: str) -> None:
    assert _bindings.fit_plan(**FIT | {"width": width}, architecture=architecture)["way"] == way


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"way": "sideways"}, 'EMCL_FIT is "sideways"; expected auto, cluster8, cluster16 or steps'),
        ({"way": "cluster16", "architecture": 80}, "EMCL_FIT is cluster16, but clusters need architecture 90, not 80"),
        ({"way": "cluster8", "shared": 101376}, "more than the 101376 bytes of shared memory that a block may have"),
        ({"iters": 0}, "iters is 0, expected at least 1"),
        ({"width": 2**31}, "width is 2147483648, expected at most 1048576"),
        ({"width": 2**62}, "width is 4611686018427387904, expected at most"),
        ({"problems": 2**63 - 1}, "problems is 9223372036854775807, expected at most"),
        ({"bases": 2**62}, "bases is 4611686018427387904, expected at most"),
        ({"iters": 2**62}, "iters is 4611686018427387904, expected at most"),
        ({"shared": -1}, "shared is -1, expected at least 1"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        _bindings.fit_plan(**FIT | changes)
