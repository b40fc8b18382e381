"""A visitor of docs/index.html: Chromium, from disk, without a network.

What tests/test_page.py, test_page_learn.py and test_page_parts.py share.
"""

import contextlib

import pytest
from page_laboratory import browser  # noqa: F401  a fixture

from support import webpage

# Of every picture in a part of the page its sum, so that a changed picture is seen.
PICTURES = """part => JSON.stringify([...document.querySelectorAll(`#part-${part} canvas`)].map(
    canvas => canvas.pixels ? canvas.pixels.reduce((sum, value) => sum + value, 0) : 0))"""
# What each part shows last when it is opened.
SHOWN = {
    "learn": "document.querySelector('#original').pixels",
    "morph": "document.querySelectorAll('#walk canvas').length && [...document.querySelectorAll("
    "'#walk canvas')].every(canvas => canvas.pixels)",
    "faces": "face.code",
    "classes": "classButtons.every(one => one.pixels) && compared.grid.canvas.pixels",
}


class Visitor:
    """A page in a browser, and what went wrong in it."""

    def __init__(self, browser):
        self.page = browser.new_page(
            viewport={"width": 1280, "height": 900}, offline=True, reduced_motion="reduce"
        )
        self.errors, self.requests = [], []
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def open(self, fragment: str = "", parts=("learn",), search: str = "") -> None:
        self.page.goto("about:blank")
        self.page.goto(webpage.PAGE.as_uri() + search + fragment)
        for part in parts:
            self.page.locator(f"#part-{part}").scroll_into_view_if_needed()
            self.page.wait_for_function(SHOWN[part])
        self.settle()

    def settle(self) -> None:
        self.page.wait_for_function("isQuiet()")

    @contextlib.contextmanager
    def expect_new_pictures(self, part: str):
        self.settle()
        before = self.page.evaluate(PICTURES, part)
        yield
        self.page.wait_for_function(f"([part, before]) => ({PICTURES})(part) !== before",
                                    arg=[part, before])  # fmt: skip
        self.settle()


@pytest.fixture(scope="module")
def opened(browser):
    return Visitor(browser)


@pytest.fixture
def visitor(opened):
    opened.errors.clear()
    opened.requests.clear()
    yield opened
    opened.page.emulate_media(reduced_motion="reduce")
    opened.page.set_viewport_size({"width": 1280, "height": 900})
    assert opened.errors == []
    assert {url.split(":")[0] for url in opened.requests} <= {"file", "data", "blob", "about"}
