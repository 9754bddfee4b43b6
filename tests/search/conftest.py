"""Fixtures of the tests of search."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "train"))  # for its videos
