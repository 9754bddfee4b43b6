"""A bank of other queries: one more number an item, exact, in blocks, and the same through every way of searching."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from emcl_kernels import Refiner
from emcl_kernels.refine import bank as banks
from emcl_kernels.refine import hubness
from emcl_kernels.refine import nearest as blocks
from emcl_kernels.testing import assert_close, clustered_rows


def sides(texts: int = 41, videos: int = 63, width: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    return clustered_rows(texts, width) + 0.3, clustered_rows(videos, width) - 0.2


def fitted(**settings: object) -> Refiner:
    return Refiner(**settings).fit(*sides(), text_bank=clustered_rows(130, 24) + 0.3)


def by_formula(refiner: Refiner, query: torch.Tensor, gallery: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    """cos(query, item) − α · mean of the item's k largest cosines with the bank, of refined rows, in float64."""
    plain = Refiner(refiner.map, normalize=refiner.normalize)
    plain._map = refiner._map
    plain._of_rows = {}
    query, bank = (normalize(plain.transform_text(x.double()), dim=-1) for x in (query, bank))
    gallery = normalize(plain.transform_video(gallery.double()), dim=-1)
    nearness = (gallery @ bank.T).topk(refiner.num_neighbors, dim=1).values.mean(1)
    return query @ gallery.T - refiner.bank_weight * nearness


@pytest.mark.parametrize("map", ["whitening", "em", "mean", "none"])
@pytest.mark.parametrize(("neighbors", "weight"), [(10, 0.5), (1, 1.0), (128, 0.75)])
def test_scores_are_the_formula(map, neighbors, weight):
    text, video = sides(width=64)
    bank = clustered_rows(130, 64) + 0.3
    refiner = Refiner(map, num_neighbors=neighbors, bank_weight=weight).fit(text, video, text_bank=bank)
    query, gallery = torch.randn(7, 64), torch.randn(41, 64)
    right = by_formula(refiner, query, gallery, bank).float()

    assert_close("scores", refiner.scores(query, gallery), right, 1e-6)
    vectors = refiner.transform_text(query), refiner.transform_video(gallery)
    assert [rows.shape[1] for rows in vectors] == [65, 65]
    assert_close("inner products", vectors[0] @ vectors[1].T, right, 1e-6)
    assert_close("queries end in one", vectors[0][:, -1], torch.ones(7))
    assert_close("length one", vectors[1][:, :-1].norm(dim=-1), torch.ones(41))


def test_by_hand():
    # Nothing is refined. The bank has two queries on the first axis and one on the second; two nearest count.
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    bank = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    refiner = Refiner("none", num_neighbors=2, bank_weight=0.5).fit(rows, rows, text_bank=bank)
    assert refiner.transform_video(rows).tolist() == [[1.0, 0.0, -0.5], [0.0, 1.0, -0.25]]
    assert refiner.transform_text(rows).tolist() == [[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]
    assert refiner.scores(rows, rows).tolist() == [[0.5, -0.25], [-0.5, 0.75]]


def test_texts_as_the_gallery_and_both_banks():
    text, video = sides()
    refiner = Refiner(num_neighbors=3).fit(text, video, video_bank=video[:20])
    turned = Refiner(num_neighbors=3).fit(video, text, text_bank=video[:20])
    assert_close("turned round", refiner.scores(video, text, query_side="video"), turned.scores(video, text))
    assert_close("vectors", refiner.transform_text(text), turned.transform_video(text))
    assert not refiner.serves("video")

    both = Refiner(num_neighbors=3).fit(text, video, text_bank=text[:20], video_bank=video[:20])
    assert_close("texts", both.transform_text(text, role="gallery"), refiner.transform_text(text))
    assert torch.equal(both.transform_text(text)[:, -1], torch.ones(len(text)).double())
    assert torch.equal(both.transform_video(video, role="query")[:, -1], torch.ones(len(video)).double())
    assert both.serves("text")
    assert both.serves("video")


def test_a_query_by_example_searches_the_gallery_of_its_own_side():
    refiner = fitted()
    gallery = torch.randn(41, 24)
    example = refiner.transform_video(gallery[:1], role="query")
    scores = example @ refiner.transform_video(gallery).T
    plain = normalize(refiner.transform_video(gallery)[:, :-1], dim=-1)
    assert_close("scores", scores, plain[:1] @ plain.T + refiner.transform_video(gallery)[:, -1], 1e-6)


@pytest.mark.parametrize("query_side", ["text", "video"])
def test_one_gallery_of_texts_and_videos_is_corrected_by_the_bank_of_its_queries(query_side):
    text, video = sides()
    bank = clustered_rows(130, 24)
    refiner = Refiner().fit(text, video, **{f"{query_side}_bank": bank})
    transforms = {"text": refiner.transform_text, "video": refiner.transform_video}
    query = torch.randn(7, 24).to(text.dtype)
    items = [
        transforms[side](rows, role="gallery", query_side=query_side)
        for side, rows in (("text", text), ("video", video))
    ]
    found = transforms[query_side](query, role="query") @ torch.cat(items).T

    plain = Refiner().fit(text, video)
    unit = {side: lambda rows, of=side: normalize(getattr(plain, f"transform_{of}")(rows.double()), dim=-1)
            for side in transforms}  # fmt: skip
    gallery = torch.cat([unit["text"](text), unit["video"](video)])
    nearness = (gallery @ unit[query_side](bank).T).topk(10, dim=1).values.mean(1)
    assert_close("scores", found, unit[query_side](query) @ gallery.T - 0.5 * nearness, 1e-6)

    # The rest of the gallery is what it is without the other side in it, and naming its queries makes it one.
    other = "video" if query_side == "text" else "text"
    rows = {"text": text, "video": video}
    assert torch.equal(items[list(rows).index(other)], transforms[other](rows[other]))
    assert torch.equal(
        items[list(rows).index(query_side)], transforms[query_side](rows[query_side], query_side=query_side)
    )


@pytest.mark.parametrize("size", [1, 7, 64])
def test_no_size_of_blocks_changes_a_bit(size, monkeypatch):
    refiner = fitted()
    gallery = torch.randn(130, 24)
    whole = refiner.transform_video(gallery)
    monkeypatch.setattr(blocks, "BLOCK", size)
    monkeypatch.setattr(blocks, "BLOCK_SCORES", 8 * size)
    monkeypatch.setattr(banks, "CHUNK_NUMBERS", 24 * 16 * size)
    assert torch.equal(refiner.transform_video(gallery), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_an_item_alone_has_the_bits_it_has_in_a_batch(dtype):
    refiner = fitted()
    gallery = torch.randn(130, 24).to(dtype)
    whole = refiner.transform_video(gallery)
    assert whole.dtype == dtype
    assert torch.equal(torch.cat([refiner.transform_video(row[None]) for row in gallery]), whole)


def exact_mean(row: torch.Tensor, bank: torch.Tensor, neighbors: int) -> float:
    """Mean of the largest inner products, added up without rounding."""
    products = sorted((math.fsum((row * other).tolist()) for other in bank.double()), reverse=True)
    return math.fsum(products[:neighbors]) / neighbors


@pytest.mark.parametrize("width", [24, 512])
def test_nearness_is_exact(width):
    # The rows of both have few digits, so that no product and no sum of them is rounded in float64.
    rows, others = (banks.on_grid(torch.randn(count, width, dtype=torch.float64)) for count in (7, 130))
    found = banks.Bank(others.float(), 10).nearness(rows)
    for nearness, row in zip(found.tolist(), rows, strict=True):
        assert nearness == pytest.approx(exact_mean(row, others, 10), rel=2e-16, abs=0)


def test_rows_of_the_bank_that_float32_cannot_tell_apart():
    # Sixteen rows whose products with the item differ by less than float32 can tell; ten of them count.
    item = banks.on_grid(torch.ones(1, 64, dtype=torch.float64))
    near = item.repeat(16, 1)
    near[torch.arange(16), torch.arange(16)] += banks.GRID * torch.arange(16)
    others = torch.cat([near[torch.randperm(16)], -item.repeat(40, 1)]).float()
    assert len(set((item.float() @ near.float().T).flatten().tolist())) < 16
    found = float(banks.Bank(others, 10).nearness(item))
    assert found == pytest.approx(exact_mean(item[0], others, 10), rel=2e-16, abs=0)


def test_equal_rows_of_the_bank_change_nothing():
    text, video = sides()
    bank = torch.cat([clustered_rows(1, 24)] * 90 + [clustered_rows(40, 24)]).float()
    refiner = Refiner().fit(text, video, text_bank=bank)
    gallery = torch.randn(63, 24)
    assert torch.equal(
        torch.cat([refiner.transform_video(row[None]) for row in gallery]), refiner.transform_video(gallery)
    )


def test_a_bank_can_be_replaced_and_taken_out():
    _, video = sides()
    refiner = fitted()
    first = refiner.transform_video(video)
    bank = clustered_rows(50, 24)
    second = refiner.set_bank(bank).transform_video(video)
    assert torch.equal(first[:, :-1], second[:, :-1])
    assert not torch.equal(first[:, -1], second[:, -1])
    assert refiner.bank("text").shape == (50, 24)
    assert refiner.bank("video") is None
    assert refiner.set_bank().transform_video(video).shape == video.shape


def test_rows_are_not_added_beside_a_bank():
    refiner = fitted()
    text, video = sides()
    message = "there is a bank, which was refined by the map as it is; call set_bank"
    with pytest.raises(ValueError, match=message):
        refiner.partial_fit(text, video)
    with pytest.raises(ValueError, match="rows of 1 of 1 processes were refused") as caught:
        refiner.all_reduce(lambda vector: vector)
    assert message in str(caught.value.__cause__)
    refiner.set_bank().partial_fit(text, video)


def test_a_bank_that_is_refused_leaves_the_one_there_was():
    refiner = fitted()
    before = refiner.bank("text")
    with pytest.raises(ValueError, match="video_bank has 3 rows, fewer than num_neighbors = 10"):
        refiner.set_bank(torch.randn(50, 24), torch.randn(3, 24))
    assert torch.equal(refiner.bank("text"), before)


def test_a_file_holds_the_bank(tmp_path):
    refiner = fitted(num_neighbors=5, bank_weight=0.75)
    refiner.save(tmp_path / "map")
    loaded = Refiner.load(tmp_path / "map")
    gallery = torch.randn(41, 24)
    assert torch.equal(loaded.transform_video(gallery), refiner.transform_video(gallery))
    assert torch.equal(loaded.transform_text(gallery), refiner.transform_text(gallery))
    assert loaded.set_bank(torch.randn(20, 24)).transform_video(gallery).shape == (41, 25)


@pytest.mark.parametrize("normalize_rows", [True, False])
def test_layer_and_model_are_for_queries(normalize_rows, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    refiner = fitted(normalize=normalize_rows)
    query = 3 * torch.randn(41, 24)
    right = refiner.transform_text(query)
    assert_close("layer", refiner.to_linear("text")(query).detach(), right)
    refiner.to_onnx(tmp_path / "map.onnx", "text")
    session = onnxruntime.InferenceSession(tmp_path / "map.onnx", providers=["CPUExecutionProvider"])
    for rows in (query, query[:1]):
        found = torch.from_numpy(session.run(None, {"features": rows.numpy()})[0])
        assert_close("model", found, refiner.transform_text(rows))


def test_a_search_in_an_index_of_ones_own():
    refiner = fitted()
    bank = clustered_rows(130, 24) + 0.3
    rows = refiner.set_bank(bank).bank("text").numpy()
    asked = []

    def search(part: np.ndarray, count: int) -> np.ndarray:
        asked.append(part.shape)
        return -np.sort(-(part @ rows.T), axis=1)[:, :count]

    gallery = torch.randn(41, 24)
    right = refiner.transform_video(gallery)
    found = refiner.set_bank(bank, search_text=search).transform_video(gallery)
    assert_close("vectors", found, right, 1e-6)
    assert asked == [(41, 24)]

    refiner.set_bank(bank, search_text=lambda part, count: part[:, :3])
    with pytest.raises(ValueError, match=r"search gave an array of shape \[41, 3\] for 41 rows and k = 10"):
        refiner.transform_video(gallery)
    with pytest.raises(ValueError, match="search_video was given without video_bank"):
        refiner.set_bank(bank, search_video=search)


def test_numpy_and_mapped_files(tmp_path):
    refiner = fitted()
    gallery = np.random.default_rng(0).normal(size=(41, 24)).astype(np.float32)
    out = np.lib.format.open_memmap(tmp_path / "out.npy", mode="w+", dtype=np.float32, shape=(41, 25))
    assert refiner.transform_video(gallery, out) is out
    assert np.array_equal(out, refiner.transform_video(gallery))
    with pytest.raises(ValueError, match=r"out has shape \[41, 24\] but video has shape \[41, 24\]; pass \[41, 25\]"):
        refiner.transform_video(gallery, np.empty((41, 24), np.float32))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.transform_text(torch.zeros(1, 24), role="both"), "role is 'both'; expected"),
        (
            lambda r: r.transform_text(torch.zeros(1, 24), role="gallery"),
            "texts as a gallery that videos search are corrected by a bank of videos",
        ),
        (lambda r: r.scores(torch.zeros(1, 24), torch.zeros(1, 24), query_side="video"), "texts as a gallery"),
        (lambda r: r.scores(torch.zeros(1, 24), torch.zeros(1, 24), query_side="sound"), 'side is "sound"'),
        (lambda r: r.transform_text(torch.zeros(1, 24), query_side="sound"), "query_side is 'sound'; expected"),
        (
            lambda r: r.transform_text(torch.zeros(1, 24), role="query", query_side="text"),
            "query_side says which queries search a gallery; leave it out, or pass role=.gallery",
        ),
        (
            lambda r: r.transform_video(torch.zeros(1, 24), query_side="video"),
            "corrected by a bank of videos, and there is none; pass video_bank",
        ),
        (lambda r: r.bank("sound"), 'side is "sound"'),
        (lambda r: r.set_bank(torch.zeros(20, 23)), r"text_bank has shape \[20, 23\] but the fitted map is 24 wide"),
        (lambda r: r.set_bank(torch.full((20, 24), torch.nan)), "text_bank holds NaN or infinite values"),
        (lambda r: Refiner().set_bank(torch.zeros(20, 24)), "this Refiner is not fitted"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(fitted())


def test_hubness_is_the_skewness_of_how_often_items_are_near():
    # Of four items the first is nearest to all three queries: counts 3, 0, 0, 0.
    query = torch.eye(4)[[0, 0, 0]]
    counts = np.array([3.0, 0.0, 0.0, 0.0])
    expected = float(((counts - counts.mean()) ** 3).mean() / counts.std() ** 3)
    assert hubness(query, torch.eye(4), neighbors=1) == pytest.approx(expected)
    assert hubness(torch.eye(4), torch.eye(4), neighbors=1) == 0.0
    with pytest.raises(ValueError, match="hubness is of 4 queries and 1 items"):
        hubness(torch.eye(4), torch.eye(4)[:1])


def test_a_diagnosis_warns_of_few_rows_and_of_hubs():
    text, video = sides(texts=400, videos=300)
    good = Refiner().fit(text, video).diagnose(text, video)
    assert good.rows == 300
    assert set(good.hubness_before) == set(good.hubness_after) == {"text→video", "video→text"}
    assert good.warnings == []

    # A weight turned round adds what all rows have in common: it makes hubs.
    from emcl_kernels.refine import EM

    bad = Refiner(EM(num_bases=5, weight=6.0, mean_share=-3.0)).fit(text, video).diagnose(text, video)
    assert any("hubness rises from" in sentence for sentence in bad.warnings)
    few = Refiner().fit(text[:49], video).diagnose(text, video)
    assert [sentence for sentence in few.warnings if "the map was fitted to 49 rows" in sentence]
    some = Refiner().fit(text, video, text_bank=text[:50]).diagnose(text, video, max_rows=100)
    assert set(some.hubness_after) == {"text→video"}
