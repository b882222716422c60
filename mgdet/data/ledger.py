"""What an import changes or leaves out: each change is counted, named in the manifest and told once."""

import logging
from collections import Counter
from collections.abc import Iterable

from mgdet.data.formats.base import AnnotatedImage, AnnotatedObject
from mgdet.data.schema import Changes, DroppedBox
from mgdet.text import first_of

logger = logging.getLogger(__name__)

LISTED = 1000
"""How many dropped boxes, and how many dropped images, the manifest names at most; it counts all of them."""
EXAMPLES = 5
"""How many cases a warning names at most."""

_TEXTS = {
    "renamed": "{n} file names led to their file only by another reading (separators, case, Unicode form, %20, "
    "directory): {examples}",
    "repeated_images": "{n} files are listed under two ids; each was taken once, with the objects of all its entries "
    "(--keep-repeated keeps them apart): {examples}",
    "repeated_boxes": "{n} annotations repeat another one (same image, class and box) and were left out "
    "(--keep-repeated keeps them): {examples}",
    "filled_bbox": "{n} annotations have a segmentation and no box: the bounds of their polygon or mask were taken",
    "turned": "{n} images carry an EXIF orientation and boxes of the picture as it is stored, as their annotated size "
    "shows: the boxes were turned with the picture: {examples}",
    "rescaled": "{n} images have another size than their annotations say: their boxes were rescaled to the file's: "
    "{examples}",
    "undecided": "{n} images carry an EXIF orientation, and nothing shows whether their boxes refer to the picture as "
    "it is seen or as it is stored; they were left as they are. Look at some of them: {examples}",
    "unmatched": "{n} images have another size than their annotations say. The file's size is kept; check that the "
    "boxes fit (they must refer to the picture with its EXIF orientation applied): {examples}",
    "replaced_area": "{n} areas cannot be (negative, 0, larger than the box, or in another unit) and were replaced by "
    "width x height: {examples}",
    "deep": "{n} images have more than 8 bits and were scaled by the range that they state or use: {examples}",
    "dark": "{n} images of more than 8 bits are nearly black after they were scaled to 0..255; rescale the files: "
    "{examples}",
}
"""One warning for each kind that occurs: how many, and the first ones."""


class Ledger:
    """Counts and names everything that the import changes or drops."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, dict[str, None]] = {}  # ordered, each once
        self.boxes: list[DroppedBox] = []
        self.images: list[str] = []

    def note(self, kind: str, example: str = "", count: int = 1) -> None:
        """Count a change, and keep the first examples of its kind."""
        self.counts[kind] += count
        named = self.examples.setdefault(kind, {})
        if example and len(named) <= EXAMPLES:
            named[example] = None

    def drop(self, kind: str, split: str, image: AnnotatedImage, thing: AnnotatedObject, reason: str) -> None:
        """Count an object that is left out, and name it in the manifest."""
        self.counts[kind] += 1
        if len(self.boxes) < LISTED:
            reason = f"bbox {list(thing.box)} {reason}"
            self.boxes.append(
                DroppedBox(split=split, image=image.file_name, image_id=image.id, annotation=thing.id, reason=reason)
            )

    def changes(self) -> Changes:
        """What the manifest says."""
        counts = {kind: n for kind, n in self.counts.items() if kind in Changes.model_fields}
        return Changes(**counts, dropped_boxes=tuple(self.boxes), dropped_images=tuple(self.images[:LISTED]))

    def report(self, boxes: int) -> None:
        """Warn once of each kind of change. `boxes` is the number of all annotated boxes."""
        n = self.counts
        if n["filled_iscrowd"] or n["filled_area"]:
            logger.warning(
                "Filled in what annotations lack: iscrowd=0 in %d, area=width*height in %d",
                n["filled_iscrowd"],
                n["filled_area"],
            )
        if cut := n["degenerate"] + n["outside"] + n["clipped"]:
            logger.warning(
                "Boxes: %d without area dropped, %d outside their image dropped, %d clipped at the border "
                "(%.1f %% of %d)",
                *(n["degenerate"], n["outside"], n["clipped"], 100 * cut / max(1, boxes), boxes),
            )
        for kind, text in _TEXTS.items():
            if n[kind]:
                logger.warning("%s", text.format(n=n[kind], examples=_shown(self.examples.get(kind, ()), n[kind])))


def _shown(examples: Iterable[str], count: int) -> str:
    named = list(examples)
    more = [""] * max(0, count - len(named)) if len(named) > EXAMPLES else []
    return first_of([*named, *more], EXAMPLES, "; ")
