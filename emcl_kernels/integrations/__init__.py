"""Refined embeddings where people search: sentence-transformers, mteb, FAISS, LanceDB and parquet.

`import emcl_kernels` imports nothing of it. Each module needs a package of its own, and names it if it is missing.
docs/search.md has ten lines for each.
"""
