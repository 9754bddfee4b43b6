"""The retrieval model: two towers, temporal aggregation, and a similarity head with EMCL."""

from emcl_train.models.ahead import look_ahead
from emcl_train.models.building import build_pair_model
from emcl_train.models.clip import TowersModel, look_at_clip
from emcl_train.models.features import BatchFeatures, TextFeatures, VideoFeatures, on_device
from emcl_train.models.heads import TokenWiseHead
from emcl_train.models.interface import PairModel, TrainedModel
from emcl_train.models.retrieval import RetrievalModel, build_model
from emcl_train.models.towers import CLIPTowers, Towers

__all__ = [
    "BatchFeatures",
    "CLIPTowers",
    "PairModel",
    "RetrievalModel",
    "TextFeatures",
    "TokenWiseHead",
    "Towers",
    "TowersModel",
    "TrainedModel",
    "VideoFeatures",
    "build_model",
    "build_pair_model",
    "look_ahead",
    "look_at_clip",
    "on_device",
]
