"""Pictures are looked at once, a few at a time, and near copies are all pairs whose hashes are close."""

import io
import threading

import numpy as np
from PIL import Image

from mgdet.diagnosis.files import NEAR_BITS, near_pairs
from mgdet.diagnosis.pictures import looks, perceptual_hash
from mgdet.errors import DataError


def scene(seed, size=(80, 60)):
    """Random patches with soft edges."""
    small = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def bits(a, b):
    return sum((x ^ y).bit_count() for x, y in zip(a, b, strict=True))


def test_near_pairs_are_those_of_the_slow_loop():
    rng = np.random.default_rng(1)
    base = rng.integers(0, 256, (20, 32), dtype=np.uint8)
    near = base[:12].copy()
    for row, flips in enumerate(rng.integers(0, 30, 12)):
        for bit in rng.choice(256, flips, replace=False):
            near[row, bit // 8] ^= 1 << (bit % 8)
    hashes = [row.tobytes() for row in np.concatenate([base, near, base[:2]])]
    slow = {
        (i, j, bits(a, b)) for i, a in enumerate(hashes) for j, b in enumerate(hashes) if i < j and bits(a, b) <= 16
    }
    assert set(near_pairs(hashes, 16)) == slow
    assert len(slow) > 5
    assert list(near_pairs([], 16)) == list(near_pairs(hashes[:1], 16)) == []


def test_the_hash_tells_changes_of_a_picture_from_other_pictures():
    picture = scene(0)
    stored = io.BytesIO()
    picture.save(stored, "JPEG", quality=40)
    changed = [Image.open(stored), picture.resize((160, 120)), picture.point(lambda v: v * 0.8)]
    own = perceptual_hash(picture)
    assert all(bits(own, perceptual_hash(other.convert("RGB"))) <= NEAR_BITS for other in changed)
    assert all(bits(own, perceptual_hash(scene(k))) > NEAR_BITS for k in range(1, 9))


def test_few_pictures_are_held_at_once():
    """However many there are: what was read and not yet looked at is at most twice the threads, and one more."""
    out = io.BytesIO()
    scene(0).save(out, "PNG")
    ahead, taken, lock = 0, 0, threading.Lock()

    def read(row):
        nonlocal ahead
        with lock:
            ahead = max(ahead, row + 1 - taken)
        return out.getvalue()

    for look in looks(60, read, 10**6, workers=2):
        taken += 1
        assert look.size == (60, 80)
    assert taken == 60
    assert ahead <= 2 * 2 + 1


def test_a_picture_that_cannot_be_read_has_its_reason_and_keeps_its_place():
    out = io.BytesIO()
    scene(0).save(out, "PNG")

    def read(row):
        if row == 1:
            raise DataError("a damaged row group")
        return out.getvalue()[: 50 if row == 2 else None]

    found = list(looks(4, read, 10**6, workers=1))
    assert [isinstance(look, DataError) for look in found] == [False, True, True, False]
    assert "damaged row group" in str(found[1])
