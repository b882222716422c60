"""Whether all scans of a progressive JPEG are there: a file that ends after some of them decodes without a warning.

A progressive JPEG (ITU-T T.81, annex G) sends each coefficient of a component first without its lowest `Al` bits, then
bit by bit in further scans. It is whole when all 64 coefficients of all components have arrived down to bit 0.
"""

import re

_PROGRESSIVE = (0xC2, 0xCA)  # SOF2 and SOF10: Huffman and arithmetic coding
_OTHER_FRAMES = frozenset({*range(0xC0, 0xD0)} - {*_PROGRESSIVE, 0xC4, 0xC8, 0xCC})
_START_OF_SCAN, _END = 0xDA, 0xD9
_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]", re.DOTALL)  # none that may stand within coded data


def check_scans(data: bytes) -> None:
    """Raise `ValueError` where a progressive JPEG lacks bits of a coefficient. Other files, also broken ones, pass."""
    missing: dict[int, list[int]] = {}  # by component: the lowest bit that has arrived of each coefficient
    found = _MARKER.search(data)
    while found:
        marker, at = data[found.end() - 1], found.end()
        if marker in _OTHER_FRAMES or marker == _END:
            break
        length = int.from_bytes(data[at : at + 2]) if marker != 0xD8 else 0
        segment = data[at + 2 : at + length]
        if marker in _PROGRESSIVE and len(segment) >= 6:
            missing = {component: [64] * 64 for component in segment[6::3]}
        elif marker == _START_OF_SCAN and segment:
            _note_scan(segment, missing)
        found = _MARKER.search(data, at + length)
    if any(lowest for component in missing.values() for lowest in component):
        raise ValueError("a progressive JPEG, of which its last scans are missing")


def _note_scan(segment: bytes, missing: dict[int, list[int]]) -> None:
    count = segment[0]
    if len(segment) < 4 + 2 * count:
        return
    first, last, lowest = segment[-3], segment[-2], segment[-1] & 15
    for component in segment[1 : 1 + 2 * count : 2]:
        for coefficient in range(first, min(last, 63) + 1):
            if component in missing:
                missing[component][coefficient] = lowest
