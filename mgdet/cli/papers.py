"""List the published rows that have a configuration, and what each should reach.

    %(prog)s                                # all rows
    %(prog)s coco_atss_r50                  # one: what it should reach, what differs, and how it is run

The configurations are `mgdet train NAME`. A row counts as reproduced when its difference from the published number is
within what seeds make; none of these was run by mgdet's authors unless the row says so.
"""

import argparse
from typing import NamedTuple

from mgdet.cli.complete import complete_configs
from mgdet.cli.run import Command, reader_may_leave
from mgdet.config_files import PAPERS, names, summary
from mgdet.errors import ConfigError

FROZEN = "the affine part of the frozen batch norms does not train, images without objects are trained on as background"
DISTANCES = f"{FROZEN}, distances instead of boxes coded against the square of 8 strides"
INPUT = "images are also divided by their deviation, no interpolation by area or Lanczos, scores are not rounded"


class Row(NamedTuple):
    """A published row."""

    published: str  # the number, data set and protocol
    source: str  # where the number stands, and how certain it is
    differs: str  # what of the published recipe mgdet lacks
    data: str = "COCO val2017"
    measured: str = ""  # what it reached here; empty: not run


def _voc(network: str, baseline: str = "", guided: str = "") -> dict[str, Row]:
    """Two rows of one of Mutual Guidance's networks on VOC at 320 pixels; without numbers these were not found."""
    source = "the official README (verified)" if baseline else ""
    return {
        f"voc320_{network}_{assigner}": Row(published or "not found", source, INPUT, "VOC 2007 test")
        for assigner, published in (("max_iou", baseline), ("mutual_guidance", guided))
    }


ROWS = {
    "coco_retinanet_r50": Row("36.5 AP", "MMDetection's model zoo (verified)", FROZEN),
    "coco_fcos_r50": Row(
        "38.7 AP",
        "MMDetection's model zoo, with its improvements (verified)",
        f"{FROZEN}, biases learn at the rate of all (theirs twice), Caffe's weights and input",
    ),
    "coco_atss_r50": Row("39.4 AP", "MMDetection's model zoo (verified)", DISTANCES),
    "coco_atss_qfl_r50": Row("39.9 AP", "TOOD, table 2 (verified)", DISTANCES),
    "coco_gfl_r50": Row("40.2 AP", "MMDetection's model zoo (verified)", FROZEN),
    "coco_task_aligned_r50": Row(
        "40.3 AP", "TOOD, table 2, TAL on a parallel head (verified)", f"{DISTANCES}, focal loss in the first 4 epochs"
    ),
    "coco_tood_r50": Row(
        "42.5 AP", "TOOD's text and code, anchor-free (verified)", f"{FROZEN}, focal loss in the first 4 epochs"
    ),
    "coco_correlation_r50": Row("39.8 AP", "the paper, ATSS with the loss (second-hand)", DISTANCES),
    "coco_free_anchor_r50": Row(
        "38.7 AP", "MMDetection's model zoo (verified)", f"{FROZEN}, an anchor in several bags serves one object"
    ),
    "coco_paa_r50": Row("40.2 AP", "MMDetection's model zoo, without score voting (verified)", DISTANCES),
    "coco_ota_r50": Row("40.7 AP", "the authors' README (verified)", FROZEN),
    "coco_ddod_r50": Row("40.4 AP", "the paper, decoupled labels alone on ATSS (second-hand)", DISTANCES),
    "coco_auto_assign_r50": Row(
        "40.4 AP",
        "MMDetection's model zoo (verified)",
        f"{FROZEN}, class scores that begin at 0.01 (theirs 0.02), Caffe's weights and input",
    ),
    "coco_dw_r50": Row(
        "41.5 AP",
        "the authors' README, without box refinement (verified)",
        f"{FROZEN}, class scores that begin at 0.01 (theirs 0.02), a threshold on p instead of its product",
    ),
    "coco_musu_r50": Row("40.6 AP", "the paper (second-hand)", f"{FROZEN}, how tau grows with the bag: not found"),
    **_voc("vgg16_fssd", "54.1 mAP (80.1 at 0.5)", "56.2 mAP (80.4 at 0.5)"),
    **_voc("vgg16_fpn", "55.2 mAP (80.2 at 0.5)", "57.7 mAP (81.1 at 0.5)"),
    **_voc("vgg16_pafpn", "58.1 mAP (81.7 at 0.5)", "59.5 mAP (82.3 at 0.5)"),
    **_voc("resnet18_fssd"),
    **_voc("resnet18_fpn"),
}
LEFT_OUT = {
    "VarifocalNet, 41.6": "star features and box refinement",
    "DW with box refinement, 42.1": "boxes that are sampled again at their sides",
    "Mutual Guidance on VOC with RFBNet, 55.6 and 57.9": "RFBNet's blocks and sources",
}
"""Published rows without a configuration, with AP or mAP, and what mgdet lacks for them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    name = parser.add_argument("name", nargs="?", help="show this row instead of the list")
    complete_configs(name, PAPERS, files=False)


def run(args: argparse.Namespace) -> int:
    """Print the list or one row."""
    if args.name:
        name = args.name.removeprefix("papers/").removesuffix(".yaml")
        if name not in ROWS:
            raise ConfigError(
                f"{args.name}: no such row. There are {', '.join(ROWS)}; `mgdet papers` says what they are."
            )
        show(name)
        return 0
    with reader_may_leave():
        listed()
    return 0


def listed() -> None:
    """Print every row in a line or two, then what was left out."""
    width = max(len(name) for name in ROWS)
    for name, row in ROWS.items():
        print(f"{name:<{width}}  {row.data}: {row.published}; here: {row.measured or 'not run'}")
        print(f"{'':<{width}}  {summary(f'papers/{name}')}")
    print("\nPublished rows without a configuration, and what mgdet lacks for them:")
    for title, lacks in LEFT_OUT.items():
        print(f"  {title}: {lacks}")


def show(name: str) -> None:
    """Print one row."""
    row = ROWS[name]
    for label, text in (
        ("row", summary(f"papers/{name}")),
        ("should reach", f"{row.published}, {row.data}" + (f"; {row.source}" if row.source else "")),
        ("here", row.measured or "not run"),
        ("differs in", row.differs),
        ("8 GPUs", f"mgdet train {name} cluster.workers=8"),
        ("check first", f"mgdet train {name} --dry-run"),
    ):
        print(f"{label + ':':<14}{text}")


def configured() -> list[str]:
    """The names of the configurations of published rows."""
    return [name.removeprefix("papers/") for name in names(PAPERS)]


COMMAND = Command("papers", __doc__, add_arguments, run, "nothing was written")
