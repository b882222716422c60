"""The linked charts of a sweep's page: what they show, and in a browser (`tests/chromium.py`) what they select."""

import json
import re

import pytest

from mgdet.sweep.linked import axes, linked_charts
from mgdet.sweep.page import sweep_page
from mgdet.sweep.trials import ranked
from tests.chromium import chromium, screenshot
from tests.sweep.test_report import made  # noqa: F401  # a fixture
from tests.test_pages import is_whole

OUT = "return [...document.querySelectorAll('tbody tr')].filter(r => r.offsetParent === null).map(r => r.dataset.trial)"


@pytest.fixture
def shown(made):  # noqa: F811
    """The sweep, and its trials that have a value, the best first."""
    sweep, trials = made
    return sweep, ranked(sweep, trials)


def test_an_axis_for_each_searched_key_and_metric(shown):
    sweep, trials = shown
    drawn = {axis.name: axis for axis in axes(sweep, trials)}
    assert list(drawn) == [*sweep.space, "val/AP", "val/divergence"]
    by_name = {t.name: i for i, t in enumerate(trials)}
    assert drawn["val/AP"].heights[by_name["s-006"]] == 1
    assert drawn["val/AP"].heights[by_name["s-000"]] == 0
    sigma = drawn["assigner.sigma"]
    assert [t.name for t, at in zip(trials, sigma.heights, strict=True) if at is None] == [
        "s-006",
        "s-003",
        "s-000",
        "s-009",
    ]
    assert sigma.heights[by_name["s-001"]] == pytest.approx(0.4 / 3)
    assert sigma.texts[by_name["s-001"]] == "1.4"
    rate = drawn["train.optimizer.lr"]
    assert rate.heights[by_name["s-000"]] == pytest.approx(0)
    for axis in drawn.values():
        assert all(at is None or 0 <= at <= 1 for at in axis.heights)


def test_each_trial_has_a_line_a_point_and_a_row(made):  # noqa: F811
    sweep, trials = made
    page = is_whole(sweep_page(sweep, trials, {"train.optimizer.lr": 1.0}, "name: s"))
    for trial in trials:
        expected = 1 if trial.state == "failed" else 3
        assert page.count(f'data-trial="{trial.name}"') == expected, trial.name
    assert "://" not in page, "it needs no network"
    assert page.count("<script>") == 1
    assert "share of each key" in page
    data = json.loads(re.search(r'id="axes">(.*?)</script>', page)[1])
    for axis in data:
        heights = [at for at, _ in axis["steps"]]
        assert heights == sorted(heights)
        assert all(at is None or 0 <= at < len(heights) for at in axis["at"].values())


def test_without_a_value_there_is_no_chart_and_no_script(made):  # noqa: F811
    sweep, _ = made
    assert linked_charts(sweep, []) == ""
    assert "<script" not in sweep_page(sweep, [], None, "")


@pytest.mark.slow
def test_narrowing_an_axis_selects_trials(made, tmp_path):  # noqa: F811
    sweep, trials = made
    (tmp_path / "report.html").write_text(sweep_page(sweep, trials, {"train.optimizer.lr": 1.0}, "name: s"))
    from selenium.webdriver import ActionChains, Keys

    with chromium(tmp_path / "profile", "1280,1600") as browser:
        browser.get((tmp_path / "report.html").as_uri())
        said = browser.find_element("css selector", ".picked output")
        assert said.text == "9 of 9 trials"
        rate = list(sweep.space).index("train.optimizer.lr")
        low = browser.find_element("css selector", f"input[data-axis='{rate}'][data-end='low']")
        low.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
        assert said.text == "7 of 9 trials, by train.optimizer.lr"
        assert low.get_attribute("aria-valuetext") == "0.000225"
        assert browser.execute_script(OUT) == ["s-001", "s-000"]
        left = "return document.querySelectorAll('[data-trial]:not(.off)').length"
        assert browser.execute_script(left) == 3 * 7 + 1, "lines, points and rows; and the row of the failed trial"
        sigma = list(sweep.space).index("assigner.sigma")
        browser.find_element("css selector", f"input[data-axis='{sigma}'][data-end='high']").send_keys(Keys.ARROW_LEFT)
        assert set(browser.execute_script(OUT)) >= {"s-000", "s-003", "s-006", "s-009"}, "they have no sigma"
        screenshot(browser, "sweep-selected")
        browser.find_element("css selector", ".picked button").click()
        assert said.text == "9 of 9 trials"
        hold = browser.find_element("css selector", ".axis[data-axis='0'] .hold")
        ActionChains(browser).move_to_element_with_offset(hold, 0, 60).click_and_hold().move_by_offset(0, 70).perform()
        ActionChains(browser).release().perform()
        assert said.text.endswith("by assigner.name")
        assert len(browser.execute_script(OUT)) > 0
        for width in (1280, 390):
            browser.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {"width": width, "height": 1400, "deviceScaleFactor": 1, "mobile": width < 600},
            )
            browser.refresh()
            assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth"), width
            screenshot(browser, f"sweep-{width}")
        assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
