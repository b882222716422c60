"""Random damage to files: to their bytes, and to the values of what is JSON."""

from copy import deepcopy
from typing import Any

from hypothesis import strategies as st

HITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "zero", "repeat"]),
        st.floats(0, 1),  # where
        st.integers(0, 255),
        st.booleans(),  # near the end, where the footer is
    ),
    min_size=1,
    max_size=4,
)


def hit(data: bytes, hits: list[tuple[str, float, int, bool]]) -> bytes:
    """The bytes after each of the damages."""
    out = bytearray(data)
    for kind, where, value, near_end in hits:
        if not out:
            break
        length = min(len(out), 3000) if near_end else len(out)
        at = len(out) - length + min(length - 1, int(where * length))
        if kind == "flip":
            out[at] ^= 1 << value % 8
        elif kind == "cut":
            del out[at : at + 1 + value]
        elif kind == "insert":
            out[at:at] = bytes([value]) * (1 + value % 9)
        elif kind == "zero":
            out[at : at + value] = bytes(len(out[at : at + value]))
        else:
            out[at:at] = out[at : at + 1 + value]
    return bytes(out)


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-3, 9),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(["../../etc/passwd", "train/part-00001.parquet", "0" * 64, "val"]),
    st.lists(st.integers(-2, 7), max_size=4),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)


def nodes(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places in a tree of JSON, as keys from its root."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, child in inner for place in nodes(child, (*at, key)))]


def change(content: Any, data: st.DataObject, more: st.SearchStrategy[Any] = ODD) -> None:
    """Replace or take out one to three values of a tree of JSON, which is changed."""
    for _ in range(data.draw(st.integers(1, 3))):
        if not (places := [place for place in nodes(content) if place]):
            return
        *above, last = data.draw(st.sampled_from(places))
        node = content
        for key in above:
            node = node[key]
        if data.draw(st.booleans()):
            node[last] = deepcopy(data.draw(more))  # the next change may be within it, and `sampled_from` keeps its own
        else:
            node.pop(last)
