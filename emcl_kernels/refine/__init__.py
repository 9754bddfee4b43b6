"""Refining embeddings that exist already, without training: `Refiner`, its maps, and `hubness`."""

from emcl_kernels.refine.diagnosis import Diagnosis
from emcl_kernels.refine.em_refiner import EMRefiner
from emcl_kernels.refine.hubness import hubness
from emcl_kernels.refine.maps import EM, Mean, Unchanged, Whitening
from emcl_kernels.refine.refiner import Refiner

__all__ = ["EM", "Diagnosis", "EMRefiner", "Mean", "Refiner", "Unchanged", "Whitening", "hubness"]
