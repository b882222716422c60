"""Text for people (URIs without passwords: test_security.py)."""

import pytest

from mgdet.errors import MgdetError
from mgdet.text import csv_text, duration, first_line, first_of, metric_text, printable


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, ""), (1, "0"), (3, "0, 1, 2"), (4, "0, 1, 2, and 1 more"), (1000, "0, 1, 2, and 997 more")],
)
def test_first_of(count, text):
    assert first_of(range(count), 3) == text


def test_first_of_lines():
    assert first_of(["a", "b", "c"], 2, "\n  ") == "a\n  b\n  and 1 more"


@pytest.mark.parametrize(("seconds", "text"), [(3.6, "4 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")])
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_first_line():
    assert first_line(ValueError("\n  what\nwhere")) == "what"
    assert first_line(KeyError()) == "KeyError"
    assert first_line(OSError("no s3://me:secret@bucket")) == "no s3://bucket"
    assert len(first_line(OSError(1000 * "x"))) == 300


def test_metrics_have_decimals_and_counts_have_none():
    assert [metric_text(value) for value in (0.12346, 1.0, 12)] == ["0.1235", "1.0000", "12"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jcat", r"\x1b[2Jcat"),
        ("a\0b", r"a\x00b"),
        ("cat\nall  1.0", r"cat\nall  1.0"),
        ("exe.\u202egnp", r"exe.\u202egnp"),
        ("\udcff", r"\udcff"),
        ("\x9b31m", r"\x9b31m"),
        ("größe 猫 क्ष", "größe 猫 क्ष"),
    ],
)
def test_printable(text, shown):
    assert printable(text) == shown
    assert printable(f"\t{text}\n", lines=True) == f"\t{shown}\n".replace(r"\n", "\n")
    assert chr(27) not in str(MgdetError(text)), "nor in what the user reads of an error"


def test_csv_holds_no_formula():
    rows = [["class", "AP"], ["=1+1", 0.5], ["+cat", "-0.25"], [" @x", "-"], ["a,b\n", None], ["plain", "1e-3"]]
    lines = csv_text(rows).splitlines()
    assert lines == ["class,AP", "'=1+1,0.5", "'+cat,-0.25", "' @x,'-", '"a,b\\n",', "plain,1e-3"]
