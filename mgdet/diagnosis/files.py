"""What the pictures themselves say: colours, depth, frames, orientation; and files that are there several times."""

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mgdet.diagnosis.base import Cases, Data, Finding, Split

NEAR_BITS = 32
"""Pictures whose perceptual hashes differ in at most so many of their 255 bits are nearly the same."""
ROWS_AT_A_TIME = 512
"""Hashes that are compared with all others at once: 512 x 100,000 distances are 50 MB."""


def pictures(data: Data) -> Iterator[Finding]:
    """Odd modes, depths and orientations, each by image."""
    cases = Cases()
    for split in data.splits.values():
        for row, look in enumerate(split.looks):
            depth = look.depth
            if look.mode == "CMYK":
                cases.add("cmyk", split.case(row))
            if look.transparent:
                cases.add("alpha", split.case(row, detail=look.mode))
            if look.frames > 1:
                cases.add("frames", split.case(row, detail=f"{look.frames} pictures"))
            if depth is not None:
                detail = f"{depth.used} of {depth.stored} bits"
                cases.add("dark" if depth.dark else "deep", split.case(row, detail=detail))
            if look.blank:
                cases.add("blank", split.case(row))
    yield from cases.findings()


def copies(data: Data) -> Iterator[Finding]:
    """Files that are byte for byte in two splits, or twice in one."""
    cases = Cases()
    first: dict[bytes, tuple[Split, int]] = {}
    for split in data.splits.values():
        for row, look in enumerate(split.looks):
            if look.digest not in first:
                first[look.digest] = split, row
                continue
            other, earlier = first[look.digest]
            kind = "repeated_file" if other is split else "leaked"
            cases.add(kind, split.case(row, detail=f"same bytes as {other.case(earlier)}"))
    yield from cases.findings()


class _Picture(NamedTuple):
    split: Split
    row: int


def near_copies(data: Data) -> Iterator[Finding]:
    """Pictures that are nearly the same although their files differ; of each the nearest other one is named."""
    listed = [
        _Picture(split, row) for split in data.splits.values() for row, look in enumerate(split.looks) if not look.blank
    ]
    hashes = [picture.split.looks[picture.row].hash for picture in listed]
    nearest: defaultdict[tuple[int, bool], tuple[int, int]] = defaultdict(lambda: (NEAR_BITS + 1, -1))
    for one, other, bits in near_pairs(hashes, NEAR_BITS):
        a, b = listed[one], listed[other]
        if a.split.looks[a.row].digest != b.split.looks[b.row].digest:
            key = other, a.split is not b.split
            nearest[key] = min(nearest[key], (bits, one))
    found: dict[bool, list[tuple[int, int, int]]] = {True: [], False: []}
    for (later, across), (bits, earlier) in nearest.items():
        found[across].append((bits, later, earlier))
    for across, kind in ((True, "near_leak"), (False, "near_copies")):
        cases = []
        for bits, later, earlier in sorted(found[across]):
            (split, row), (other, before) = listed[later], listed[earlier]
            cases.append(split.case(row, detail=f"{bits} bits from {other.case(before)}"))
        if cases:
            yield Finding(kind, tuple(cases), str(NEAR_BITS))


def near_pairs(hashes: list[bytes], most: int) -> Iterator[tuple[int, int, int]]:
    """All pairs i < j of hashes that differ in at most `most` bits, with the number of bits.

    Each is compared with each: the time grows with the square of their number.
    """
    if not hashes:
        return
    words = np.frombuffer(b"".join(hashes), dtype=np.uint64).reshape(len(hashes), -1)
    for start in range(0, len(words), ROWS_AT_A_TIME):
        bits = _distances(words[start : start + ROWS_AT_A_TIME], words[start:])
        for i, j in np.argwhere(bits <= most).tolist():
            if i < j:
                yield start + i, start + j, int(bits[i, j])


def _distances(some: NDArray[np.uint64], all_of: NDArray[np.uint64]) -> NDArray[np.int16]:
    bits = np.zeros((len(some), len(all_of)), dtype=np.int16)
    for word in range(some.shape[1]):
        bits += np.bitwise_count(some[:, None, word] ^ all_of[None, :, word])
    return bits
