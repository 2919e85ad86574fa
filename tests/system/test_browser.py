"""The pages in a real browser: what is drawn, clicked and typed, at two widths, in light and dark."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import done, train_arguments, write_project
from served import Server

axe = pytest.importorskip("axe_core_python.selenium", reason="axe-core-python is not installed")
selenium = pytest.importorskip("selenium", reason="selenium is not installed")
from selenium import webdriver  # noqa: E402 - only where it is there
from selenium.common.exceptions import NoAlertPresentException  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="chromium and chromium-driver are not installed"),
]
HOSTILE = [
    "<script>alert(1)</script>",
    "<img/src=x/onerror=alert(2)>",
    "\"'&amp;",
    "\u202eright-to-left",
    "</title><h1>x</h1>",
]
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
each_look = pytest.mark.parametrize(("size", "scheme"), [("desktop", "light"), ("phone", "dark")])


class Browser:
    """Chromium without a window."""

    def __init__(self) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver: Any = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))

    def open(self, address: str, size: str, scheme: str) -> None:
        """Go to a page as a screen of this size shows it."""
        width, height = SIZES[size]
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        preferred = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", preferred)
        self.driver.get(address)

    def run(self, script: str, *values: Any) -> Any:
        """What a script in the page returns."""
        return self.driver.execute_script(script, *values)

    def all(self, selector: str) -> list[Any]:
        """The elements that a selector finds."""
        found: list[Any] = self.driver.find_elements(By.CSS_SELECTOR, selector)
        return found

    def one(self, selector: str) -> Any:
        """The only one."""
        (found,) = self.all(selector)
        return found

    def wait(self, condition: str) -> None:
        """Until an expression in the page is true."""
        WebDriverWait(self.driver, 60).until(lambda _: self.run(f"return {condition}"))

    def assert_sound(self, scheme: str, picture: Path) -> None:
        """Nothing complains, nothing sticks out, nobody is shut out, and the colours are those that were asked for."""
        assert [entry for entry in self.driver.get_log("browser") if entry["level"] != "INFO"] == []
        assert self.run("return document.documentElement.scrollWidth <= innerWidth")
        found = axe.Axe().run(self.driver)["violations"]
        serious = [
            (each["id"], [node["html"] for node in each["nodes"]])
            for each in found
            if each["impact"] in ("serious", "critical")
        ]
        assert serious == []
        background = self.run("return getComputedStyle(document.body).backgroundColor")
        bright = sum(int(part) for part in background.strip("rgb()").split(",")) > 3 * 128
        assert bright == (scheme == "light")
        assert self.driver.save_screenshot(str(picture)) and picture.stat().st_size > 5_000

    def assert_harmless(self) -> None:
        """Text has made no element, and nobody has been asked to say yes."""
        with pytest.raises(NoAlertPresentException):
            _ = self.driver.switch_to.alert
        assert self.run("return document.scripts.length") == 1
        assert self.run("return document.images.length") == 0
        assert [heading.text for heading in self.all("h1")] != ["x"] and len(self.all("h1")) == 1


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    running = Browser()
    yield running
    running.driver.quit()


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training on text that means harm."""
    project = write_project(tmp_path_factory.mktemp("hostile"))
    for name in ("train.en", "train.de", "valid.en", "valid.de"):
        with (project / name).open("a", encoding="utf-8") as file:
            file.write(f"{' '.join(HOSTILE)}\n" * 3)
    run = project / "runs" / "rnn"
    settings = ("training.max_updates=4", "training.validate_every=2", "tokenizer={kind: whitespace}")
    done(train_arguments(project, run, *settings))
    return run


@pytest.fixture(scope="module")
def page(hostile_run: Path) -> str:
    """The address of its report; three of its sentences are hostile, and they are drawn."""
    done(["report", str(hostile_run), "--sentences", "13,1"])
    return (hostile_run / "report.html").as_uri()


@pytest.fixture(scope="module")
def comparison(hostile_run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a comparison of it with another seed."""
    other, folder = hostile_run.parent / "<b>other", tmp_path_factory.mktemp("comparison")
    project = hostile_run.parents[1]
    done(train_arguments(project, other, "training.max_updates=6", "seed=2", "tokenizer={kind: whitespace}"))
    texts = ["--source", str(project / "valid.en"), "--reference", str(project / "valid.de")]
    done(["compare", str(hostile_run), str(other), "-o", str(folder), *texts])
    return (folder / "comparison.html").as_uri()


@each_look
def test_a_report(browser: Browser, page: str, size: str, scheme: str, tmp_path: Path) -> None:
    browser.open(page, size, scheme)
    browser.assert_sound(scheme, tmp_path / "report.png")
    browser.assert_harmless()
    text = browser.run("return document.body.innerText")
    assert all(word in text for word in (HOSTILE[0], HOSTILE[1], HOSTILE[4]))
    assert len(browser.all("svg.chart")) >= 4 and len(browser.all("svg.heat")) >= 2
    assert all(svg.size["height"] > 50 for svg in browser.all("svg"))


@each_look
def test_the_keyboard_goes_through_a_report(browser: Browser, page: str, size: str, scheme: str) -> None:
    browser.open(page, size, scheme)
    browser.one("body").send_keys(Keys.TAB)
    assert browser.run("return document.activeElement.className") == "skip"
    for link in browser.all("nav a"):
        place = link.get_attribute("href").partition("#")[2]
        link.send_keys(Keys.ENTER)
        assert browser.run("return location.hash") == f"#{place}"
        top = browser.run("return document.getElementById(arguments[0]).getBoundingClientRect().top", place)
        at_the_end = browser.run("return scrollY + innerHeight >= document.documentElement.scrollHeight - 1")
        assert -1 <= top < 60 or at_the_end


@each_look
def test_a_comparison(browser: Browser, comparison: str, size: str, scheme: str, tmp_path: Path) -> None:
    browser.open(comparison, size, scheme)
    browser.assert_sound(scheme, tmp_path / "comparison.png")
    browser.assert_harmless()
    table = browser.all("table.sortable")[0]
    rows = "return [...arguments[0].tBodies[0].rows].map(row => row.cells[0].innerText)"
    buttons = table.find_elements(By.CSS_SELECTOR, "thead button")
    orders = []
    for _ in range(2):
        buttons[0].click()
        orders.append((browser.run(rows, table), table.find_element(By.CSS_SELECTOR, "th").get_attribute("aria-sort")))
    (first, up), (second, down) = orders
    assert first == second[::-1] and len(set(first)) == 2
    assert {up, down} == {"ascending", "descending"}
    assert any("<b>other" in name for name in first)


@each_look
def test_the_served_page(
    browser: Browser, finished: Path, hostile_run: Path, size: str, scheme: str, tmp_path: Path
) -> None:
    server = Server(hostile_run, finished)
    try:
        browser.open(f"http://127.0.0.1:{server.port}/", size, scheme)
        browser.one("#sentence").send_keys(" ".join(HOSTILE[:3]), Keys.ENTER)
        browser.wait("document.querySelectorAll('.hypotheses button').length >= 4")
        browser.wait("document.querySelectorAll('.picture svg').length === 2")
        browser.assert_sound(scheme, tmp_path / "served.png")
        browser.assert_harmless()
        (found,) = server.ask([" ".join(HOSTILE[:3])], n_best=2)
        assert browser.all(".translation")[0].text.split() == found["hypotheses"][0]["text"].split()
        browser.all(".hypotheses")[0].find_elements(By.CSS_SELECTOR, "button")[1].click()
        assert browser.all(".translation")[0].text.split() == found["hypotheses"][1]["text"].split()
        browser.one("#beam").send_keys("999")
        assert browser.run("return document.querySelector('#beam').validity.valid") is False
        assert [entry for entry in browser.driver.get_log("browser") if entry["level"] != "INFO"] == []
    finally:
        assert server.end(signal.SIGTERM).code == 143
