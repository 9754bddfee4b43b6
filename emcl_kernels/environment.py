"""The EMCL_* variables that choose between names, and one rule for all of them: what is not on the list is an error.

They are looked at when the package is imported, whatever runs later. What is empty counts as not set. The C++ code
reads its own ones again at each call.
"""

import os

ISAS = ("baseline", "avx2", "avx512")

CHOICES = {
    "EMCL_BACKEND": ("reference", "native", "triton", "cuda", "torch"),
    "EMCL_ISA": ISAS,
    "EMCL_FORM": ("auto", "gram", "loop"),
    "EMCL_FIT": ("auto", "cluster8", "cluster16", "steps"),
    "EMCL_CUDA_EMULATED": ("0", "1"),
    "EMCL_EMULATED_ORDER": ("forward", "backward", "shuffled"),
    "EMCL_EMULATED_COPIES": ("late", "early"),
    "EMCL_EMULATED_SUMS": ("exact", "hopper"),
}
"""The names that each variable may have. Where a machine lacks one of them, its reader says so."""


def chosen(variable: str) -> str:
    """The value of a variable.

    Args:
        variable: one of `CHOICES`.

    Returns:
        One of its names, or an empty string if it is not set.

    Raises:
        ValueError: it is something else; the message has the names.
    """
    value = os.environ.get(variable, "")
    if value and value not in CHOICES[variable]:
        raise ValueError(f'{variable} is "{value}"; expected one of {", ".join(CHOICES[variable])}')
    return value


def check() -> None:
    """Look at all of them, and at the path of EMCL_TABLE.

    Raises:
        ValueError: one has a value that it may not have.
    """
    for variable in CHOICES:
        chosen(variable)
    table = os.environ.get("EMCL_TABLE", "")
    if table and not os.path.isfile(table):
        raise ValueError(
            f"EMCL_TABLE is {table}, which is no file; name a table that emcl_kernels.tune wrote, or unset it"
        )
