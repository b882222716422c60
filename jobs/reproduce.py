"""`mgdet reproduce` as a script, for jobs on a cluster where only the working directory brings mgdet along."""

import sys

from mgdet.cli.main import job


def main() -> int:
    """The exit status of `mgdet reproduce` with the arguments of this process."""
    return job("reproduce")


if __name__ == "__main__":
    sys.exit(main())
