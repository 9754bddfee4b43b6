"""Features, bases and autocast in different dtypes: what is taken, what comes out, and errors that name both."""

import itertools

import pytest
import torch
from torch import Tensor

from emcl_kernels import EMCL, em_fit, em_moments, em_project, em_reconstruct, pooled_similarity
from emcl_kernels.checks import ACCUMULATION
from emcl_kernels.testing import clustered_rows

DTYPES = tuple(ACCUMULATION)
PAIRS = list(itertools.product(DTYPES, DTYPES))
# bfloat16 rounds by 2^-9, and what comes out is rounded once more.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 2e-2}

text, video = clustered_rows(12, 16), clustered_rows(20, 16)
mask = torch.ones(5, 4).bool()


def layer_of(dtype: torch.dtype, gradient: str = "identity") -> EMCL:
    torch.manual_seed(3)
    # bfloat16 has these numbers exactly, so every dtype has the same start.
    layer = EMCL(4, gradient=gradient).double()
    layer.bases.copy_(torch.tensor([0.5, -1.0, 1.5, -0.25]))
    return layer.to(dtype).eval()


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
def test_the_layer_takes_every_pair_and_gives_each_its_dtype(
    dtypes: tuple[torch.dtype, torch.dtype], autocast: torch.dtype | None
) -> None:
    given = [rows.to(dtype).requires_grad_() for rows, dtype in zip((text, video), dtypes, strict=True)]
    expected = layer_of(torch.float64)(*(rows.detach().double() for rows in given))
    for of_bases in DTYPES:
        with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
            found = layer_of(of_bases)(*given)
        for rows, wanted, feature in zip(found, expected, given, strict=True):
            assert rows.dtype == feature.dtype
            error = torch.linalg.vector_norm(rows.double() - wanted) / torch.linalg.vector_norm(wanted)
            assert error < TOLERANCE[feature.dtype], of_bases
        gradients = torch.autograd.grad([rows.float().sum() for rows in found], given)
        assert [gradient.dtype for gradient in gradients] == list(dtypes)


@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
def test_em_project_takes_a_start_of_any_dtype(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    y, mean_bases = em_project(text.to(dtypes[0]), torch.tensor([0.5, -1.0]).to(dtypes[1]))
    assert (y.dtype, mean_bases.dtype) == (dtypes[0], ACCUMULATION[dtypes[0]])


@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
def test_the_pooled_similarity_takes_one_dtype_and_two_under_autocast(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    texts, frames = text.to(dtypes[0]), video.view(5, 4, 16).to(dtypes[1])
    for of_bases in DTYPES:
        layer = layer_of(of_bases)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer.pooled_similarity(texts, frames, mask).dtype == torch.promote_types(*dtypes)
        if dtypes[0] == dtypes[1]:
            assert layer.pooled_similarity(texts, frames, mask).dtype == dtypes[0]
            continue
        with pytest.raises(TypeError, match=f"frames is {dtypes[1]} but text is {dtypes[0]}; .*autocast"):
            layer.pooled_similarity(texts, frames, mask)
        with pytest.raises(TypeError, match=f"frames is {dtypes[1]} but text is {dtypes[0]}"):
            pooled_similarity(texts, frames, mask, layer.bases)


@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
def test_fit_and_reconstruct_name_both_dtypes(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    rows, of_map = text.to(dtypes[0]), dtypes[1]
    gram, colsum = em_moments(rows)
    logits = (colsum.unsqueeze(-1) * torch.tensor([0.5, -1.0], dtype=colsum.dtype)).to(of_map)
    if of_map != gram.dtype:
        with pytest.raises(TypeError, match=f"logits is {of_map} but gram is {gram.dtype}"):
            em_fit(gram, logits)

    fitted: list[Tensor] = [part.to(of_map) for part in em_fit(gram, logits.to(gram.dtype))]
    if of_map == ACCUMULATION[dtypes[0]]:
        assert em_reconstruct(rows, *fitted).dtype == dtypes[0]
        return
    with pytest.raises(TypeError, match=f"responsibilities is {of_map}; expected {gram.dtype} for x in {dtypes[0]}"):
        em_reconstruct(rows, *fitted)


def test_bases_in_bfloat16_lose_small_moves() -> None:
    """Why the layer is to stay in float32."""
    wide, narrow = EMCL(4, momentum=0.999), EMCL(4, momentum=0.999).bfloat16()
    narrow.bases.copy_(wide.bases)
    before = wide.bases.clone()
    for layer in (wide, narrow):
        layer(text.float())
    assert not torch.equal(wide.bases, before)
    assert torch.equal(narrow.bases.float(), before)
