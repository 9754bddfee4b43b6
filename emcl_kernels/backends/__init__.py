"""One module a backend, all with the same functions: `supports`, and for each op the forward and the backward.

moments, moments_backward, fit, fit_backward, reconstruct, reconstruct_backward, project, pooled_moments,
pooled_moments_backward, pooled_cosine, pooled_cosine_backward; some have pooled_blocks too. `supports(op, *tensors)`
returns None, or the reason why the backend cannot run that op on those tensors.
"""
