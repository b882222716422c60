"""What all pages are made of; and the pages in a real browser, at a desk and on a phone (`tests/chromium.py`)."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from benchmarks.intervals import detector, scenes
from mgdet.comparison.compare import compare_judged
from mgdet.comparison.report import page as comparison_page
from mgdet.data import ShapesConfig, ShardedDataset, generate_shapes
from mgdet.data.pictures import Pictures
from mgdet.evaluation.average_precision import DetectionArrays
from mgdet.evaluation.coco import coco_ap
from mgdet.inference.results import ResultFiles
from mgdet.pages.chart import Line, interval, line_chart
from mgdet.pages.document import bars, command, document, number, section, table, text
from tests.chromium import chromium, screenshot

EMPTY = {"meta", "link", "img", "br", "line", "circle", "polyline", "rect", "input"}


class Nested(HTMLParser):
    """Fails where tags are not closed in order."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in EMPTY:
            assert self.open.pop() == tag


def is_whole(html):
    parser = Nested()
    parser.feed(html)
    assert parser.open == []
    return html


def test_nothing_is_taken_for_markup():
    name = "<b>&\x1b[31m"
    parts = [
        text(name),
        table((name,), [[text(name)]], name),
        bars(name, [(name, 1.0, name)]),
        section(name, "<p></p>", hint=name),
        line_chart(name, [Line(name, [0, 1], [0, 1])] * 2, name, name),
    ]
    shown = is_whole(document(name, parts))
    assert "<b>" not in shown
    assert "\x1b" not in shown
    assert "secret" not in text("s3://me:secret@bucket/data")
    assert "a: 1\nb: &lt;" in command("a: 1\nb: <")


def test_charts_of_anything():
    nan, inf = float("nan"), float("inf")
    for x, y in (
        ([], []),
        ([1], [2]),
        ([1, 2], [nan, nan]),
        ([0, 1, 2], [5, nan, 5]),
        ([0, 1], [inf, 1e-12]),
        ([-3, 1e9], [0, 0]),
    ):
        shown = is_whole(line_chart("a", [Line("b", x, y)], "x", "y"))
        assert "nan" not in shown
        assert "inf" not in shown
    assert "nothing to show" in line_chart("a", [], "x", "y")
    points = re.search(r'points="([^"]*)"', line_chart("a", [Line("b", [0, 1], [0, 1])], "", ""))[1].split()
    (x1, y1), (x2, y2) = (tuple(map(float, point.split(","))) for point in points)
    assert x1 < x2
    assert y1 > y2, "the larger value is higher"
    assert is_whole(interval(-1, 0.5, 2, 0)).count("<line") == 2


def test_numbers():
    assert [number(v) for v in (None, float("nan"), 0.12345, -1)] == ["", "", "0.123", "-1.000"]
    assert number(0.5, 2, signed=True) == "+0.50"
    assert section("title", "", "") == ""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The page of an evaluation and that of a comparison."""
    directory = tmp_path_factory.mktemp("pages")
    generate_shapes(directory / "shapes", ShapesConfig(train=2, val=12, size=128))
    dataset = ShardedDataset(str(directory / "shapes"), "val")
    rng, gt = np.random.default_rng(0), dataset.ground_truth()
    found = detector(rng, gt).det
    found = DetectionArrays(found.image, found.boxes.clip(0, 128), found.scores, found.labels)
    metrics = {"checkpoint": "runs/mine/checkpoints/step-00000100.pt", "metrics": coco_ap(gt, found).metrics()}
    ResultFiles.below(str(directory / "judged")).write(
        metrics, coco_ap(gt, found), Pictures(dataset), {"classification": rng.integers(0, 12, len(gt.boxes))}
    )
    drawn = scenes(rng, 40)
    runs = {name: [detector(rng, drawn, skill)] for name, skill in (("base", 0.0), ("mine", 0.6), ("third", -0.2))}
    (directory / "compare.html").write_text(
        comparison_page(compare_judged(runs, 200), "mgdet compare runs/base runs/mine")
    )
    return {"evaluation": directory / "judged/report.html", "comparison": directory / "compare.html"}


@pytest.mark.slow
def test_pages_in_a_browser(pages, tmp_path_factory):
    """No error, nothing wider than the screen, every wide table reached by keyboard."""
    for name, path in pages.items():
        is_whole(path.read_text())
        for width in (1280, 390):
            with chromium(tmp_path_factory.mktemp("chromium"), f"{width},1400") as browser:
                browser.execute_cdp_cmd(
                    "Emulation.setDeviceMetricsOverride",
                    {"width": width, "height": 1400, "deviceScaleFactor": 1, "mobile": width < 600},
                )
                browser.get(path.as_uri())
                assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth"), (
                    name,
                    width,
                )
                hidden = browser.execute_script(
                    "return [...document.querySelectorAll('.wide')].filter(w => w.scrollWidth > w.clientWidth"
                    " && w.tabIndex < 0).length"
                )
                assert hidden == 0
                assert browser.execute_script("return [...document.images].every(i => i.naturalWidth && i.alt)")
                screenshot(browser, f"{name}-{width}")
                problems = [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
                assert problems == []
