"""EMCL on embeddings that exist already, without training: `EMRefiner`."""

from emcl_kernels.refine.refiner import EMRefiner

__all__ = ["EMRefiner"]
