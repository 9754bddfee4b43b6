"""_snapshot: the start of a call, which backward may need after the maintained bases have moved on.

torch.compile drops a plain clone, or makes it again in backward, from the buffer as it is then. An op it leaves alone.
"""

import torch

from emcl_kernels.ops.define import Plain

op = Plain("_snapshot(Tensor bases) -> Tensor", torch.clone)
