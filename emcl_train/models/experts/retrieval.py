"""CE, MMT and JSFusion as models that training and evaluation know how to use.

A batch has one tensor a kind of input and expert, named "features/rgb", and tensors of the text, named as the systems
name them.
"""

import operator
from collections.abc import Iterator
from functools import reduce

from jaxtyping import Float
from torch import Tensor

from emcl_kernels import SimilarityStream
from emcl_train.errors import UserError
from emcl_train.models.em_features import TILE, AddUp, without_gradient
from emcl_train.models.experts.ce import CollaborativeExperts
from emcl_train.models.experts.em import ExpertEM, ExpertMaps
from emcl_train.models.experts.jsfusion import NO_EMCL, PAIRS_AT_ONCE, JSFusion, JSFusionText, JSFusionVideo
from emcl_train.models.experts.mixture import ExpertText, ExpertVideo, only_available
from emcl_train.models.experts.mmt import MultiModalTransformer
from emcl_train.models.features import Batch
from emcl_train.models.interface import PairModel

IN_A_FIT = 4096
"""Captions or videos whose moments are gathered at a time."""


class MixtureModel(PairModel):
    """CE or MMT: rows of each expert, compared expert by expert, after EM of each if it is asked for.

    Args:
        system: the model, without EM inside it.
        emcl: EM of each expert. It has no parameters, and is there in every mode, so that weights always fit.
    """

    emcl: ExpertEM

    def __init__(self, system: CollaborativeExperts | MultiModalTransformer, emcl: ExpertEM) -> None:
        super().__init__()
        self.system = system
        self.emcl = emcl
        self.rows_of_batch: int | None = None
        """In evaluation, without blocks: EM is fitted as if there were so many rows; None: as many as there are."""

    def encode_text(self, batch: Batch) -> ExpertText:
        """Captions, from the features of their words (CE) or their token ids (MMT)."""
        if isinstance(self.system, CollaborativeExperts):
            return self.system.encode_text(batch["text"])
        return self.system.encode_text(batch["input_ids"], batch["attention_mask"])

    def encode_video(self, batch: Batch) -> ExpertVideo:
        """Videos, from the features of their experts."""
        if isinstance(self.system, CollaborativeExperts):
            video = self.system.encode_video(by_expert(batch, "features"), by_expert(batch, "available"))
            # What CE makes of a missing expert is not compared, so EM does not run over it either.
            return only_available(video)
        return self.system.encode_video(*(by_expert(batch, kind) for kind in OF_MMT))

    def similarity(
        self, text: ExpertText, video: ExpertVideo, *, emcl: bool, add_up: AddUp | None = None
    ) -> Float[Tensor, "A B"]:
        """Each caption with each video; with `emcl`, after one EM an expert, whose start moves in training mode."""
        if add_up is not None:
            raise ValueError("add_up is given, and CE and MMT train in one process alone; leave it out")
        return self.system.similarity(*(self.emcl.refined(text, video) if emcl else (text, video)))

    def similarity_stream(
        self, text: ExpertText, video: ExpertVideo, *, emcl: bool, em_block: int | None = None
    ) -> SimilarityStream:
        """Rows of `similarity` in bounded memory, for evaluation: without gradient, and the start stays as it is.

        Args:
            text: captions.
            video: videos.
            emcl: run EM over the rows of each expert first.
            em_block: EM inside blocks of so many matching pairs, as MMT + EMCL is evaluated in its release: one caption
                a video, in one order. So a caption is embedded together with its own video, which a search could not
                do. None: one map an expert, fitted to all rows of both sides, whichever belong together.
        """
        size = max(1, TILE // max(1, len(video)))

        def steps() -> Iterator[Tensor]:
            texts, videos = text, video
            maps = None
            if emcl and em_block is not None:
                texts, videos = self.emcl.refined(text, video, em_block=em_block)
            elif emcl:
                maps = self._maps(text, video)
                videos = ExpertVideo(maps(video.embeddings), video.available)
            yield text.weights.new_empty((0, len(video)))

            for part in texts.split(size):
                if maps is not None:
                    part = ExpertText(maps(part.embeddings), part.weights)
                yield self.system.similarity(part, videos)

        return SimilarityStream(1 + len(text.split(size)), without_gradient(steps))

    def _maps(self, text: ExpertText, video: ExpertVideo) -> ExpertMaps:
        """One map an expert, fitted to the rows of both sides."""
        sides: list[ExpertText | ExpertVideo] = [*text.split(IN_A_FIT), *video.split(IN_A_FIT)]
        moments = reduce(operator.add, [self.emcl.moments(part.embeddings) for part in sides])
        return self.emcl.fit(moments, rows_of_batch=self.rows_of_batch)


OF_MMT = ("features", "present", "positions", "maxpool")


def by_expert(batch: Batch, kind: str) -> dict[str, Tensor]:
    """The tensors of one kind of input, by expert."""
    prefix = f"{kind}/"
    return {name.removeprefix(prefix): value for name, value in batch.items() if name.startswith(prefix)}


class JSFusionModel(PairModel):
    """JSFusion: a score for each pair. EMCL cannot act in it, since no rows are compared."""

    emcl: None

    def __init__(self, system: JSFusion) -> None:
        super().__init__()
        self.system = system
        self.emcl = None

    def encode_text(self, batch: Batch) -> JSFusionText:
        """The words of the captions, encoded."""
        return self.system.encode_text(batch["word_ids"], batch["word_mask"].bool())

    def encode_video(self, batch: Batch) -> JSFusionVideo:
        """The steps of the videos, encoded."""
        return self.system.encode_video(batch["features"], batch["mask"].bool())

    def similarity(
        self, text: JSFusionText, video: JSFusionVideo, *, emcl: bool, add_up: AddUp | None = None
    ) -> Float[Tensor, "A B"]:
        """The score of each caption with each video. It has parameters of its own, and in training statistics of a row.

        Raises:
            UserError: EMCL is asked for.
        """
        if emcl:
            raise UserError(NO_EMCL)
        return self.system.scores(video, text).mT

    def similarity_stream(
        self, text: JSFusionText, video: JSFusionVideo, *, emcl: bool, em_block: int | None = None
    ) -> SimilarityStream:
        """Rows of `similarity`, some captions with all videos at a time."""
        if emcl:
            raise UserError(NO_EMCL)
        parts = text.split(PAIRS_AT_ONCE)

        def steps() -> Iterator[Tensor]:
            for part in parts:
                yield self.similarity(part, video, emcl=False)

        return SimilarityStream(len(parts), without_gradient(steps))
