"""Any mteb model with and without a refiner, on retrieval tasks (docs/search.md)."""

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emcl_kernels import Refiner
from emcl_kernels.integrations.missing import needs
from emcl_kernels.integrations.rows import has_bank, refined, require_sides

try:
    from datasets import Dataset
    from mteb._create_dataloaders import create_dataloader
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.models import EncoderProtocol, ModelMeta, SentenceTransformerEncoderWrapper
    from mteb.models.model_meta import ScoringFunction
    from mteb.types import PromptType
except ImportError as error:
    raise needs(__name__, "mteb, 2.26 or later", "mteb") from error

PROTOCOLS = {
    "evaluated": "the evaluated queries and corpus, without their pairs",
    "corpus": 'the evaluated corpus, and the queries of the split "{}"',
    "given": "rows that were given",
}
"""What the map is fitted to, by the name of the protocol."""
SHOWN = {
    "main score": "main_score",
    "nDCG@10": "ndcg_at_10",
    "R@1": "recall_at_1",
    "R@10": "recall_at_10",
    "MRR@10": "mrr_at_10",
}
"""Columns of a table, and the names that mteb has for them."""


class RefinedEncoder:
    """An mteb model whose rows are refined: pass it to `mteb.evaluate` as any other.

    Its scores are kept apart from the model's own in mteb's cache, and from those of another refiner.

    Args:
        model: an mteb encoder, or a SentenceTransformer.
        refiner: fitted to rows of the model.
        query_side: "text" or "video": the side of the refiner's `fit` that queries belong to.
        document_side: the same of documents.

    Raises:
        TypeError: the model is none that encodes.
        ValueError: nothing was fitted, there is no such side, or the bank does not correct such documents.
    """

    def __init__(
        self,
        model: Any,
        refiner: Refiner,
        *,
        query_side: str = "text",
        document_side: str = "video",
    ) -> None:
        require_sides(refiner, query_side, document_side)
        self._model = _encoder(model)
        self._refiner = copy.copy(refiner)
        self._sides = {"query": query_side, "document": document_side}

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """The model's, with the refiner as a setting, and the inner product."""
        of_model = self._model.mteb_model_meta
        settings = {**(of_model.experiment_kwargs or {}), "refiner": _fingerprint(self._refiner)}
        width = len(self._refiner.offset_text) + has_bank(self._refiner)
        return of_model.model_copy(
            update={
                "loader": None,
                "embed_dim": width,
                "similarity_fn_name": ScoringFunction.DOT_PRODUCT,
                "experiment_kwargs": settings,
            }
        )

    def encode(self, inputs: Any, *, task_metadata: Any, prompt_type: Any = None, **kwargs: Any) -> Tensor:
        """Refined rows of the model.

        Args:
            inputs: batches of texts, images or videos.
            task_metadata: of the task.
            prompt_type: query or document.
            kwargs: what mteb has for the model besides.

        Returns:
            `[N, D]` of length one, or `[N, D + 1]` with a bank.

        Raises:
            ValueError: the task does not say which rows are queries and which are documents.
        """
        if prompt_type is None:
            raise ValueError(
                f"{task_metadata.name} does not say whether rows are queries or documents, and a refiner must know; it "
                "is for retrieval tasks"
            )
        task = PromptType(prompt_type).value
        rows = self._model.encode(inputs, task_metadata=task_metadata, prompt_type=prompt_type, **kwargs)
        return refined(self._refiner, rows, self._sides[task], task)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Inner products: rows have length one, or one more number.

        Args:
            embeddings1: `[N, E]` or `[E]`.
            embeddings2: `[M, E]` or `[E]`.

        Returns:
            `[N, M]`.
        """
        first, second = (torch.atleast_2d(torch.as_tensor(rows)) for rows in (embeddings1, embeddings2))
        return first @ second.to(first.device).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Inner products of rows with rows.

        Args:
            embeddings1: `[N, E]` or `[E]`.
            embeddings2: `[N, E]` or `[E]`.

        Returns:
            `[N]`.
        """
        first, second = (torch.atleast_2d(torch.as_tensor(rows)) for rows in (embeddings1, embeddings2))
        return (first * second.to(first.device)).sum(-1)


@dataclass(frozen=True)
class Comparison:
    """A model's scores on one split of a task, without a refiner and with it."""

    task: str
    split: str
    model: str
    fitted_to: str
    """What the map was fitted to, in words."""
    bank: str
    """What the bank was made of, in words."""
    without: dict[str, dict[str, float]]
    """mteb's scores by subset and name; of a task without subsets, the one subset is "default"."""
    refined: dict[str, dict[str, float]]
    warnings: list[str]
    """Reasons not to refine, as `Refiner.diagnose` finds them."""

    @property
    def table(self) -> str:
        """Both results side by side, with what they are of."""
        shown = {title: name for title, name in SHOWN.items() if all(name in row for row in self.without.values())}
        lines = [
            f"{self.model} on {self.task}, {self.split}",
            f"refiner fitted to: {self.fitted_to}",
            f"bank: {self.bank}",
            "",
            " ".join([f"{'':24}", *(f"{title:>11}" for title in shown)]),
        ]
        for subset, before in self.without.items():
            after = self.refined[subset]
            gain = {name: after[name] - before[name] for name in shown.values()}

            prefix = "" if list(self.without) == ["default"] else f"{subset}: "
            for label, row, form in (
                ("without", before, "11.2f"),
                ("refined", after, "11.2f"),
                ("gain", gain, "+11.2f"),
            ):
                cells = (f"{100 * row[name]:{form}}" for name in shown.values())
                lines.append(" ".join([f"{prefix + label:24.24}", *cells]))
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table


def compare(
    model: Any,
    task: Any,
    *,
    protocol: str,
    split: str = "test",
    query_split: str | None = None,
    queries: Any = None,
    documents: Any = None,
    bank: Any = None,
    refiner: Refiner | None = None,
    encode_kwargs: Mapping[str, Any] | None = None,
    show: bool = True,
) -> Comparison:
    """Evaluate a model on a retrieval task without a refiner and with it, and print both.

    Each query and document is encoded once. The rows of a subset are in memory, since the map is fitted to all of them.
    The map of a subset is fitted to rows of this subset.

    Args:
        model: an mteb encoder, or a SentenceTransformer.
        task: a retrieval task of mteb, or of your own.
        protocol: what the map is fitted to. "evaluated": the queries and the corpus that are evaluated, without their
            pairs: honest where all queries are known beforehand, and else the most that can be hoped for. "corpus": the
            corpus that is evaluated, and the queries of `query_split`. "given": `queries` and `documents`.
        split: that is evaluated.
        query_split: for "corpus", a split of the task that is not evaluated, such as "train" or "dev".
        queries: for "given": texts, or rows `[N, D]` that the model gave.
        documents: for "given": texts, or rows `[M, D]`.
        bank: queries that are known beforehand and are not evaluated: a split of the task, texts, or rows `[B, D]`.
            Those of a split that are evaluated as well are left out. None: no bank.
        refiner: one with the settings to use; it is not changed. None: `Refiner()`.
        encode_kwargs: for the model's `encode`, such as `{"batch_size": 64}`.
        show: whether to print the table.

    Returns:
        Both results, and what the map and the bank were made of.

    Raises:
        TypeError: the model does not encode, or the task is no retrieval task.
        ValueError: there is no such protocol or split; arguments are of another protocol; the split of the bank or of
            the queries is the one that is evaluated; or as for `Refiner.fit`.
    """
    if not isinstance(task, AbsTaskRetrieval):
        raise TypeError(f"task is a {type(task).__name__}; expected a retrieval task of mteb, an AbsTaskRetrieval")
    _require_protocol(protocol, split, query_split, queries, documents, bank)
    rows = _Rows(_encoder(model), task, split, {"batch_size": 32, **(encode_kwargs or {})})

    without = {}
    with_refiner = {}
    warnings = []
    for subset in rows.subsets():
        encoded = rows.encoded(subset)

        # Fit. Queries are the refiner's texts, documents its videos, whatever they are.
        fit_queries = encoded.rows["query"]
        fit_documents = encoded.rows["document"]
        if protocol == "corpus":
            fit_queries = rows.of_queries(query_split, subset)
        elif protocol == "given":
            fit_queries = rows.of(queries, "query", subset)
            fit_documents = rows.of(documents, "document", subset)
        of_bank = None
        if bank is not None:
            of_bank = rows.of_queries(bank, subset) if isinstance(bank, str) else rows.of(bank, "query", subset)
        fitted = copy.copy(refiner or Refiner()).fit(fit_queries, fit_documents, text_bank=of_bank)

        # Evaluate the same rows twice.
        without[subset] = rows.scores(encoded, subset)
        with_refiner[subset] = rows.scores(RefinedEncoder(encoded, fitted), subset)
        warnings += [line for line in rows.reasons_not_to(fitted, encoded, subset) if line not in warnings]

    comparison = Comparison(
        task=task.metadata.name,
        split=split,
        model=str(rows.model.mteb_model_meta.name),
        fitted_to=PROTOCOLS[protocol].format(query_split),
        bank=_said_of(bank),
        without=without,
        refined=with_refiner,
        warnings=warnings,
    )
    if show:
        print(comparison)
    return comparison


# ---- inside ----------------------------------------------------------------------------------------------------------


class _Encoded:
    """What a model has made of the rows of one subset, as a model of its own: mteb finds its rows by their ids."""

    def __init__(self, model: Any, rows: dict[str, Any], ids: dict[str, Sequence[str]]) -> None:
        self.mteb_model_meta = model.mteb_model_meta
        self.similarity = model.similarity
        self.similarity_pairwise = model.similarity_pairwise
        self.rows = rows
        self._places = {task: {one: place for place, one in enumerate(found)} for task, found in ids.items()}

    def encode(self, inputs: Any, *, prompt_type: Any = None, **kwargs: Any) -> Any:
        task = PromptType(prompt_type).value
        places = [self._places[task][one] for one in inputs.dataset["id"]]
        return self.rows[task][places]


class _Rows:
    """The rows of a task as a model encodes them."""

    def __init__(self, model: Any, task: AbsTaskRetrieval, split: str, encode_kwargs: dict[str, Any]) -> None:
        self.model = model
        self._task = task
        self._split = split
        self._encode_kwargs = encode_kwargs
        if not task.data_loaded:
            task.load_data()
        task.convert_v1_dataset_format_to_v2(num_proc=None)

    def subsets(self) -> list[str]:
        return list(self._task.hf_subsets or self._task.dataset)

    def encoded(self, subset: str) -> _Encoded:
        data = self._data(subset, self._split)
        parts = {"query": data["queries"], "document": data["corpus"]}
        rows = {task: self._encode(part, task, subset, self._split) for task, part in parts.items()}
        return _Encoded(self.model, rows, {task: list(part["id"]) for task, part in parts.items()})

    def of_queries(self, split: str | None, subset: str) -> Any:
        """Queries of another split, without those that are evaluated."""
        assert split is not None
        evaluated = self._data(subset, self._split)["queries"]
        others = self._data(subset, split)["queries"]
        known = {*evaluated["id"]}
        contents = {*evaluated["text"]} if "text" in evaluated.column_names else set()
        texts = others["text"] if "text" in others.column_names else [None] * len(others)
        kept = [
            place
            for place, (one, text) in enumerate(zip(others["id"], texts, strict=True))
            if one not in known and text not in contents
        ]
        if not kept:
            raise ValueError(
                f'no query of the split "{split}" is another than those of "{self._split}"; pass other queries'
            )
        return self._encode(others.select(kept), "query", subset, split)

    def of(self, given: Any, task: str, subset: str) -> Any:
        """Rows that were given, or that the model makes of texts."""
        if isinstance(given, np.ndarray | Tensor):
            return given
        texts = list(given)
        if not texts or not all(isinstance(text, str) for text in texts):
            raise TypeError(
                f"{task} rows are a {type(given).__name__}; expected texts, or an array of rows of the model"
            )
        part = Dataset.from_dict({"id": [str(place) for place in range(len(texts))], "text": texts})
        return self._encode(part, task, subset, self._split)

    def scores(self, encoder: Any, subset: str) -> dict[str, float]:
        found = self._task.evaluate(
            encoder,
            self._split,
            subsets_to_run=[subset],
            encode_kwargs={**self._encode_kwargs, "show_progress_bar": False},
        )
        return {name: float(value) for name, value in found[subset].items() if isinstance(value, float | int)}

    def reasons_not_to(self, fitted: Refiner, encoded: _Encoded, subset: str) -> list[str]:
        if min(map(len, encoded.rows.values())) < 2:
            return []
        diagnosis = fitted.diagnose(encoded.rows["query"], encoded.rows["document"])
        named = "" if subset == "default" else f"{subset}: "
        return [named + _of_a_search(line) for line in diagnosis.warnings]

    def _data(self, subset: str, split: str) -> Any:
        of_subset = self._task.dataset.get(subset, {})
        if split not in of_subset:
            known = ", ".join(of_subset) or "none"
            raise ValueError(
                f'{self._task.metadata.name} has no split "{split}" of "{subset}", only {known}; name it in '
                "eval_splits of mteb.get_task, or pass texts or rows"
            )
        return of_subset[split]

    def _encode(self, part: Any, task: str, subset: str, split: str) -> Any:
        metadata = self._task.metadata
        prompt_type = PromptType(task)
        batches = create_dataloader(
            part, task_metadata=metadata, prompt_type=prompt_type, batch_size=self._encode_kwargs["batch_size"]
        )
        return self.model.encode(
            batches,
            task_metadata=metadata,
            hf_split=split,
            hf_subset=subset,
            prompt_type=prompt_type,
            **self._encode_kwargs,
        )


def _encoder(model: Any) -> Any:
    """The model as mteb calls it."""
    if isinstance(model, EncoderProtocol) and hasattr(model, "mteb_model_meta"):
        return model
    from sentence_transformers import SentenceTransformer

    if not isinstance(model, SentenceTransformer):
        raise TypeError(
            f"model is a {type(model).__name__}; expected an mteb model that encodes, such as mteb.get_model gives, or "
            "a SentenceTransformer"
        )
    return SentenceTransformerEncoderWrapper(model)


def _require_protocol(
    protocol: str, split: str, query_split: str | None, queries: Any, documents: Any, bank: Any
) -> None:
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol is {protocol!r}; expected one of {', '.join(map(repr, PROTOCOLS))}")
    if (protocol == "corpus") != (query_split is not None):
        raise ValueError(f'query_split is {query_split!r}; it is for protocol="corpus", which needs it')
    if {queries is None, documents is None} != {protocol != "given"}:
        raise ValueError('queries and documents are for protocol="given", which needs both')
    for name, of_split in {"query_split": query_split, "bank": bank}.items():
        if isinstance(of_split, str) and of_split == split:
            raise ValueError(
                f'{name} is "{split}", the split that is evaluated; pass another, whose queries are known beforehand'
            )


def _said_of(bank: Any) -> str:
    if bank is None:
        return "none"
    return f'the queries of the split "{bank}"' if isinstance(bank, str) else f"{len(bank)} queries that were given"


def _of_a_search(warning: str) -> str:
    """A warning of `diagnose`, whose texts are queries here and whose videos are documents."""
    return warning.replace("text→video", "query→document").replace("video→text", "document→query")


def _fingerprint(refiner: Refiner) -> str:
    """A few letters that another map, another bank or another setting would not have."""
    found = hashlib.sha256(repr(refiner).encode())
    tensors = [refiner.matrix, refiner.offset_text, refiner.offset_video, refiner.bank("text"), refiner.bank("video")]
    for tensor in tensors:
        found.update(b"none" if tensor is None else tensor.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:12]
