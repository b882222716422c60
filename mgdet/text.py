"""Text for people: no password and no control character, durations, long lists cut short, first lines of errors."""

import csv
import io
import re
from collections.abc import Sequence

_PATTERNS = (
    # user:password@, whatever the password holds; when in doubt, too much of what follows is taken out
    (re.compile(r"(?<=://)[^\s/@:]*:\S*@"), ""),
    # a user alone may be a token; in abfs(s)://container@account it is no user
    (re.compile(r"(?<!abfs)(?<!abfss)://[^\s/@]*@"), "://"),
    # ?password=..., &client_secret=..., &sig=... (the signature of a shared link)
    (re.compile(r"(?i)([?&](?:sig|[^\s=&?]*(?:passw|pwd|secret|token|_key)[^\s=&?]*)=)[^\s&#'\"]+"), r"\1***"),
)


_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""What moves the cursor, starts a terminal's command, turns the direction of writing, or no file can hold."""


def printable(text: str, lines: bool = False) -> str:
    """The text with control characters written as escapes, such as `\\x1b`; with `lines` its line ends and tabs stay.

    Names from outside (classes, files, keys) may hold anything, also what a terminal obeys instead of showing it.
    """
    return _CONTROLS.sub(lambda found: found[0] if lines and found[0] in "\n\t" else ascii(found[0])[1:-1], text)


def csv_text(rows: Sequence[Sequence[object]]) -> str:
    """The rows as CSV; what a spreadsheet would take for a formula, such as `=1+1`, begins with an apostrophe."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([[_csv_cell(cell) for cell in row] for row in rows])
    return out.getvalue()


def _csv_cell(cell: object) -> object:
    if not isinstance(cell, str):
        return cell
    text = printable(cell)
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def redacted(text: str) -> str:
    """The text with users, passwords and secret parameters taken out of every URI in it."""
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def has_password(uri: str) -> bool:
    """Whether the URI holds a password or another secret (a user name alone is none)."""
    return bool(_PATTERNS[0][0].search(uri) or _PATTERNS[2][0].search(uri))


def duration(seconds: float) -> str:
    """A time span as people read it: `4 s`, `3 min 05 s`, `2 h 07 min`."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"


def metric_text(value: float) -> str:
    """A metric with four decimals, a count (an `int`) with none."""
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def first_of(items: Sequence[object], most: int = 10, separator: str = ", ") -> str:
    """The items in one text; of more than `most` only the first ones, and how many more there are."""
    shown = [str(item) for item in items[:most]]
    return separator.join([*shown, f"and {len(items) - most} more"] if len(items) > most else shown)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows of a table as lines, in columns as wide as their longest cell; all rows have as many cells."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def first_line(error: BaseException) -> str:
    """The first line of an error's message, redacted and cut after 300 characters; without a message, its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return redacted(lines[0] if lines else type(error).__name__)[:300]
