"""Imports in portions, whoever does them: `tests/cluster/test_fleet.py` does them on Ray."""

import json
import os
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import fs

from mgdet import storage
from mgdet.cli import main
from mgdet.data import ShardedDataset, import_annotations, import_shared, writer
from mgdet.data.export import export_dataset
from mgdet.data.formats import FORMATS
from mgdet.data.formats.coco import Coco
from mgdet.data.formats.voc import Voc
from mgdet.data.import_shared import ImportPlan
from mgdet.errors import DataError, Interrupted
from tests.data.scenes import Scene


@pytest.fixture(autouse=True)
def small_portions(monkeypatch):
    """Two images are checked at a time, and three are a shard."""
    monkeypatch.setattr(import_shared, "SIZE", 2)
    monkeypatch.setattr(import_shared, "ROWS_PER_SHARD", 3)
    monkeypatch.setattr(writer, "ROWS_PER_SHARD", 3)


def here(work, wanted, order=lambda wanted: wanted):
    """Do portions in this process, with the work as another process would get it."""
    work = pickle.loads(pickle.dumps(work))
    work.begin(None)
    for portion in order(wanted):
        yield work(portion._replace(content=json.loads(json.dumps(portion.content))))


def shuffled(work, wanted):
    """In any order, and each portion twice, as where a process that counted as lost is alive."""
    yield from list(here(work, wanted, lambda wanted: random.Random(0).sample(wanted, len(wanted))))
    list(here(work, wanted, reversed))


class Killed(Exception):
    """The command ends."""


def killed_after(count):
    """Ends the command when so many portions are done."""

    def spread(work, wanted):
        for done, answer in enumerate(here(work, wanted), start=1):
            yield answer
            if done == count:
                raise Killed

    return spread


def files(root):
    """The content of each file, by its path."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in Path(root).rglob("*") if path.is_file()}


def beside(out):
    """What else lies in the directory of a data set."""
    return sorted(path.name for path in out.parent.iterdir() if path.name.startswith("."))


@pytest.fixture
def coco(tmp_path):
    """Seven pictures in two splits, with what annotations often have wrong; arguments of an import."""
    scene = Scene(tmp_path, count=7, width=80, height=56, suffix=".png")
    deep = np.asarray(Image.open(scene.images / "0002.png").convert("L")).astype(np.uint16) << 4
    Image.fromarray(deep).save(scene.images / "0002.png")
    scene.annotations[3]["bbox"] = [-5, 10, 20, 20]
    scene.annotations[4]["area"] = -1
    del scene.annotations[6]["iscrowd"]
    scene.content["images"][4]["file_name"] = "IMAGES\\0005.PNG"
    splits = []
    for name, kept in (("train", range(1, 6)), ("val", (6, 7))):
        images = [image for image in scene.content["images"] if image["id"] in kept]
        things = [thing for thing in scene.annotations if thing["image_id"] in kept]
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({**scene.content, "images": images, "annotations": things}))
        splits.append((name, (path, scene.images)))
    return Coco(), splits


def both(tmp_path, data_format, splits, spread=here, **options):
    """The files of an import by one process, and of one in portions."""
    import_annotations(tmp_path / "one", data_format, splits, name="same", **options)
    ImportPlan(tmp_path / "two", data_format, splits, name="same", **options).run(spread)
    assert ".two.prepare" not in beside(tmp_path / "two")
    return files(tmp_path / "one"), files(tmp_path / "two")


# --- the same bytes


@pytest.mark.parametrize("spread", [here, shuffled])
def test_the_bytes_are_those_of_one_process(tmp_path, coco, spread, caplog):
    one, two = both(tmp_path, *coco, spread=spread)
    assert one == two
    assert sorted(one) == [
        *("dataset.json", "train/part-00000.parquet", "train/part-00001.parquet", "val/part-00000.parquet"),
    ]
    changes = json.loads(one["dataset.json"])["changes"]
    assert (changes["deep"], changes["clipped"], changes["renamed"], changes["replaced_area"]) == (1, 1, 1, 2)
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said[: len(said) // 2] == said[len(said) // 2 :]


@pytest.mark.parametrize("name", ["voc", "yolo", "lvis", "cvat", "openimages"])
def test_the_bytes_are_those_of_one_process_in_each_format(tmp_path, whole, name):
    data_format = next(each for each in FORMATS if each.name == name)()
    places = export_dataset(whole, data_format, tmp_path / "exported")
    one, two = both(tmp_path, data_format, list(places.items()), spread=shuffled)
    assert one == two
    assert len(one) == 4


def test_tiles_are_those_of_one_process(tmp_path, coco):
    one, two = both(tmp_path, *coco, spread=shuffled, tile=32, drop_empty_tiles="val")
    assert one == two
    assert "train/whole.parquet" in one
    assert "val/whole.parquet" not in one


# --- stops


def test_it_goes_on_after_any_end(tmp_path, coco):
    import_annotations(tmp_path / "one", *coco, name="same")
    out, given = tmp_path / "two", []

    def plan(spread):
        def counted(work, wanted):
            given.append(len(wanted))
            yield from spread(work, wanted)

        return ImportPlan(out, *coco, name="same").run(counted)

    def stopped(work, wanted):
        for answer in here(work, wanted):
            os.kill(os.getpid(), 2)
            yield answer

    with pytest.raises(Killed):
        plan(killed_after(1))
    with pytest.raises(Interrupted, match="4 of 7 images are checked; the same command goes on"):
        plan(stopped)
    with pytest.raises(Killed):
        plan(killed_after(2))
    assert not out.exists()
    assert beside(out) == [".two.prepare"]
    with pytest.raises(Killed):
        plan(killed_after(2))
    (out.parent / ".two.prepare/data/train/part-00001.parquet.part").write_bytes(b"of a process that was killed")
    plan(here)
    assert given == [4, 3, 2, 3, 1]
    assert files(out) == files(tmp_path / "one")
    assert beside(out) == []


def test_what_was_changed_in_between_is_made_anew(tmp_path, coco):
    """A shard that is gone, one that is cut, an image, annotations: nothing of before is in the data set."""
    data_format, splits = coco
    out, stage = tmp_path / "two", tmp_path / ".two.prepare"
    given = []

    def counted(work, wanted):
        given.append([portion.number for portion in wanted])
        yield from here(work, wanted)
        if type(work).__name__ == "Writing":
            raise Killed

    def again():
        given.clear()
        with pytest.raises(Killed):
            ImportPlan(out, data_format, splits, name="same").run(counted)
        return list(given)

    assert again() == [[0, 1, 2, 3], [0, 1, 2]]
    (stage / "data/train/part-00000.parquet").unlink()
    (stage / "data/val/part-00000.parquet").write_bytes(b"PAR1")
    assert again() == [[0, 2]]
    image = splits[0][1][1] / "0003.png"
    image.write_bytes(image.read_bytes() + b" ")
    assert again() == [[1], [0]]
    content = json.loads(splits[1][1][0].read_text())
    content["annotations"][0]["iscrowd"] = 1
    splits[1][1][0].write_text(json.dumps(content))
    assert again() == [[2]]
    ImportPlan(out, data_format, splits, name="same").run(here)
    import_annotations(tmp_path / "one", data_format, splits, name="same")
    assert files(out) == files(tmp_path / "one")


# --- errors


def test_a_destination_that_is_taken(tmp_path, coco):
    out = tmp_path / "out"
    ImportPlan(out, *coco).run(here)
    before = files(out)
    with pytest.raises(DataError, match="exists already and nothing was written"):
        ImportPlan(out, *coco)
    with pytest.raises(Killed):
        ImportPlan(out, *coco, overwrite=True, name="another").run(killed_after(1))
    assert files(out) == before
    ImportPlan(out, *coco, overwrite=True, name="another").run(here)
    assert json.loads(files(out)["dataset.json"])["name"] == "another"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    with pytest.raises(DataError, match="is not a data set of mgdet"):
        ImportPlan(tmp_path / "mine", *coco, overwrite=True)
    assert beside(out) == []


def test_images_that_cannot_be_used_are_all_named_before_anything_is_written(tmp_path, coco):
    images = coco[1][0][1][1]
    (images / "0001.png").write_bytes(b"no image")
    (images / "0004.png").unlink()
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"2 image files cannot be used \(1 missing, 1 undecodable\)") as caught:
        ImportPlan(out, *coco).run(here)
    assert f"{images}/0001.png: not a readable image (8 bytes)" in str(caught.value)
    assert not out.exists()
    assert not (tmp_path / ".out.prepare" / "data").exists()
    one, two = both(tmp_path, *coco, skip_bad_images=True)
    assert one == two


def test_an_image_that_could_not_be_used_is_looked_at_again(tmp_path, coco):
    """What was wrong, here its content and elsewhere its rights, may change without a trace in its size and time."""
    image, out = coco[1][0][1][1] / "0001.png", tmp_path / "out"
    good, times = image.read_bytes(), (10**9, 10**9)
    given = []

    def counted(work, wanted):
        given.append([portion.number for portion in wanted])
        yield from here(work, wanted)

    image.write_bytes(bytes(len(good)))
    os.utime(image, times)
    with pytest.raises(DataError, match="1 image files cannot be used"):
        ImportPlan(out, *coco).run(counted)
    image.write_bytes(good)
    os.utime(image, times)
    ImportPlan(out, *coco).run(counted)
    assert given == [[0, 1, 2, 3], [0], [0, 1, 2]]


def test_a_file_that_a_process_does_not_see_is_no_missing_image(tmp_path, coco):
    plan = ImportPlan(tmp_path / "out", *coco)
    images = coco[1][0][1][1]

    def without(work, wanted):
        shutil.move(images / "0003.png", tmp_path / "elsewhere")
        yield from here(work, wanted)

    with pytest.raises(DataError, match=r"0003.png was listed, and is not there on .*All nodes must see the images"):
        plan.run(without)


def test_a_split_without_an_image_is_refused(tmp_path, coco):
    data_format, splits = coco
    for path in splits[1][1][1].iterdir():
        if path.stem in ("0006", "0007"):
            path.unlink()
    with pytest.raises(DataError, match="Split 'val' has no images"):
        ImportPlan(tmp_path / "out", data_format, splits, skip_bad_images=True).run(here)
    assert not (tmp_path / "out").exists()


def test_what_lies_beside_is_no_data_set(tmp_path, coco):
    with pytest.raises(Killed):
        ImportPlan(tmp_path / "out", *coco).run(killed_after(1))
    with pytest.raises(DataError, match="No data set at"):
        ShardedDataset(str(tmp_path / ".out.prepare"), "train")
    with pytest.raises(DataError, match=r"file:///: nothing can lie beside it"):
        ImportPlan("file:///", *coco)


def test_damaged_rows_are_noticed(tmp_path, coco):
    def damaged(work, wanted):
        if type(work).__name__ == "Writing":
            file = tmp_path / ".out.prepare/rows/000001.parquet"
            file.write_bytes(file.read_bytes().replace(b"0004", b"0003"))
        yield from here(work, wanted)

    with pytest.raises(DataError, match=r"000001.parquet is not what was written there"):
        ImportPlan(tmp_path / "out", *coco).run(damaged)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--address", "1.2.3.4:6379"], "--address and --cpus-per-worker are for a cluster: give --cluster too"),
        (["--workers", "auto"], "--workers auto is for a cluster: give --cluster too"),
        (["--workers", "0"], "There cannot be 0 decoding threads"),
        (["--workers", "0", "--cluster"], "There cannot be 0 processes; allowed are 1 to 4096"),
        (["--workers", "few"], "'few': expected a number, or auto with --cluster"),
    ],
)
def test_options_that_mean_nothing_together(tmp_path, coco, options, said, capsys):
    _, splits = coco
    places = [str(place) for place in splits[0][1]]
    arguments = ["prepare", "coco", "--split", "train", *places, "--out", str(tmp_path / "out"), *options]
    try:
        status = main.main(arguments)
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert said in capsys.readouterr().err


# --- annotations, images and destination in a store


@pytest.fixture
def store(monkeypatch):
    """Gives the URI of a path in a store that renames nothing, which is the local disk."""

    def opened(uri):
        return fs.SubTreeFileSystem("/", fs.LocalFileSystem()), uri.removeprefix("store://")

    monkeypatch.setattr(storage, "_open", opened)
    return lambda path: f"store://{path}"


def in_store(splits, store):
    return [(name, tuple(map(store, places))) for name, places in splits]


def test_everything_in_a_store(tmp_path, coco, store):
    data_format, splits = coco
    import_annotations(tmp_path / "one", data_format, splits, name="same")
    stored, two, three = in_store(splits, store), tmp_path / "two", tmp_path / "three"
    import_annotations(store(two), data_format, stored, name="same")
    with pytest.raises(Killed):
        ImportPlan(store(three), data_format, stored, name="same").run(killed_after(1))
    assert not three.exists()

    def stopped_at_shards(work, wanted):
        yield from (killed_after(1) if type(work).__name__ == "Writing" else here)(work, wanted)

    with pytest.raises(Killed):
        ImportPlan(store(three), data_format, stored, name="same").run(stopped_at_shards)
    assert sorted(files(three)) == ["train/part-00000.parquet"]
    with pytest.raises(DataError, match="No data set at"):
        ShardedDataset(store(three), "train")
    ImportPlan(store(three), data_format, stored, name="same").run(shuffled)
    assert files(tmp_path / "one") == files(two) == files(three)
    assert beside(two) == []


def test_a_data_set_in_a_store_is_replaced(tmp_path, coco, store):
    data_format, splits = coco
    out = tmp_path / "out"
    ImportPlan(store(out), data_format, splits[::-1]).run(here)
    with pytest.raises(DataError, match="exists already"):
        ImportPlan(store(out), data_format, splits[:1])
    with pytest.raises(Killed):
        ImportPlan(store(out), data_format, splits[:1], overwrite=True).run(killed_after(2))
    assert (out / "dataset.json").is_file(), "shards are not begun yet"
    ImportPlan(store(out), data_format, splits[:1], overwrite=True).run(here)
    assert sorted(files(out)) == ["dataset.json", "train/part-00000.parquet", "train/part-00001.parquet"]


def test_names_lead_to_files_of_a_store_by_the_same_readings(tmp_path, store):
    scene = Scene(tmp_path, count=5)
    (scene.images / "below").mkdir()
    shutil.move(scene.images / "0001.png", scene.images / "below" / "0001.png")
    names = ["below//./0001.png", "0002.PNG", "images/0003.png", "https://host/x/0004.png", "../images/0005.png"]
    for image, name in zip(scene.content["images"], names, strict=True):
        image["file_name"] = name
    local = scene.prepare()
    assert local.changes.renamed == 3
    places = store(tmp_path / "train.json"), store(scene.images)
    assert import_annotations(tmp_path / "two", Coco(), [("train", places)]).changes.renamed == 4
    scene.content["images"][0]["file_name"] = "0006.png"
    scene.content["images"][1]["file_name"] = "below"
    (tmp_path / "train.json").write_text(json.dumps(scene.content))
    with pytest.raises(DataError, match="2 missing, 0 undecodable") as caught:
        import_annotations(tmp_path / "three", Coco(), [("train", places)])
    assert f"{scene.images}/0006.png: there is no such file" in str(caught.value)


def test_what_is_wrong_in_a_store_is_named_by_its_uri(tmp_path, coco, store):
    data_format, splits = coco
    (path, images) = splits[0][1]

    def said(*places, kind=data_format):
        with pytest.raises(DataError) as caught:
            import_annotations(tmp_path / "out", kind, [("train", places)])
        return str(caught.value)

    assert f"Cannot fetch the annotation file {store(tmp_path)}/none.json" in said(
        store(tmp_path / "none.json"), images
    )
    assert f"The image directory {store(tmp_path)}/none does not exist, or has no files" in said(
        store(path), store(tmp_path / "none")
    )
    assert "the format voc takes local paths only" in said(store(tmp_path), store(images), kind=Voc())
    path.write_text("[")
    assert f"{store(path)} is not JSON" in said(store(path), images)
    assert not (tmp_path / "out").exists()
