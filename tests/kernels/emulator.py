"""The emulator as a test wants it: what a GPU leaves open, such as the order in which its threads run."""

import pytest

from emcl_kernels.backends import cuda

# Copies that land at once take the place of what a slower thread still reads, so they go with the order that lets one
# warp run furthest ahead. The other way round, copies that land late hide nothing that was not waited for.
MANNERS = {
    "forward": {"ORDER": "forward"},
    "backward": {"ORDER": "backward"},
    "shuffled": {"ORDER": "shuffled"},
    "early copies": {"ORDER": "backward", "COPIES": "early"},
}
"""Orders of threads and of copies, by a name for each; EMCL_EMULATED_ORDER and so on."""


def emulate(monkeypatch: pytest.MonkeyPatch, **settings: object) -> None:
    """Take CPU tensors in the emulator, if it is there, with these EMCL_EMULATED_* and no others."""
    monkeypatch.setenv("EMCL_CUDA_EMULATED", "1")
    if reason := cuda._load_emulated():
        pytest.skip(reason)
    for name in ("ORDER", "COPIES", "SUMS", "ARCHITECTURE", "SHARED", "CLUSTER"):
        monkeypatch.delenv(f"EMCL_EMULATED_{name}", raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(f"EMCL_EMULATED_{name}", str(value))
