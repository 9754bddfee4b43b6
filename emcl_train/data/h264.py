"""H.264 that comes out in the same bytes from the same pictures, whenever and on whatever machine it is made."""

from functools import cache
from pathlib import Path

UP_TO_AVX2 = "MMX2,SSE2,SSE2Fast,LZCNT,SSSE3,SSE4.2,AVX,FMA3,BMI2,AVX2"
"""x264's names of what a processor with AVX-512 can do besides."""


def repeatable(options: dict[str, str]) -> dict[str, str]:
    """Options of libx264, and with them what makes one encoder's bytes repeatable.

    With x264's code for AVX-512, 20 of 470 copies of one small clip differed in some frames; with its code for AVX2
    none of 650 did, and its C code agrees with itself too. So a processor that has AVX-512 runs the code for AVX2,
    whose bytes are the usual ones. One thread has to encode, since the frames that threads share out differ from run
    to run.

    Args:
        options: of the encoder, such as its preset.
    """
    if not _has_avx512():
        return options
    params = [options["x264-params"]] if "x264-params" in options else []
    return {**options, "x264-params": ":".join([*params, f"asm={UP_TO_AVX2}"])}


@cache
def _has_avx512() -> bool:
    """Whether the processor has AVX-512, as Linux says; elsewhere x264 finds out for itself what it can do."""
    try:
        return " avx512" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
