"""The page in a real browser: it opens without an error, and what it counts and links is what the assigners say.

`tests/chromium.py` says what it needs.
"""

import pytest

from mgdet.microscope.numbers import Findings, Moment
from mgdet.microscope.page import page
from tests.chromium import chromium, screenshot
from tests.microscope.test_numbers import findings, labels_of, looked_at

READY = "return document.body.dataset.ready"


@pytest.fixture(scope="module")
def chrome(tmp_path_factory):
    """Opens a headless Chromium of a size, in pixels, with the log of its console."""
    with chromium(tmp_path_factory.mktemp("chromium"), "1280,1400") as browser:
        yield browser


def wait(browser, script, *arguments):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 300).until(lambda b: b.execute_script(script, *arguments))


@pytest.mark.slow
def test_the_page_in_a_browser(chrome, tmp_path):
    from selenium.webdriver import ActionChains, Keys

    predictions, targets, assigners, found = findings(objects=5)
    *_, earlier = looked_at("anchors", seed=1)
    moments = (Moment("step 1 (epoch 0)", 1, 0), *found.moments)
    shown = {(0, 0): earlier, (1, 0): found.shown[0, 0]}
    about = {**found.about, "network": "UNTRAINED: of a test"}
    two = Findings(about, found.classes, False, assigners, found.pictures, moments, shown)
    (tmp_path / "index.html").write_text(page(two))
    chrome.get((tmp_path / "index.html").as_uri())
    wait(chrome, READY)
    assert chrome.find_element("css selector", "#network.untrained").text == "UNTRAINED: of a test"
    assert chrome.find_element("id", "film").is_displayed(), "there are two checkpoints"

    # the table of assigners says what they say
    for i, (name, assigner) in enumerate(assigners.items()):
        direct = labels_of(predictions, targets, assigner)
        cls, loc = ({a: g for a, g in enumerate(direct[task]) if g >= 0} for task in ("cls", "loc"))
        cells = chrome.execute_script(
            "return [...document.querySelectorAll('#assigners tbody tr')[arguments[0]].cells].map(c => c.textContent)",
            i,
        )
        lacking = [str(sum(g not in each.values() for g in range(5)) or "none") for each in (cls, loc)]
        ignored = sum(label == -2 for label in direct["cls"])
        counts = [len(cls), len(loc), len(cls.keys() & loc.keys()), ignored]
        assert cells == [f" {name}", *map(str, counts), *lacking]

    # pointing at a prior in the picture shows its pair in the plane, and the other way round
    for canvas, points in (("picture", "picturePoints"), ("plane", "planePoints")):
        at = chrome.execute_script(f"return {points}[{points}.length - 1]")
        element = chrome.find_element("id", canvas)
        x, y = (int(at[k] - element.size[side] / 2) for k, side in (("x", "width"), ("y", "height")))
        chrome.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        ActionChains(chrome).move_to_element_with_offset(element, x, y).perform()
        wait(chrome, "return state.focus !== null")
        focus = chrome.execute_script("return state.focus")
        assert f"Prior {focus['index']}:" in chrome.find_element("id", "prior").text
        assert chrome.execute_script(
            "return planePoints.some((p) => p.pair === state.focus.pair)"
            " && picturePoints.some((p) => p.prior === state.focus.prior)"
        )
    screenshot(chrome, "microscope-focus")

    # a rectangle that is dragged in the plane marks its priors in both
    plane = chrome.find_element("id", "plane")
    far = int(plane.size["width"] * 0.46), int(plane.size["height"] * 0.46)
    drag = ActionChains(chrome).move_to_element_with_offset(plane, -far[0] + 40, -far[1]).click_and_hold()
    drag.move_to_element_with_offset(plane, *far).release().perform()
    wait(chrome, "return marked.size > 0")
    assert "priors marked" in chrome.find_element("id", "marked").text

    # all by keyboard: assigner, checkpoint, prior, release
    radio = chrome.find_element("css selector", "#assigners input:checked")
    radio.send_keys(Keys.ARROW_DOWN)
    wait(chrome, "return document.body.dataset.ready === '1/0/1/-1/-1'")
    chrome.find_element("id", "moment").send_keys(Keys.ARROW_LEFT)
    wait(chrome, "return document.body.dataset.ready === '0/0/1/-1/-1'")
    picture = chrome.find_element("id", "picture")
    picture.send_keys(Keys.ARROW_RIGHT)
    wait(chrome, "return state.kept && state.focus !== null")
    first = chrome.execute_script("return state.focus.index")
    picture.send_keys(Keys.ARROW_DOWN)
    assert chrome.execute_script("return state.focus.index") != first
    picture.send_keys(Keys.ESCAPE)
    assert chrome.execute_script("return state.focus") is None

    # an object: its best priors by each task, in order of rank
    chrome.execute_script("choose({ object: 2, moment: 1 })")
    wait(chrome, "return document.body.dataset.ready === '1/0/1/-1/2'")
    ranks = chrome.execute_script(
        "return [...document.querySelectorAll('#ranks table')].map((t) => [...t.tBodies[0].rows].map((r) =>"
        " Number(r.cells[0].textContent)))"
    )
    assert len(ranks) == 2
    assert all(rows == sorted(rows) for rows in ranks)
    screenshot(chrome, "microscope-object")

    # the address says what is shown, so that a link leads there
    assert "object=2" in chrome.current_url
    chrome.get(chrome.current_url.replace("object=2", "object=1"))
    chrome.refresh()
    wait(chrome, "return document.body.dataset.ready === '1/0/1/-1/1'")

    chrome.set_window_size(500, 900)
    assert chrome.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert [entry for entry in chrome.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
