"""River UI in front of a schema that only riverq has touched, and a browser in front of River UI."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.fix_database import SESSION_APPLICATION
from tests.fix_skips import skip_or_fail
from tests.interop.oracle import find_go
from tests.interop.ui.browser import Browser, Page, find_chromium
from tests.interop.ui.crew import Crew, Jobs, at_work, fill
from tests.interop.ui.server import RiverUI, build, serving

collect_ignore_glob = [] if os.environ.get("RIVERQ_INTEROP") else ["test_*.py"]
"""They take minutes: `make test-interop` runs them, `make test` leaves them out."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here that asks for River UI needs Go, and is marked so."""
    for item in items:
        if "riverui" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.go)


@pytest.fixture(scope="session")
def riverui() -> Path:
    """River UI's own command. Skips where Go is missing."""
    go = find_go()
    if go is None:
        skip_or_fail("no Go in the PATH, in /usr/local/go/bin or in RIVERQ_GO: River UI cannot be built")
    return build(go)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium. Skips where there is none."""
    command = find_chromium()
    if command is None:
        skip_or_fail("no Chromium in the PATH or in RIVERQ_CHROMIUM (Debian and Ubuntu: apt-get install chromium)")
    browser = Browser(command, tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture
def crew(engine: sa.Engine, schema: str) -> Iterator[Crew]:
    """A riverq client at work in a schema that riverq has migrated."""
    with at_work(engine, schema) as crew:
        yield crew


@pytest.fixture
def jobs(crew: Crew) -> Jobs:
    """One job of every fate, in the crew's schema."""
    return fill(crew)


@pytest.fixture
def ui(riverui: Path, database_url: str, crew: Crew, tmp_path: Path) -> Iterator[RiverUI]:
    """River UI, serving the crew's schema."""
    # The name keeps its pool out of the leak check: it ends after the test, and Postgres takes a moment to see it.
    url = sa.make_url(database_url).update_query_dict({"application_name": SESSION_APPLICATION})
    if "sslmode" not in url.query:
        url = url.update_query_dict({"sslmode": "prefer"})
    address = url.render_as_string(hide_password=False)
    with serving(riverui, address, crew.schema, tmp_path / "riverui.log") as ui:
        yield ui


@pytest.fixture
def page(browser: Browser, ui: RiverUI) -> Iterator[Page]:
    """An empty page. Any complaint of it fails the test, a dialog above all: that would be a script out of a job."""
    with ExitStack() as stack:
        page = browser.page()
        stack.callback(page.close)
        yield page
        page.settle()
    assert page.complaints == []


@pytest.fixture
def shoot(
    page: Page, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], None]:
    """`shoot("queues")` writes a screenshot into the folder that RIVERQ_SCREENSHOTS names, or one of pytest's."""
    named = os.environ.get("RIVERQ_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)

    def shoot(name: str) -> None:
        page.screenshot(folder / f"{name}.png")

    return shoot
