"""What is said where a package is missing."""


def needs(what: str, package: str, extra: str) -> ImportError:
    """One line that names the package.

    Args:
        what: the module or the function that needs it.
        package: its name for pip.
        extra: that of this project which brings it.

    Returns:
        The error to raise.
    """
    return ImportError(f"{what} needs the package {package}; pip install 'emcl[{extra}]'")
