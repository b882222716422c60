"""What all sub-commands share: their parser, their common options, and how errors become words and an exit status."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mgdet.cli.screen import AboveTheBar, progress_bar
from mgdet.errors import MEMORY_REMEDY, Interrupted, MgdetError
from mgdet.files import ensure_home
from mgdet.host import require_linux, safe_path, speaks
from mgdet.signals import heed, received
from mgdet.text import first_line, printable


@dataclass(frozen=True)
class Command:
    """A sub-command of `mgdet`."""

    name: str
    description: str
    """Its `--help`; the first line is its summary in `mgdet --help`. `%(prog)s` stands for the command as typed."""
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    """Does the work and returns the exit status; imports what is heavy only when it is called."""
    when_interrupted: str
    """What Ctrl-C says about what was kept."""
    before: Callable[[Sequence[str]], int] | None = None
    """Gets the unread arguments before `add_arguments` is called; another status than 0 ends the command."""

    @property
    def summary(self) -> str:
        """One line without a full stop."""
        return self.description.partition("\n")[0].rstrip(".")


class Parser(argparse.ArgumentParser):
    """A parser that shows its description as it is and lets options stand between positional arguments."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **options})

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]  # one overload is enough
        """As `ArgumentParser.parse_args`, options and positional arguments in any order."""
        if any(isinstance(action, argparse._SubParsersAction) for action in self._actions):
            return super().parse_args(args, namespace)  # argparse cannot do both
        return self.parse_intermixed_args(args, namespace)


def common_options() -> Parser:
    """The options that every sub-command has, as a parent of its parser."""
    parser = Parser(add_help=False)
    # without defaults, so that `mgdet prepare -q shapes` holds below `shapes` as well
    common: dict[str, Any] = {"action": "store_const", "dest": "level", "default": argparse.SUPPRESS}
    one = parser.add_mutually_exclusive_group()
    one.add_argument("-q", "--quiet", const=logging.WARNING, help="say warnings and the result only", **common)
    one.add_argument("-v", "--verbose", const=logging.DEBUG, help="also say where an error was raised", **common)
    return parser


def add_plugins(parser: argparse.ArgumentParser) -> None:
    """Add `--plugin NAME`, once for each: what a checkpoint that was trained with plugins needs."""
    text = "a plugin it was trained with: a module or an entry point of mgdet.plugins; once for each"
    parser.add_argument("--plugin", action="append", default=[], metavar="NAME", help=text)


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Print in the block what may be longer than its reader wants: `mgdet --keys | head` ends without an error."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Plain(logging.Formatter):
    """Escapes control characters, which the names of files and classes may hold."""

    def format(self, record: logging.LogRecord) -> str:
        """The record in lines of text."""
        return printable(super().format(record), lines=True)


def set_up_logging(level: int) -> None:
    """Print the records of mgdet from this `level` on, and the warnings of other libraries, on standard output."""
    lines = AboveTheBar(sys.stdout) if sys.stderr.isatty() else logging.StreamHandler(sys.stdout)
    lines.setFormatter(_Plain("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[lines])
    logging.getLogger("mgdet").setLevel(level)


def _is_want_of_memory(error: Exception) -> bool:
    """Python's, NumPy's and Arrow's error, or torch's of a GPU (recognised without importing torch) or of the CPU."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "allocate memory" in str(error))
    )


def run_cli(work: Callable[[], int], when_interrupted: str, level: int = logging.INFO) -> int:
    """The exit status of `work()`; 2: an error that the user can mend; 130: Ctrl-C; 143: SIGTERM.

    `when_interrupted` says after Ctrl-C what was kept; records of mgdet are printed from `level` on.
    """
    set_up_logging(level)
    try:
        require_linux()
        ensure_home()
        with heed(), safe_path(), progress_bar():
            return work()
    except Interrupted as error:
        if speaks():
            print(f"interrupted: {error}", file=sys.stderr)
        return _status(143)
    except MgdetError as error:
        logging.getLogger("mgdet").debug("the error below was raised here:", exc_info=True)
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if not _is_want_of_memory(error):
            raise
        print(f"error: not enough memory: {first_line(error)}. {MEMORY_REMEDY}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {when_interrupted}", file=sys.stderr)
        return _status(130)


def _status(usual: int) -> int:
    """Of a command that was stopped: 128 and the number of the signal, as a shell has it."""
    number = received()
    return usual if number is None else 128 + number
