"""`python -m emcl_train`, the same as `emcl-train`."""

import sys

from emcl_train.cli import main

if __name__ == "__main__":
    sys.exit(main())
