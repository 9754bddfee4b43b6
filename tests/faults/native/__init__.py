"""The compiled kernels under sanitizers, with threads, and without memory."""
