"""What the scripts in `jobs/` do alike: their log goes to stdout, and errors become words and an exit status."""

import argparse
import logging
import sys
from collections.abc import Callable

from mgdet.errors import Interrupted, MgdetError


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser that shows the script's docstring as it is."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def run_cli(work: Callable[[], int], when_interrupted: str) -> int:
    """The exit status of `work()`; 2: an error that the user can mend; 130: Ctrl-C; 143: SIGTERM.

    `when_interrupted` says after Ctrl-C what was kept.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout)
    logging.getLogger("mgdet").setLevel(logging.INFO)
    try:
        return work()
    except Interrupted as error:
        print(f"interrupted: {error}", file=sys.stderr)
        return 143
    except MgdetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {when_interrupted}", file=sys.stderr)
        return 130
