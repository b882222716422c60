"""`mgdet visualize` as a script, for jobs on a cluster where only the working directory brings mgdet along."""

import sys

from mgdet.cli.main import job


def main() -> int:
    """The exit status of `mgdet visualize` with the arguments of this process."""
    return job("visualize")


if __name__ == "__main__":
    sys.exit(main())
