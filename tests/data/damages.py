"""Data sets with one thing wrong: each kind of damage as a change of one split on disk, and what must be said of it."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from mgdet.data import ShapesConfig, generate_shapes
from mgdet.records import seal, unseal

Content = dict[str, Any]
"""Of a manifest."""


class Damage(NamedTuple):
    """One kind."""

    name: str
    do: Callable[[Path, str], None]
    """Gets the root of the data set and the split."""
    says: str
    """A pattern of the message where it is met first."""
    seen_at: str = "opening"
    """Or "reading": only the images show it. Or "manifest": no training that has opened the data set looks there."""


def shard_of(root: Path, split: str) -> Path:
    return root / split / "part-00000.parquet"


def change_manifest(root: Path, change: Callable[[Content], None]) -> None:
    """Write the manifest again, with a checksum that fits."""
    file = root / "dataset.json"
    content = unseal(file.read_bytes())
    change(content)
    file.write_bytes(seal(content))


def forget_proofs(root: Path, split: str) -> None:
    """Make the manifest one of an earlier version, which knows no checksums of the split's shards."""

    def change(content: Content) -> None:
        for shard in content["splits"][split]["shards"]:
            shard.update(checksums=[], size=None, footer=None)

    change_manifest(root, change)


def rewrite(root: Path, split: str, change: Callable[[pa.Table], pa.Table], group: int = 64) -> None:
    """Write the shard again otherwise; nothing but its content tells, because the manifest knows no checksums."""
    file = shard_of(root, split)
    pq.write_table(change(pq.read_table(file, partitioning=None)), file, row_group_size=group)
    forget_proofs(root, split)


def column(name: str, change: Callable[[list[Any]], object], type_: pa.DataType | None = None) -> Callable[..., None]:
    """A damage: the values of a column, as a list of its rows, are changed in place."""

    def changed(table: pa.Table) -> pa.Table:
        values = table[name].to_pylist()
        change(values)
        field = pa.field(name, type_ or table.schema.field(name).type)
        return table.set_column(table.schema.get_field_index(name), field, pa.array(values, type=field.type))

    return lambda root, split: rewrite(root, split, changed)


def spoil(root: Path, split: str, rows: Sequence[int]) -> None:
    """Make the images of these rows undecodable."""

    def change(values: list[Any]) -> None:
        for row in rows:
            values[row] = values[row][:-40]

    column("image", change)(root, split)


def first_box(number: int, value: float) -> Callable[..., None]:
    """A damage: one number of the first box of the split."""

    def change(rows: list[Any]) -> None:
        next(row for row in rows if row)[number] = value

    return column("boxes", change)


def set_first(value: object) -> Callable[[list[Any]], None]:
    """Of the first row that has any, the first value."""

    def change(rows: list[Any]) -> None:
        next(row for row in rows if row)[0] = value

    return change


def in_split(split: str, **changes: object) -> Callable[[Content], None]:
    return lambda content: content["splits"][split].update(changes)


def in_shard(**changes: object) -> Callable[[Path, str], None]:
    def do(root: Path, split: str) -> None:
        change_manifest(root, lambda content: content["splits"][split]["shards"][0].update(changes))

    return do


def flip(root: Path, split: str, name: str | None) -> None:
    """Flip a bit in the middle of a column's values, or of the footer."""
    file = shard_of(root, split)
    meta = pq.ParquetFile(file).metadata
    data = bytearray(file.read_bytes())
    at = len(data) - 60
    if name is not None:
        chunk = meta.row_group(0).column([c.split(".")[0] for c in paths(meta)].index(name))
        at = chunk.data_page_offset + chunk.total_compressed_size * 3 // 4
    data[at] ^= 1
    file.write_bytes(data)


def paths(meta: pq.FileMetaData) -> list[str]:
    return [meta.row_group(0).column(i).path_in_schema for i in range(meta.num_columns)]


def lies_of_rows(root: Path, split: str) -> None:
    def change(content: Content) -> None:
        info = content["splits"][split]
        info["images"] -= 1
        info["shards"][0].update(rows=info["images"], row_groups=[info["images"]])

    change_manifest(root, change)


def lies_of_row_groups(root: Path, split: str) -> None:
    rows = unseal((root / "dataset.json").read_bytes())["splits"][split]["images"]
    in_shard(row_groups=[1, rows - 1], checksums=["0" * 64] * 2)(root, split)


def another(root: Path, split: str, **options: int) -> None:
    """Prepare other shapes elsewhere and take their shard."""
    other = root.with_name("other")
    generate_shapes(str(other), ShapesConfig(**{"train": 6, "val": 3, "size": 64, "seed": 5, **options}))
    shutil.copy(shard_of(other, split), shard_of(root, split))


def prepared_again(root: Path, split: str) -> None:
    """The same images in another order: as many rows, bytes and boxes, and a manifest and footer that fit the file."""
    file = shard_of(root, split)
    checksums = unseal((root / "dataset.json").read_bytes())["splits"][split]["shards"][0]["checksums"]
    table = pq.read_table(file, partitioning=None)
    rewrite(root, split, lambda t: t.set_column(4, t.schema.field(4), table["image"].combine_chunks()[::-1]))
    in_shard(checksums=checksums)(root, split)


def replaced_by_directory(root: Path, split: str) -> None:
    shard_of(root, split).unlink()
    shard_of(root, split).mkdir()


def not_utf8(root: Path, split: str) -> None:
    def changed(table: pa.Table) -> pa.Table:
        names = pa.array([b"\xff\xfe"] * len(table), pa.binary())
        bad = pa.StringArray.from_buffers(len(table), *names.buffers()[1:], names.buffers()[0])
        return table.set_column(1, table.schema.field(1), bad)

    rewrite(root, split, changed)


def without(name: str) -> Callable[[Path, str], None]:
    return lambda root, split: rewrite(root, split, lambda t: t.drop_columns([name]))


def write_shard(data: bytes) -> Callable[[Path, str], object]:
    return lambda root, split: shard_of(root, split).write_bytes(data)


def write_manifest(change: Callable[[bytes], bytes]) -> Callable[[Path, str], object]:
    return lambda root, split: (root / "dataset.json").write_bytes(change((root / "dataset.json").read_bytes()))


def in_manifest(change: Callable[[Content], object]) -> Callable[[Path, str], object]:
    return lambda root, split: change_manifest(root, change)


def numbers(what: str, value: int) -> Callable[[Path, str], object]:
    return lambda root, split: change_manifest(root, in_split(split, **{what: value}))


def flat_box(table: pa.Table) -> pa.Table:
    boxes = table["boxes"].to_pylist()
    box = next(row for row in boxes if row)
    box[2] = box[0]
    return table.set_column(5, table.schema.field(5), pa.array(boxes, type=table.schema.field(5).type))


JPEG = b"\xff\xd8\xff\xe0" + bytes(500) + b"\xff\xd9"

DAMAGES = [
    Damage("shard is cut off", lambda r, s: write_shard(shard_of(r, s).read_bytes()[:-500])(r, s), "was cut off"),
    Damage("shard is empty", write_shard(b""), "its 0 bytes do not end as a Parquet file"),
    Damage("shard is missing", lambda r, s: shard_of(r, s).unlink(), "Cannot read .*part-00000"),
    Damage("shard is a directory", replaced_by_directory, "Cannot read .*part-00000"),
    Damage("a foreign file in its place", write_shard(JPEG), "do not end as a Parquet file"),
    Damage(
        "a foreign table in its place",
        lambda r, s: pq.write_table(pa.table({"x": range(6 if s == "train" else 3)}), shard_of(r, s)),
        "lacks the columns image_id, file_name",
    ),
    Damage(
        "shard of another data set", lambda r, s: another(r, s, train=7, val=4), r"has [74] rows, its manifest says"
    ),
    Damage("shard of another data set, as many rows", another, "its manifest says|ends otherwise"),
    Damage("images in another order", prepared_again, "its checksum is not the manifest's", "reading"),
    Damage("a column is missing", without("iscrowd"), "lacks the column iscrowd"),
    Damage("the images are missing", without("image"), "lacks the column image"),
    Damage(
        "a column too many",
        lambda r, s: rewrite(r, s, lambda t: t.append_column("mask", t["image"])),
        "has the columns .*mask, expected",
    ),
    Damage(
        "another type", column("labels", lambda v: None, pa.list_(pa.int64())), "has list<.*int64> in the column lab"
    ),
    Damage(
        "text for bytes", column("image", lambda v: v.__setitem__(slice(None), ["x"] * len(v)), pa.string()), "string"
    ),
    Damage("null for a name", column("file_name", lambda v: v.__setitem__(0, None)), "column file_name has null"),
    Damage("null for an image", column("image", lambda v: v.__setitem__(0, None)), "1 of them null", "reading"),
    Damage("null for a list", column("area", lambda v: v.__setitem__(0, None)), "column area has null"),
    Damage("null in a list", column("boxes", set_first(None)), "column boxes has null"),
    Damage("a name that is not UTF-8", not_utf8, "Cannot use .*UTF"),
    Damage("label too large", column("labels", set_first(6)), r"row \d .*has the label 6, allowed are 0 to 5"),
    Damage("label negative", column("labels", set_first(-1)), r"has the label -1, allowed are 0 to 5"),
    Damage("box reversed", first_box(2, -0.5), "has a reversed box"),
    Damage("box without area", lambda r, s: rewrite(r, s, flat_box), "has a reversed box or one without area"),
    Damage("box NaN", first_box(1, float("nan")), "has a box that is not finite"),
    Damage("box infinite", first_box(3, float("inf")), "has a box that is not finite"),
    Damage("box outside", first_box(2, 70.0), "has a box outside of the image"),
    Damage("area NaN", column("area", set_first(float("nan"))), "has an area that is negative or not finite"),
    Damage("area negative", column("area", set_first(-3.0)), "has an area that is negative or not finite"),
    Damage(
        "a box of three numbers", column("boxes", lambda v: next(r for r in v if r).pop()), "numbers in the column b"
    ),
    Damage("a flag too many", column("iscrowd", lambda v: v[0].append(False)), "numbers in the column iscrowd"),
    Damage("an image of no size", column("width", lambda v: v.__setitem__(0, 0)), "is 0 x 64 pixels large"),
    Damage(
        "another size",
        column("height", lambda v: v.__setitem__(0, 65)),
        "64 x 64 pixels, its row says 64 x 65",
        "reading",
    ),
    Damage("an id twice", column("image_id", lambda v: v.__setitem__(0, v[1])), "the image id [0-9]+ stands twice"),
    Damage("a bit of an image is flipped", lambda r, s: flip(r, s, "image"), "its checksum is not", "reading"),
    Damage("a bit of the boxes is flipped", lambda r, s: flip(r, s, "boxes"), "(?i)Cannot use .*(crc|checksum)"),
    Damage("a bit of the footer is flipped", lambda r, s: flip(r, s, None), "Cannot read|ends otherwise|its manifest"),
    Damage("rows that lie", lies_of_rows, r"has [63] rows, its manifest says [52]", "manifest"),
    Damage(
        "row groups that lie",
        lies_of_row_groups,
        r"has row groups of \[[63]\] rows, its manifest says \[1, [52]\]",
        "manifest",
    ),
    Damage("row groups that do not add up", in_shard(row_groups=[1]), "rows in \\[1\\]", "manifest"),
    Damage("row groups of no rows", in_shard(rows=-1, row_groups=[-1]), "greater than or equal to 0", "manifest"),
    Damage(
        "checksums of other row groups", in_shard(checksums=["0" * 64] * 3), "3 checksums of 1 row groups", "manifest"
    ),
    Damage("another checksum", in_shard(checksums=["0" * 64]), "its checksum is not the manifest's", "manifest"),
    Damage("another size in bytes", in_shard(size=12345), "bytes, its manifest says 12345", "manifest"),
    Damage(
        "number of boxes that lies", numbers("boxes", 77), "the manifest says 77 boxes, the shards have", "manifest"
    ),
    Damage("number of negatives that lies", numbers("negatives", 3), "says 3 images without objects", "manifest"),
    Damage("number of crowds that lies", numbers("crowd", 1), "says 1 crowd boxes, the shards have 0", "manifest"),
    Damage(
        "manifest of another version", in_manifest(lambda c: c.update(format=2, new={})), "format version 2", "manifest"
    ),
    Damage(
        "manifest without classes", in_manifest(lambda c: c.update(categories=[])), "at least one class", "manifest"
    ),
    Damage(
        "a class id twice", in_manifest(lambda c: c["categories"][1].update(id=1)), "the id 1 stands twice", "manifest"
    ),
    Damage(
        "too few classes", in_manifest(lambda c: c.update(categories=c["categories"][:1])), "has the label", "manifest"
    ),
    Damage(
        "a class id of 80 bits", in_manifest(lambda c: c["categories"][0].update(id=2**80)), "is not a man", "manifest"
    ),
    Damage(
        "manifest is cut off", write_manifest(lambda d: d[:-100]), "is not a manifest of mgdet: not JSON", "manifest"
    ),
    Damage("manifest is a list", write_manifest(lambda d: b"[" + d + b"]"), "it holds a list", "manifest"),
    Damage("manifest is deeply nested", write_manifest(lambda d: b"[" * 10**5), "is not a manifest", "manifest"),
    Damage("manifest is missing", lambda r, s: (r / "dataset.json").unlink(), "No data set at", "manifest"),
]
