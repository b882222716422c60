"""`--map`, `--only` and `--drop`: which classes and objects are left, in formats with a list of classes and without."""

import pytest

from mgdet.data.choices import Choices
from mgdet.data.classes import common_categories, regrouped
from mgdet.data.formats import AnnotatedImage, AnnotatedObject, AnnotatedSplit
from mgdet.errors import ConfigError, DataError

LISTED = {3: "cat", 1: "dog", 7: "car", 9: "tree"}


def split(*names, categories=LISTED):
    """An image with an object of each of these classes, and one without objects."""
    objects = [AnnotatedObject(name, (0, 0, k + 1, 1), id=k) for k, name in enumerate(names)]
    return AnnotatedSplit(
        None, None, [AnnotatedImage(1, "a", None, objects), AnnotatedImage(2, "b", None, [])], categories
    )


def chosen(contents, **choices):
    """The classes by id, and the (class, id) of each object of each split."""
    found = regrouped(contents, Choices(**choices))
    assert [len(content.images) for content in found] == [2] * len(contents)
    classes = {category.id: category.name for category in common_categories(found)}
    return classes, [[(thing.category, thing.id) for thing in content.images[0].objects] for content in found]


CAT_AND_CAR = [("cat", 0), ("car", 1)]


@pytest.mark.parametrize(
    ("choices", "classes", "objects"),
    [
        ({}, {1: "dog", 3: "cat", 7: "car", 9: "tree"}, CAT_AND_CAR),
        ({"map": "cat=animal,dog=animal"}, {1: "animal", 7: "car", 9: "tree"}, [("animal", 0), ("car", 1)]),
        ({"map": " cat = dog "}, {1: "dog", 7: "car", 9: "tree"}, [("dog", 0), ("car", 1)]),
        ({"map": "cat=dog,dog=cat"}, {1: "cat", 3: "dog", 7: "car", 9: "tree"}, [("dog", 0), ("car", 1)]),
        ({"only": "car,tree"}, {7: "car", 9: "tree"}, [("car", 1)]),
        ({"drop": "cat, tree"}, {1: "dog", 7: "car"}, [("car", 1)]),
        ({"map": "cat=animal,dog=animal", "only": "animal"}, {1: "animal"}, [("animal", 0)]),
        ({"only": "cat,car", "drop": "car"}, {3: "cat"}, [("cat", 0)]),
        ({"map": "cat=a=b"}, {1: "dog", 3: "a=b", 7: "car", 9: "tree"}, [("a=b", 0), ("car", 1)]),
    ],
)
def test_classes_that_are_listed(choices, classes, objects):
    assert chosen([split("cat", "car"), split()], **choices) == (classes, [objects, []])


def test_classes_that_only_the_objects_tell():
    splits = [split("cat", "car", categories=None), split("dog", categories=None)]
    found = chosen(splits, map="cat=animal,dog=animal", drop="car")
    assert found == ({1: "animal"}, [[("animal", 0)], [("animal", 0)]])


@pytest.mark.parametrize(
    ("choices", "error", "message"),
    [
        ({"map": "cow=animal"}, DataError, "--map: there is no class 'cow'; there are car, cat, dog, tree"),
        ({"only": "Cat"}, DataError, "--only: there is no class 'Cat'"),
        ({"map": "cat=animal", "drop": "cat"}, DataError, "--drop: there is no class 'cat'; there are animal, car"),
        ({"only": "cat", "drop": "cat"}, DataError, "leave no class"),
        ({"map": "cat"}, ConfigError, "--map has 'cat': allowed is OLD=NEW"),
        ({"map": "cat="}, ConfigError, "allowed is OLD=NEW"),
        ({"map": "cat=a,cat=b"}, ConfigError, "--map gives 'cat' two names"),
        ({"map": 3}, ConfigError, "map = 3: expected str"),
    ],
)
def test_what_leads_nowhere(choices, error, message):
    with pytest.raises(error, match=message):
        chosen([split("cat")], **choices)
