"""A refiner as the last module of a sentence-transformers model: `with_refiner(model, refiner)` (docs/search.md)."""

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from emcl_kernels import Refiner
from emcl_kernels.integrations.missing import needs
from emcl_kernels.integrations.rows import TASKS, has_bank, refined, require_sides

try:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Module, Router
except ImportError as error:
    raise needs(__name__, "sentence-transformers, 6.0 or later", "sentence-transformers") from error

ROWS = "sentence_embedding"
HUB = ("token", "cache_folder", "revision", "local_files_only")
"""Arguments of `load` that say how to reach the hub."""


class RefinerModule(Module):
    """Refines `sentence_embedding`, to rows of length one in float32; with a bank, their last number is behind them.

    Which side of the refiner a row is on depends on whether it is a query or a document. `encode_query` and
    `encode_document` say so, with or without a Router.

    It is for inference: the map is fitted, not trained. It has neither parameters nor buffers, so `half()` leaves its
    precision alone, and it computes on the device of the rows that come.

    Args:
        refiner: fitted to embeddings of the model before it. The module has it as it is now, whatever happens to it
            later.
        query_side: "text" or "video": the side of the refiner's `fit` that queries belong to.
        document_side: the same of documents. Where both are texts, such as questions and passages, fit the refiner to
            the questions as `text` and to the passages as `video`.
        task: "query" or "document" for all rows that come here, as in one route of a Router. None: what the call says.

    Raises:
        ValueError: nothing was fitted, there is no such side or task, or documents of that side cannot be searched with
            the refiner's bank.
    """

    config_keys = ["query_side", "document_side", "task"]  # noqa: RUF012 - as the base class has it
    forward_kwargs = {"task"}  # noqa: RUF012
    refiner_file_name = "refiner.safetensors"

    def __init__(
        self,
        refiner: Refiner,
        query_side: str = "text",
        document_side: str = "video",
        task: str | None = None,
    ) -> None:
        super().__init__()
        if task not in (None, *TASKS):
            raise ValueError(f'task is {task!r}; expected "query", "document", or None for what each call says')
        require_sides(refiner, query_side, document_side)

        self.embedding_dimension = len(refiner.offset_text) + has_bank(refiner)
        self.query_side = query_side
        self.document_side = document_side
        self.task = task

        # As it is now: a bank that is set later would change the width, and how rows are compared.
        self.refiner = copy.copy(refiner)

    @property
    def has_bank(self) -> bool:
        """Whether rows have one more number, and are compared by inner product alone."""
        return has_bank(self.refiner)

    def forward(self, features: Any, task: str | None = None, **kwargs: Any) -> Any:
        """Refine the embeddings of a batch.

        Args:
            features: what the modules before have made, by name, with `sentence_embedding`, `[N, D]`.
            task: "query" or "document".
            kwargs: not used.

        Returns:
            `features`, with other embeddings: `[N, D]`, or `[N, D + 1]` with a bank.

        Raises:
            ValueError: nothing says whether the rows are queries or documents, or they are of another width.
            RuntimeError: a gradient is asked for.
        """
        rows = features[ROWS]
        if rows.requires_grad:
            raise RuntimeError(
                "a refiner is for inference, and there is no gradient through it; train the model without it, fit a "
                "refiner to the embeddings of the trained model, and add it then"
            )

        task = self.task or task
        if task not in TASKS:
            raise ValueError(
                f"task is {task!r}; a refiner must know whether rows are queries or documents: call encode_query or "
                'encode_document, or pass task="query" or task="document" to encode'
            )
        side = self.query_side if task == "query" else self.document_side
        features[ROWS] = refined(self.refiner, rows, side, task)
        return features

    def get_embedding_dimension(self) -> int:
        """D, or D + 1 with a bank."""
        return self.embedding_dimension

    def on_model_ready(self, model: Any) -> None:
        """Called when the model around it is complete: settle how its rows are compared.

        Args:
            model: the model that this module is a part of.

        Raises:
            ValueError: this is not the last module; or, with a bank, the model is told to compare by something else
                than the inner product, or to cut rows short.
        """
        if not any(module is self for module in _last_of(model)):
            raise ValueError(
                "a refiner must be the last module of a model, or of a Router that is the last: one after it would "
                "change what was refined; leave out Normalize, for refined rows have length one"
            )
        if not self.has_bank:
            return

        # The property itself would choose cosine, where nothing was chosen.
        chosen = getattr(model, "_similarity_fn_name", None)
        if chosen not in (None, "dot"):
            raise ValueError(
                f'similarity_fn_name is "{chosen}"; rows of a refiner with a bank have one more number, and are '
                'compared by inner product, never by cosine: pass similarity_fn_name="dot"'
            )
        if model.truncate_dim is not None and model.truncate_dim < self.embedding_dimension:
            raise ValueError(
                f"truncate_dim is {model.truncate_dim}, which cuts off the last number of a refiner with a bank; "
                "truncate before the refiner is fitted, or fit it without a bank"
            )
        model.similarity_fn_name = "dot"

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write refiner.safetensors and config.json; neither is pickled.

        Args:
            output_path: folder of the module.
            args: not used.
            safe_serialization: not used: there is no other form.
            kwargs: not used.
        """
        self.refiner.save(Path(output_path) / self.refiner_file_name)
        self.save_config(output_path)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> "RefinerModule":
        """Read what `save` wrote. sentence-transformers calls it.

        Args:
            model_name_or_path: folder of the model, or its name on the hub.
            subfolder: of the module.
            kwargs: how to reach the hub, and what is meant for other modules.

        Returns:
            The module.

        Raises:
            FileNotFoundError: there is no refiner.safetensors.
            ValueError: it is no refiner, or the configuration has other names than those of `save`.
        """
        hub = {name: kwargs[name] for name in HUB if name in kwargs}
        folder = os.path.join(model_name_or_path, subfolder)
        config = cls.load_config(model_name_or_path, subfolder=subfolder, **hub)
        if set(config) != set(cls.config_keys):
            raise ValueError(
                f"{folder}/{cls.config_file_name} has the settings {sorted(config)}; expected "
                f"{sorted(cls.config_keys)}; save the model again"
            )
        path = cls.load_file_path(model_name_or_path, cls.refiner_file_name, subfolder=subfolder, **hub)
        if path is None:
            raise FileNotFoundError(f"there is no {folder}/{cls.refiner_file_name}; save the model again")
        return cls(Refiner.load(path), **config)


def with_refiner(
    model: Any,
    refiner: Refiner,
    *,
    query_side: str = "text",
    document_side: str = "video",
) -> Any:
    """The model with a refiner behind it. With a bank, its rows are compared by inner product.

    Args:
        model: a SentenceTransformer, with a Router or without. It stays as it is; both share their weights.
        refiner: fitted to what `encode_query` and `encode_document` of the model give.
        query_side: side of the refiner that queries belong to.
        document_side: side of the refiner that documents belong to.

    Returns:
        A SentenceTransformer, to be used with `encode_query` and `encode_document`, and `save_pretrained`. To load it,
        pass trust_remote_code=True, which sentence-transformers wants for every module that is not its own.

    Raises:
        TypeError: it is no SentenceTransformer.
        ValueError: the model has a refiner already or gives rows of another width; or as for `RefinerModule`.

    Examples:
        >>> refiner = Refiner().fit(model.encode_query(questions), model.encode_document(passages))
        >>> better = with_refiner(model, refiner)
        >>> better.similarity(better.encode_query(questions), better.encode_document(passages))
    """
    if not isinstance(model, SentenceTransformer):
        raise TypeError(f"model is a {type(model).__name__}; expected a SentenceTransformer")
    if any(isinstance(module, RefinerModule) for module in model.modules()):
        raise ValueError("the model has a refiner already; pass the model without it")
    width = model.get_embedding_dimension()
    fitted_width = len(refiner.offset_text)
    if width is not None and width != fitted_width:
        raise ValueError(
            f"the model gives rows of {width} numbers and the refiner was fitted to {fitted_width}; fit it to "
            "what encode_query and encode_document of this model give"
        )

    # Modules are shared, and the list of them is not.
    better = copy.copy(model)
    better._modules = dict(model._modules)
    module = RefinerModule(refiner, query_side, document_side)
    better.add_module(str(len(model)), module)
    better.model_card_data = copy.copy(model.model_card_data)
    better.model_card_data.register_model(better)

    # What the model compares by at present was chosen for other rows.
    if module.has_bank:
        better.similarity_fn_name = "dot"
    module.on_model_ready(better)
    return better


def _last_of(model: nn.Sequential) -> Iterator[nn.Module]:
    """The last module of a model; of a Router, that of each route."""
    last = list(model.children())[-1]
    if isinstance(last, Router):
        for route in last.sub_modules.values():
            yield from _last_of(route)
    else:
        yield last
