"""mteb on a task of one's own, with a refiner and without."""

import mteb
import numpy as np
import pytest
import torch
from mteb.models import SentenceTransformerEncoderWrapper
from sentence_transformers import SentenceTransformer
from small_search import OTHER_QUESTIONS, PASSAGES, QUESTIONS, Stories

from emcl_kernels import Refiner
from emcl_kernels.integrations.mteb import RefinedEncoder, compare
from emcl_kernels.integrations.sentence_transformers import with_refiner


def main_score(result: object) -> float:
    return result.task_results[0].scores["test"][0]["main_score"]


def evaluated(model: object, **settings: object) -> float:
    return main_score(mteb.evaluate(model, Stories(), show_progress_bar=False, **({"cache": None} | settings)))


@pytest.fixture(scope="module")
def refiner(minilm: SentenceTransformer) -> Refiner:
    known = minilm.encode_query(OTHER_QUESTIONS)
    return Refiner().fit(known, minilm.encode_document(PASSAGES), text_bank=known)


def test_three_ways_give_the_same_scores(minilm: SentenceTransformer, refiner: Refiner) -> None:
    # Three questions of the split "dev" are evaluated as well, and are left out.
    found = compare(minilm, Stories(), protocol="corpus", query_split="dev", bank="dev", show=False)
    assert found.without["default"]["main_score"] == pytest.approx(evaluated(minilm), abs=1e-5)
    refined = found.refined["default"]["main_score"]
    assert refined == pytest.approx(evaluated(RefinedEncoder(minilm, refiner)), abs=1e-5)
    assert refined == pytest.approx(evaluated(with_refiner(minilm, refiner)), abs=1e-5)
    assert refined > found.without["default"]["main_score"] + 0.02

    # Rows and texts that are given.
    rows = {"queries": minilm.encode_query(OTHER_QUESTIONS), "documents": minilm.encode_document(PASSAGES)}
    texts = {"queries": OTHER_QUESTIONS, "documents": PASSAGES}
    for given in (rows, texts):
        again = compare(minilm, Stories(), protocol="given", bank=given["queries"], show=False, **given)
        assert again.refined["default"]["main_score"] == pytest.approx(refined, abs=1e-5)
        assert again.fitted_to == "rows that were given"
        assert again.bank == f"{len(OTHER_QUESTIONS)} queries that were given"


def test_the_table_says_what_the_map_was_fitted_to(minilm: SentenceTransformer, capsys) -> None:
    found = compare(minilm, Stories(), protocol="evaluated")
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert lines[0].endswith(" on Stories, test")
    assert lines[1] == "refiner fitted to: the evaluated queries and corpus, without their pairs"
    assert lines[2] == "bank: none"
    assert "nDCG@10" in lines[4]
    assert [line.split()[0] for line in lines[5:8]] == ["without", "refined", "gain"]
    without, refined = (scores["default"]["main_score"] for scores in (found.without, found.refined))
    assert lines[7].split()[1] == f"{100 * (refined - without):+.2f}"

    compare(minilm, Stories(), protocol="corpus", query_split="dev", bank="dev")
    printed = capsys.readouterr().out
    assert 'refiner fitted to: the evaluated corpus, and the queries of the split "dev"\n' in printed
    assert 'bank: the queries of the split "dev"\n' in printed


def test_settings_are_those_of_the_refiner_that_is_passed(tower) -> None:
    model = SentenceTransformer(modules=tower(), device="cpu")
    settings = Refiner("none")
    same = compare(model, Stories(), protocol="evaluated", refiner=settings, show=False)
    assert same.refined["default"]["main_score"] == pytest.approx(same.without["default"]["main_score"], abs=1e-6)
    other = compare(model, Stories(), protocol="evaluated", refiner=Refiner("mean"), show=False)
    assert other.refined != same.refined
    with pytest.raises(ValueError, match="not fitted"):
        settings.matrix  # noqa: B018 - it is as it was


def test_each_row_is_encoded_once(minilm: SentenceTransformer) -> None:
    seen = []

    class Counting(SentenceTransformerEncoderWrapper):
        def encode(self, inputs, **kwargs):
            seen.extend(text for batch in inputs for text in batch["text"])
            return super().encode(inputs, **kwargs)

    compare(Counting(minilm), Stories(), protocol="evaluated", show=False)
    assert sorted(seen) == sorted([*QUESTIONS, *PASSAGES])


def test_few_rows_are_warned_of(minilm: SentenceTransformer, capsys) -> None:
    few = Stories()
    few.load_data()
    data = few.dataset["default"]["test"]
    data["queries"], data["corpus"] = data["queries"].select(range(30)), data["corpus"].select(range(30))
    data["relevant_docs"] = {one: data["relevant_docs"][one] for one in data["queries"]["id"]}
    found = compare(minilm, few, protocol="evaluated")
    assert any("fitted to 30 rows" in line for line in found.warnings)
    assert "warning: the map was fitted to 30 rows" in capsys.readouterr().out


def test_results_do_not_mix_in_mtebs_cache(minilm: SentenceTransformer, refiner: Refiner, tmp_path) -> None:
    cache = mteb.ResultCache(cache_path=tmp_path)
    plain = evaluated(minilm, cache=cache)
    refined = evaluated(RefinedEncoder(minilm, refiner), cache=cache)
    without_bank = Refiner().fit(minilm.encode_query(OTHER_QUESTIONS), minilm.encode_document(PASSAGES))
    other = evaluated(RefinedEncoder(minilm, without_bank), cache=cache)
    assert len({plain, refined, other}) == 3
    assert evaluated(minilm, cache=cache) == plain
    assert evaluated(RefinedEncoder(minilm, refiner), cache=cache) == refined

    meta = RefinedEncoder(minilm, refiner).mteb_model_meta
    assert (meta.similarity_fn_name.value, meta.embed_dim) == ("dot", 385)


def test_similarity_is_the_inner_product(minilm: SentenceTransformer, refiner: Refiner) -> None:
    encoder = RefinedEncoder(minilm, refiner)
    first, second = torch.randn(3, 5), np.random.default_rng(0).standard_normal((3, 5), np.float32)
    right = first @ torch.from_numpy(second).T
    torch.testing.assert_close(encoder.similarity(first, second), right)
    torch.testing.assert_close(encoder.similarity_pairwise(first, second), right.diagonal())
    torch.testing.assert_close(encoder.similarity(first[0], second), right[:1])


def test_wrong_arguments(minilm: SentenceTransformer, refiner: Refiner) -> None:
    def refused(match: str, error: type[Exception] = ValueError, **arguments: object) -> None:
        with pytest.raises(error, match=match):
            compare(minilm, Stories(), show=False, **({"protocol": "evaluated"} | arguments))

    refused("protocol is 'all'; expected one of 'evaluated', 'corpus', 'given'", protocol="all")
    refused('query_split is None; it is for protocol="corpus", which needs it', protocol="corpus")
    refused("query_split is 'dev'; it is for protocol=\"corpus\"", query_split="dev")
    refused('queries and documents are for protocol="given"', queries=QUESTIONS)
    refused('queries and documents are for protocol="given"', protocol="given", queries=QUESTIONS)
    refused('bank is "test", the split that is evaluated', bank="test")
    refused('query_split is "test", the split that is evaluated', protocol="corpus", query_split="test")
    refused('Stories has no split "train" of "default", only test, dev', bank="train")
    refused("query rows are a list; expected texts", TypeError, bank=[1, 2])
    refused("text_bank has 3 rows, fewer than num_neighbors = 10", bank=OTHER_QUESTIONS[:3])

    with pytest.raises(TypeError, match="task is a str; expected a retrieval task"):
        compare(minilm, "Stories", protocol="evaluated")
    with pytest.raises(TypeError, match="model is a str; expected an mteb model"):
        compare("minilm", Stories(), protocol="evaluated")
    with pytest.raises(ValueError, match="document_side"):
        RefinedEncoder(minilm, refiner, document_side="text")
    with pytest.raises(ValueError, match="does not say whether rows are queries or documents"):
        RefinedEncoder(minilm, refiner).encode([], task_metadata=Stories.metadata)
