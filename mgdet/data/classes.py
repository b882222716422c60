"""The classes of an import: renamed, merged and chosen as asked for, and the same in all splits."""

from collections.abc import Mapping, Sequence

from mgdet.data.choices import Choices
from mgdet.data.formats.base import AnnotatedSplit
from mgdet.errors import ConfigError, DataError
from mgdet.storage import File
from mgdet.structures import Category
from mgdet.text import first_of


def regrouped(contents: Sequence[AnnotatedSplit], choices: Choices) -> list[AnnotatedSplit]:
    """The splits with the classes that `map`, `only` and `drop` leave, and only their objects.

    Classes of one new name become one, with the lowest id of them.

    Raises:
        ConfigError: a value is malformed.
        DataError: a name is no class of any split, or no class is left.
    """
    names = _renamed(choices.map)
    only, drop = _listed(choices.only), _listed(choices.drop)
    if not (names or only or drop):
        return list(contents)
    before = _names(contents)
    _require("--map", names, before)
    after = [names.get(name, name) for name in before]
    _require("--only", only, after)
    _require("--drop", drop, after)
    kept = {name for name in after if (not only or name in only) and name not in drop}
    if not kept:
        raise DataError("--only and --drop leave no class. Keep at least one.")
    return [_regroup(content, names, kept) for content in contents]


def _regroup(content: AnnotatedSplit, names: Mapping[str, str], kept: set[str]) -> AnnotatedSplit:
    categories: dict[int, str] | None = None
    if content.categories is not None:
        categories = {}
        for number in sorted(content.categories):
            name = names.get(content.categories[number], content.categories[number])
            if name in kept and name not in categories.values():
                categories[number] = name
    images = []
    for image in content.images:
        things = (thing._replace(category=names.get(thing.category, thing.category)) for thing in image.objects)
        images.append(image._replace(objects=[thing for thing in things if thing.category in kept]))
    return content._replace(images=images, categories=categories)


def _names(contents: Sequence[AnnotatedSplit]) -> list[str]:
    """All classes of all splits, listed or used, each once."""
    listed = [name for content in contents for name in (content.categories or {}).values()]
    used = (thing.category for content in contents for image in content.images for thing in image.objects)
    return list(dict.fromkeys([*listed, *sorted(set(used))]))


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _renamed(text: str) -> dict[str, str]:
    """The new name of each class: of `cat=animal,dog=animal`."""
    found: dict[str, str] = {}
    for part in _listed(text):
        old, equals, new = (piece.strip() for piece in part.partition("="))
        if not (old and equals and new):
            raise ConfigError(f"--map has {part!r}: allowed is OLD=NEW,OLD=NEW,... with names of classes.")
        if old in found:
            raise ConfigError(f"--map gives {old!r} two names. Give one.")
        found[old] = new
    return found


def _require(option: str, asked: Mapping[str, str] | Sequence[str], known: Sequence[str]) -> None:
    if unknown := [name for name in asked if name not in known]:
        raise DataError(f"{option}: there is no class {unknown[0]!r}; there are {first_of(sorted(set(known)))}.")


def common_categories(contents: Sequence[AnnotatedSplit]) -> list[Category]:
    """The classes in order of their id: what the splits list and agree upon, or else what their objects name."""
    used = [{thing.category for image in content.images for thing in image.objects} for content in contents]
    listed = [(content, content.categories) for content in contents if content.categories is not None]
    if listed:
        first, known = listed[0]
        for content, categories in listed[1:]:
            _refuse_difference(first.annotations, known, content.annotations, categories)
    else:
        known = dict(enumerate(sorted(set().union(*used)), start=1))
    for content, names in zip(contents, used, strict=True):
        if unknown := names - set(known.values()):
            raise DataError(
                f"{content.annotations} has objects of the class {min(unknown)!r}; the list of classes has "
                f"{first_of(list(known.values()))}. Correct either."
            )
    if not known:
        raise DataError(f"{contents[0].annotations}: no object and no class, there is nothing to learn.")
    return [Category(i, known[i]) for i in sorted(known)]


def _refuse_difference(place: File, known: Mapping[int, str], other: File, categories: Mapping[int, str]) -> None:
    here, there = (set(each.items()) for each in (known, categories))
    if here != there:
        raise DataError(
            f"The splits have different categories: only in {place}: {sorted(here - there) or 'none'}; only in "
            f"{other}: {sorted(there - here) or 'none'}. Every split must list the same ids and names, also of classes "
            "without boxes. Correct the files."
        )
