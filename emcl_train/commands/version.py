"""What `emcl-train --version` says. torch is asked for its version without importing it."""

import platform
import re
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from emcl_train.runs.code import commit

IN_SOURCE = re.compile(r'^__version__ = "(.+)"$', re.MULTILINE)


def version_lines() -> str:
    """The version and its commit, torch's version and Python's, a line each."""
    lines = [f"emcl-train {own_version()}{_of_checkout()}"]
    lines += [f"torch {installed_version('torch')}", f"Python {platform.python_version()}"]
    return "\n".join(lines)


def own_version() -> str:
    """The version of the code at hand, from its source: what is installed may be another one."""
    spec = find_spec("emcl_kernels")
    if spec is None or spec.origin is None:
        return "unknown"
    found = IN_SOURCE.search(Path(spec.origin).read_text(encoding="utf-8"))
    return found[1] if found else "unknown"


def installed_version(package: str) -> str:
    """The version of a package, or that it is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _of_checkout() -> str:
    """The commit of the checkout in brackets, and whether files differ from it; "" without a checkout."""
    found = commit()
    if found is None:
        return ""
    return f" (commit {found.removesuffix('+')}{', with changes' if found.endswith('+') else ''})"
