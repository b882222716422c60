"""What training sees: a sheet of pictures with a row for each image, as evaluation sees it and as some epochs do."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mgdet.config_yaml import Overrides
from mgdet.data.collate import Sample
from mgdet.data.dataset import ShardedDataset
from mgdet.data.loader import EvalImages, TrainImages
from mgdet.data.order import SampleKey
from mgdet.errors import DataError
from mgdet.evaluation.draw import COLORS
from mgdet.evaluation.fonts import drawable
from mgdet.inference.output import OutputFile, empty_directory
from mgdet.microscope.subject import choose_images, find_subject
from mgdet.structures import unique_names

EPOCHS = 5
"""Of the training that are shown, from the first one."""
CELL, GAP, TEXT = 256, 8, 14
CROWD = "#9a9a9a"


def show_augmented(
    source: str,
    out: str,
    *,
    overrides: Overrides = (),
    images: Sequence[int] | None = None,
    data: str | None = None,
    split: str | None = None,
    overwrite: bool = False,
    plugins: Sequence[str] = (),
) -> Path:
    """Write `out/augmented.png`: images of the training with their boxes, as the first epochs see them.

    Args:
        source, overrides, plugins: see `mgdet.microscope.subject.find_subject`.
        out: a local directory, which must be empty or absent.
        images: their ids; see `choose_images`.
        data: root of the data set; by default that of the configuration.
        split: by default the one that is trained on.
        overwrite: let `out` hold files already.

    Raises:
        DataError: no such image or data set, or an `out` that is taken.
        ConfigError: an unknown configuration.
        CheckpointError: no such checkpoint.
    """
    directory = empty_directory(out, overwrite)
    experiment = find_subject(source, overrides, plugins=plugins).experiment
    own = experiment.data
    dataset = ShardedDataset(data or own.uri, split or own.train_split)
    rows = choose_images(dataset, images)
    plain = EvalImages(dataset, own.transform, own.loader.max_pixels, crowds=True)
    changed = TrainImages(dataset, own.transform, experiment.seed, own.loader.max_pixels, experiment.train.epochs)
    sheet = [
        [plain[row], *(changed[SampleKey(epoch, row, step)] for epoch in range(min(EPOCHS, experiment.train.epochs)))]
        for step, row in enumerate(rows)
    ]
    names = [f"image {dataset.image_ids[row]} ({dataset.file_name(row)})" for row in rows]
    file = OutputFile(str(directory / "augmented.png"))
    file.write_bytes(draw_sheet(sheet, names, unique_names(dataset.categories)))
    return Path(file.file.path)


def draw_sheet(samples: Sequence[Sequence[Sample]], names: Sequence[str], classes: Sequence[str]) -> bytes:
    """A PNG: a row for each image, the first column as evaluation sees it. All pictures are drawn at one scale."""
    if not samples:
        raise DataError("there are no images to show")
    scale = CELL / max(max(sample.data.size) for row in samples for sample in row)
    step, head, band = CELL + GAP, TEXT + 2 * GAP, TEXT + GAP
    panels = [[_panel(sample, scale) for sample in row] for row in samples]
    heights = [max(panel.height for panel in row) + band + GAP for row in panels]
    width, height = GAP + step * len(samples[0]), head + sum(heights) + head
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    for column in range(len(samples[0])):
        title = "as evaluation sees it" if column == 0 else f"training, epoch {column}"
        _write(pen, (GAP + step * column, GAP // 2), title)
    top = head
    for row, name, tall in zip(panels, names, heights, strict=True):
        _write(pen, (GAP, top), name)
        for c, panel in enumerate(row):
            sheet.paste(panel, (GAP + step * c, top + band))
        top += tall
    x, y = GAP, height - head
    for label, text in [*enumerate(classes), (-1, "crowd: nothing is learned there")]:
        color = CROWD if label < 0 else COLORS[label % len(COLORS)]
        pen.rectangle((x, y, x + TEXT, y + TEXT), outline=color, width=3)
        _write(pen, (x + TEXT + GAP, y), text)
        x += TEXT + 3 * GAP + int(pen.textlength(drawable(text).text, font=_font(text)))
        if x > width:
            break
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _panel(sample: Sample, scale: float) -> Image.Image:
    height, width = sample.data.size
    size = max(1, round(width * scale)), max(1, round(height * scale))
    panel = Image.fromarray(sample.data.image.permute(1, 2, 0).numpy()).resize(size, Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(panel)
    boxes = [] if sample.crowds is None else [(box, CROWD) for box in sample.crowds.tolist()]
    labels = sample.data.labels.tolist()
    boxes += [(box, COLORS[k % len(COLORS)]) for box, k in zip(sample.data.boxes.tolist(), labels, strict=True)]
    for box, color in boxes:
        corners = [value * scale for value in box]
        pen.rectangle(corners, outline="black", width=3)
        pen.rectangle(corners, outline=color, width=2)
    return panel


def _write(pen: ImageDraw.ImageDraw, corner: tuple[int, int], text: str) -> None:
    pen.text(corner, drawable(text).text, fill="black", font=_font(text))


def _font(text: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(drawable(text).font, TEXT)
