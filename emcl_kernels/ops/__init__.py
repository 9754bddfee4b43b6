"""The ops of torch.ops.emcl: one file an op, with its function, what it accepts, its shapes and its gradient.

How such a file is read: `define.py`. What an op computes: `emcl_kernels/reference.py`. Which backend computes it:
`emcl_kernels/dispatch.py`.
"""
