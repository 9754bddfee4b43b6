"""Towers of every family, one file each behind the interface of `interface.py`."""

from emcl_train.models.towers.clip import CLIPTowers
from emcl_train.models.towers.interface import MAX_LOGIT_SCALE, StoredTowers, Towers, is_scalar

__all__ = ["MAX_LOGIT_SCALE", "CLIPTowers", "StoredTowers", "Towers", "is_scalar"]
