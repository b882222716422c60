"""One HTML file: its frame with the style that all pages share, and the parts that they are made of."""

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from mgdet.text import printable, redacted

STYLE = Path(__file__).with_name("page.css")


def document(title: str, body: Iterable[str], style: str = "", script: str = "") -> str:
    """A whole page. The parts of `body` are HTML; the title is text; a script runs when all of it is there."""
    rights = " script-src 'unsafe-inline';" if script else ""
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta http-equiv="Content-Security-Policy" '
            f"content=\"default-src 'none';{rights} img-src data:; style-src 'unsafe-inline'\">",
            f'<link rel="icon" href="data:,"><style>{STYLE.read_text()}{style}</style></head><body><main>',
            *body,
            f"</main>{f'<script>{script}</script>' if script else ''}</body></html>",
            "",
        ]
    )


def text(value: object) -> str:
    """Text as HTML: nothing in it is taken for markup, control characters are seen, and passwords in URIs are not."""
    return html.escape(printable(redacted(str(value))))


def number(value: float | None, digits: int = 3, signed: bool = False) -> str:
    """A number for a cell, empty where it is None or NaN."""
    if value is None or value != value:
        return ""
    return f"{value:{'+' if signed else ''}.{digits}f}"


def section(title: str, *parts: str, hint: str = "") -> str:
    """A heading with what belongs to it; empty where there is nothing. The hint is text."""
    shown = [part for part in parts if part]
    if not shown:
        return ""
    said = f'<p class="hint">{text(hint)}</p>' if hint else ""
    return f"<section><h2>{text(title)}</h2>{said}{''.join(shown)}</section>"


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    caption: str = "",
    words: bool = False,
    trials: Sequence[str] | None = None,
) -> str:
    """A table whose first column names its rows; header and caption are text, cells are HTML.

    With `words` the last column is aligned as text is, else all but the first one as numbers are. `trials` are the
    names of the trials that the rows belong to, for the script of a sweep's page: such rows can be focused. Where the
    table is too wide it scrolls by itself, also by keyboard.
    """
    rows = list(rows)
    marks = [f' data-trial="{text(name)}" tabindex="0"' for name in trials] if trials is not None else [""] * len(rows)
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in header)
    body = "".join(
        f'<tr{mark}><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for mark, (first, *cells) in zip(marks, rows, strict=True)
    )
    title = f"<caption>{text(caption)}</caption>" if caption else ""
    label = text(caption or header[0] or "table")
    kind = ' class="words"' if words else ""
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{label}"><table{kind}>{title}'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Names with their values, as a list of terms; both are HTML."""
    return f'<dl class="facts">{"".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows)}</dl>'


def grid(parts: Iterable[str], least: int = 320) -> str:
    """Parts side by side, each at least so many pixels wide: on a phone one below the other."""
    found = "".join(parts)
    return f'<div class="grid" style="--least:{least}px">{found}</div>' if found else ""


def picture(data: bytes, kind: str, alternative: str, caption: str = "") -> str:
    """An image within the page. `kind` is `png` or `jpeg`; caption and alternative are text."""
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    below = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return f'<figure><img alt="{text(alternative)}" src="{source}">{below}</figure>'


def bars(title: str, rows: Sequence[tuple[str, float, str]]) -> str:
    """Horizontal bars, each with a name, its length and the text of its value."""
    most = max([length for _, length, _ in rows], default=0) or 1
    drawn = "".join(
        f'<div class="name" title="{text(name)}">{text(name)}</div>'
        f'<span><i style="width:{80 * length / most:.1f}%"></i>{text(value)}</span>'
        for name, length, value in rows
    )
    return f'<div><h3>{text(title)}</h3><div class="bars">{drawn}</div></div>'


def command(line: str) -> str:
    """A command as it is typed, or other text whose lines count."""
    shown = "\n".join(text(each) for each in line.splitlines())
    return f'<pre tabindex="0" aria-label="command"><code>{shown}</code></pre>'
