"""The browser itself: what it does not notice, no test of a page can."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

import pytest

from tests.interop.ui import browser as browser_module
from tests.interop.ui.browser import Browser, BrowserError, Page


@pytest.fixture
def bare_page(browser: Browser) -> Iterator[Page]:
    page = browser.page()
    yield page
    page.close()


def _show(page: Page, html: str) -> None:
    page.goto(f"data:text/html,{quote(html)}")


@pytest.mark.parametrize(
    ("html", "complaint"),
    [
        ("<script>alert('seen')</script>", "dialog: seen"),
        ("<img src='data:,' onerror='alert(7)'>", "dialog: 7"),
        ("<script>throw new Error('thrown')</script>", "exception: Error: thrown"),
        ("<script>console.error('logged')</script>", "console: ['logged']"),
        ("<img src='http://elsewhere.example/x.png'>", "log: Failed to load resource"),
    ],
)
def test_what_goes_wrong_in_a_page_is_noticed(bare_page: Page, html: str, complaint: str) -> None:
    _show(bare_page, f"<title>x</title>{html}<p>shown</p>")
    bare_page.see("shown")
    bare_page.settle()
    assert [each[: len(complaint)] for each in bare_page.complaints] == [complaint]


def test_a_page_in_order_has_no_complaints(bare_page: Page) -> None:
    _show(bare_page, "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>")
    bare_page.see("<script>alert(1)</script>")
    bare_page.settle()
    assert bare_page.complaints == []


def test_what_lies_under_something_else_is_not_clicked(bare_page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    covered = "<div style='position: fixed; inset: 0; background: white'></div>"
    _show(bare_page, "<button onclick='document.title = `clicked`'>Go</button>")
    bare_page.click("button", "Go")
    bare_page.until("document.title === 'clicked'")
    _show(bare_page, f"<button onclick='document.title = `clicked`'>Go</button>{covered}")
    monkeypatch.setattr(browser_module, "PATIENCE_SECONDS", 0.3)
    with pytest.raises(BrowserError, match="waited in vain"):
        bare_page.click("button", "Go")
