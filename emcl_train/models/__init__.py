"""The retrieval model: CLIP's towers, temporal aggregation, and EMCL-Net's similarity."""

from emcl_train.models.retrieval import RetrievalModel, build_model

__all__ = ["RetrievalModel", "build_model"]
