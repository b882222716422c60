"""What the pictures themselves say: colours, depth, frames, orientation; and files that are there several times."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mgdet.diagnosis.base import Cases, Data, Finding, Split

NEAR_BITS = 64
"""Pictures whose perceptual hashes differ in at most so many of their 255 bits show the same scene; of others, half of
the bits differ, give or take a dozen."""
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
            case = split.case(row, detail=f"same bytes as {other.case(earlier)}")
            cases.add(kind, case._replace(twin=(other.name, earlier)))
    yield from cases.findings()


def near_copies(data: Data) -> Iterator[Finding]:
    """Pictures that are nearly the same although their files differ; of each the nearest other one is named."""
    listed = [(split, row) for split in data.splits.values() for row, look in enumerate(split.looks) if not look.blank]
    looks = [split.looks[row] for split, row in listed]
    nearest: dict[tuple[str, int], tuple[int, int]] = {}
    """By kind and the later picture: the bits that differ, and the earlier one."""
    for one, other, bits in near_pairs([look.hash for look in looks], NEAR_BITS):
        if looks[one].digest != looks[other].digest:
            key = "near_leak" if listed[one][0] is not listed[other][0] else "near_copies", other
            nearest[key] = min(nearest.get(key, (bits, one)), (bits, one))
    cases = Cases()
    for (kind, other), (bits, one) in sorted(nearest.items(), key=lambda item: (item[1], item[0])):
        (split, row), (earlier, before) = listed[other], listed[one]
        case = split.case(row, detail=f"{bits} bits from {earlier.case(before)}")
        cases.add(kind, case._replace(twin=(earlier.name, before)))
    yield from cases.findings(str(NEAR_BITS))


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
