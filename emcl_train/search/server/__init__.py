"""The page and the JSON API of a library, for a browser on the same machine (docs/own-videos.md)."""

from emcl_train.search.server.app import build_app

__all__ = ["build_app"]
