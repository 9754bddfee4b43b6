"""How films can be cut, for commands that have not imported anything yet."""

from typing import Literal

Way = Literal["auto", "shots", "pieces"]
"""At the cuts that PySceneDetect finds, or every so many seconds; "auto": the former where it is installed."""
PIECE = 4.0
"""Seconds of a piece."""
Format = Literal["parquet", "faiss", "qdrant"]
"""What the moments of a library can be written as."""
STORES = ("s3", "s3+ddb", "gs", "az", "abfss", "oss", "cos")
"""How an address of an object store begins in which a library may lie."""
