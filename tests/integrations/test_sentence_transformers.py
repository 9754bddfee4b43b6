"""A refiner in a sentence-transformers model: sides, widths, similarity, files, and what is refused."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Router
from small_search import OTHER_QUESTIONS, PASSAGES, QUESTIONS

from emcl_kernels import Refiner
from emcl_kernels.integrations.sentence_transformers import RefinerModule, with_refiner
from emcl_kernels.testing import assert_close


def fitted(model: SentenceTransformer, bank: bool, **settings: object) -> Refiner:
    others = model.encode_query(OTHER_QUESTIONS) if bank else None
    return Refiner(**settings).fit(model.encode_query(QUESTIONS), model.encode_document(PASSAGES), text_bank=others)


@pytest.fixture(params=["minilm", "random weights"])
def model(request: pytest.FixtureRequest) -> SentenceTransformer:
    if request.param == "minilm":
        return request.getfixturevalue("minilm")
    return SentenceTransformer(modules=request.getfixturevalue("tower")(), device="cpu")


@pytest.mark.parametrize("bank", [False, True])
def test_scores_are_those_of_the_refiner(model: SentenceTransformer, bank: bool) -> None:
    before = model.encode_query(QUESTIONS), model.encode_document(PASSAGES)
    refiner = fitted(model, bank)
    better = with_refiner(model, refiner)

    queries, documents = better.encode_query(QUESTIONS), better.encode_document(PASSAGES)
    width = before[0].shape[1] + bank
    assert queries.shape == (len(QUESTIONS), width) == (len(QUESTIONS), better.get_embedding_dimension())
    assert better.similarity_fn_name == ("dot" if bank else "cosine")
    assert_close("scores", better.similarity(queries, documents), refiner.scores(*before), 1e-5)

    # Rows have length one, or one and the last number.
    rows = torch.from_numpy(documents)
    assert_close("length", rows[:, :-1].norm(dim=1) if bank else rows.norm(dim=1), torch.ones(len(rows)))
    if bank:
        assert (queries[:, -1] == 1).all()
        assert (documents[:, -1] < 0).all()

    # The model that was given is as it was.
    assert model.similarity_fn_name == "cosine"
    assert model.get_embedding_dimension() == width - bank
    np.testing.assert_array_equal(model.encode_query(QUESTIONS), before[0])


@pytest.mark.parametrize("bank", [False, True])
def test_a_saved_model_is_the_same(model: SentenceTransformer, bank: bool, tmp_path: Path) -> None:
    better = with_refiner(model, fitted(model, bank))
    better.save_pretrained(str(tmp_path))
    (folder,) = tmp_path.glob("*_RefinerModule")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "refiner.safetensors"]
    assert json.loads((folder / "config.json").read_text(encoding="utf-8")) == {
        "query_side": "text",
        "document_side": "video",
        "task": None,
    }

    loaded = SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu")
    assert loaded.similarity_fn_name == better.similarity_fn_name
    assert loaded.get_embedding_dimension() == better.get_embedding_dimension()
    np.testing.assert_array_equal(loaded.encode_query(QUESTIONS), better.encode_query(QUESTIONS))
    np.testing.assert_array_equal(loaded.encode_document(PASSAGES), better.encode_document(PASSAGES))

    # Again from what was loaded.
    loaded.save_pretrained(str(tmp_path / "again"))
    again = SentenceTransformer(str(tmp_path / "again"), trust_remote_code=True, device="cpu")
    np.testing.assert_array_equal(again.encode_document(PASSAGES), better.encode_document(PASSAGES))


@pytest.mark.parametrize("shared", [False, True], ids=["a module a route", "one module for both"])
def test_two_towers_have_a_refiner_in_each_route(tower, shared: bool, tmp_path: Path) -> None:
    queries, documents = tower(), tower()
    with torch.no_grad():
        for parameter in documents[0].parameters():
            parameter.mul_(1.1)
    plain = SentenceTransformer(modules=[Router.for_query_document(queries, documents)], device="cpu")
    refiner = fitted(plain, bank=True)
    right = refiner.scores(plain.encode_query(QUESTIONS), plain.encode_document(PASSAGES))

    both = RefinerModule(refiner)
    ends = (both, both) if shared else (RefinerModule(refiner, task="query"), RefinerModule(refiner, task="document"))
    router = Router.for_query_document([*queries, ends[0]], [*documents, ends[1]])
    routed = SentenceTransformer(modules=[router], device="cpu")
    after = with_refiner(plain, refiner)
    routed.save_pretrained(str(tmp_path))
    loaded = SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu")
    for model in (routed, after, loaded):
        assert model.similarity_fn_name == "dot"
        assert model.get_embedding_dimension() == 33
        found = model.similarity(model.encode_query(QUESTIONS), model.encode_document(PASSAGES))
        assert_close("scores", found, right, 1e-5)


def test_sides_can_be_changed(minilm: SentenceTransformer) -> None:
    queries, documents = minilm.encode_query(QUESTIONS), minilm.encode_document(PASSAGES)
    refiner = Refiner().fit(documents, queries, video_bank=minilm.encode_query(OTHER_QUESTIONS))
    better = with_refiner(minilm, refiner, query_side="video", document_side="text")
    found = better.similarity(better.encode_query(QUESTIONS), better.encode_document(PASSAGES))
    assert_close("scores", found, refiner.scores(queries, documents, query_side="video"), 1e-5)

    with pytest.raises(ValueError, match='no bank that corrects documents on its side "video"; fit it with text_bank'):
        with_refiner(minilm, refiner)
    with pytest.raises(ValueError, match="query_side is 'query'"):
        with_refiner(minilm, refiner, query_side="query")


def test_it_must_be_known_what_rows_are(minilm: SentenceTransformer) -> None:
    better = with_refiner(minilm, fitted(minilm, bank=False))
    with pytest.raises(ValueError, match="call encode_query or encode_document"):
        better.encode(QUESTIONS)
    np.testing.assert_array_equal(better.encode(QUESTIONS, task="query"), better.encode_query(QUESTIONS))
    with pytest.raises(ValueError, match="task is 'passage'"):
        RefinerModule(fitted(minilm, bank=False), task="passage")


def test_it_never_compares_by_cosine_with_a_bank(minilm: SentenceTransformer, tmp_path: Path) -> None:
    module = RefinerModule(fitted(minilm, bank=True))
    modules = [*minilm.children(), module]
    assert SentenceTransformer(modules=modules).similarity_fn_name == "dot"
    with pytest.raises(ValueError, match="never by cosine"):
        SentenceTransformer(modules=modules, similarity_fn_name="cosine")

    with_refiner(minilm, module.refiner).save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="never by cosine"):
        SentenceTransformer(str(tmp_path), trust_remote_code=True, similarity_fn_name="cosine")
    with pytest.raises(ValueError, match="truncate_dim is 100, which cuts off the last number"):
        SentenceTransformer(str(tmp_path), trust_remote_code=True, truncate_dim=100)


def test_it_is_the_last_module(minilm: SentenceTransformer) -> None:
    module = RefinerModule(fitted(minilm, bank=False))
    with pytest.raises(ValueError, match="must be the last module"):
        SentenceTransformer(modules=[*minilm.children(), module, Normalize()])
    with pytest.raises(ValueError, match="has a refiner already"):
        with_refiner(with_refiner(minilm, module.refiner), module.refiner)


def test_a_bank_that_is_set_later_does_not_reach_the_model(minilm: SentenceTransformer) -> None:
    refiner = fitted(minilm, bank=False)
    better = with_refiner(minilm, refiner)
    before = better.encode_document(PASSAGES)
    refiner.set_bank(minilm.encode_query(OTHER_QUESTIONS))
    np.testing.assert_array_equal(better.encode_document(PASSAGES), before)
    refiner.fit(minilm.encode_query(OTHER_QUESTIONS), minilm.encode_document(PASSAGES))
    np.testing.assert_array_equal(better.encode_document(PASSAGES), before)


def test_gradients_are_refused(tower) -> None:
    model = SentenceTransformer(modules=tower(), device="cpu")
    better = with_refiner(model, fitted(model, bank=False))
    features = better.preprocess(QUESTIONS[:2])
    with pytest.raises(RuntimeError, match="a refiner is for inference"):
        better(features, task="query")
    with torch.no_grad():
        assert better(better.preprocess(QUESTIONS[:2]), task="query")["sentence_embedding"].shape == (2, 32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_leaves_the_map_as_it_is(tower, dtype: torch.dtype) -> None:
    model = SentenceTransformer(modules=tower(), device="cpu").to(dtype)
    queries, documents = (encode(rows, convert_to_tensor=True) for encode, rows in (
        (model.encode_query, QUESTIONS), (model.encode_document, PASSAGES)))  # fmt: skip
    refiner = Refiner().fit(queries, documents, text_bank=queries)
    better = with_refiner(model, refiner).to(dtype)
    found = better.encode_document(PASSAGES, convert_to_tensor=True)
    assert found.dtype == torch.float32
    assert_close("rows", found, refiner.transform_video(documents.float()), 1e-6)


def test_it_computes_where_its_rows_are(tower) -> None:
    # The device "meta" has no numbers, so it stands for one where the map is not yet.
    model = SentenceTransformer(modules=tower(), device="cpu")
    module = RefinerModule(fitted(model, bank=False))
    assert [*module.parameters(), *module.buffers()] == []
    rows = {"sentence_embedding": torch.randn(3, 32)}
    expected = module.forward(dict(rows), task="query")["sentence_embedding"]
    moved = module.to("meta").to("cpu")
    assert_close("rows", moved.forward(dict(rows), task="query")["sentence_embedding"], expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_moves_to_a_gpu_and_back(tower) -> None:
    model = SentenceTransformer(modules=tower(), device="cpu")
    better = with_refiner(model, fitted(model, bank=True))
    expected = torch.from_numpy(better.encode_document(PASSAGES))
    found = better.to("cuda").encode_document(PASSAGES, convert_to_tensor=True)
    assert found.device.type == "cuda"
    assert_close("rows", found.cpu(), expected, 1e-4)
    assert_close("back", torch.from_numpy(better.to("cpu").encode_document(PASSAGES)), expected, 1e-5)


def test_another_process_gets_the_same_model(tower) -> None:
    # encode with several devices sends the model to processes.
    model = SentenceTransformer(modules=tower(), device="cpu")
    better = with_refiner(model, fitted(model, bank=True))
    copied = pickle.loads(pickle.dumps(better))
    np.testing.assert_array_equal(copied.encode_document(PASSAGES), better.encode_document(PASSAGES))


def test_wrong_arguments(minilm: SentenceTransformer, tower, tmp_path: Path) -> None:
    refiner = fitted(minilm, bank=False)
    with pytest.raises(TypeError, match="model is a Linear; expected a SentenceTransformer"):
        with_refiner(torch.nn.Linear(2, 2), refiner)
    with pytest.raises(ValueError, match="not fitted"):
        with_refiner(minilm, Refiner())
    with pytest.raises(ValueError, match="gives rows of 32 numbers and the refiner was fitted to 384"):
        with_refiner(SentenceTransformer(modules=tower(), device="cpu"), refiner)

    # Damaged files.
    with_refiner(minilm, refiner).save_pretrained(str(tmp_path))
    (folder,) = tmp_path.glob("*_RefinerModule")
    (folder / "config.json").write_text('{"query_side": "text"}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"has the settings \['query_side'\]; expected"):
        SentenceTransformer(str(tmp_path), trust_remote_code=True)
    RefinerModule(refiner).save(str(folder))
    (folder / "refiner.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"refiner\.safetensors; save the model again"):
        SentenceTransformer(str(tmp_path), trust_remote_code=True)
