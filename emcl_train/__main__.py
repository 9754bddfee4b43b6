"""`python -m emcl_train`, the same as `emcl-train`."""

from emcl_train.cli import program

if __name__ == "__main__":
    program()
