"""Exact EM kernels for Expectation-Maximization Contrastive Learning (EMCL), as `torch.ops.emcl.*`."""

from emcl_kernels.dispatch import use_backend
from emcl_kernels.em import Moments
from emcl_kernels.layer import EMCL
from emcl_kernels.ops.fit import em_fit
from emcl_kernels.ops.moments import em_moments
from emcl_kernels.ops.pooled import pooled_cosine_similarity, pooled_similarity, pooled_similarity_blocks
from emcl_kernels.ops.project import em_project
from emcl_kernels.ops.reconstruct import em_reconstruct
from emcl_kernels.refine import EMRefiner, Refiner
from emcl_kernels.stream import SimilarityStream, pooled_cosine_similarity_stream, pooled_similarity_stream

__version__ = "0.2.0"

__all__ = [
    "EMCL",
    "EMRefiner",
    "Moments",
    "Refiner",
    "SimilarityStream",
    "em_fit",
    "em_moments",
    "em_project",
    "em_reconstruct",
    "pooled_cosine_similarity",
    "pooled_cosine_similarity_stream",
    "pooled_similarity",
    "pooled_similarity_blocks",
    "pooled_similarity_stream",
    "use_backend",
]
