"""`python -m mgdet` is the command `mgdet`."""

import sys

from mgdet.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
