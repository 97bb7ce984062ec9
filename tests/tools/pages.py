"""
A browser for tests of the page: Chromium, controlled by Playwright, and addresses to look at.

No test may cause a complaint in the browser's console, a violation of the content security policy first of all; where a
connection is lost on purpose, the browser says so, and nothing else is forgiven.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support import PATIENCE, Running, Site

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Locator, Page

MIB = 1 << 20
STAGE = Path(__file__).with_name("page_stage.py")
QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
QUIET += ["--disable-sync", "--no-first-run"]
PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; where it is not, the test is skipped."""
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("playwright is not installed: pip install 'trioft[test-page]'")
    if shutil.which("chromium") is None:
        pytest.skip("Chromium is not installed")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE * 1000 / 3)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=QUIET)
        yield browser
        browser.close()


Look = Callable[..., "Page"]
Begin = Callable[[int], "Stage"]


@pytest.fixture
def look(browser: Browser) -> Iterator[Look]:
    """Open the page at an address in a window of its own, and wait until it is live. The console stays empty."""
    from playwright.sync_api import expect

    said: list[str] = []
    contexts = []

    def open_page(url: str, scheme: str = "light", size: dict[str, int] | None = None, live: bool = True) -> Page:
        window: Any = {"color_scheme": scheme, "viewport": size or {"width": 1280, "height": 900}}
        contexts.append(browser.new_context(**window))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(_said(message)))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(f"a dialog: {dialog.message}"))
        page.goto(url)
        if live:
            expect(page.locator("#link-text")).to_have_text("Live")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [text for text in said if text] == []


def _said(message: ConsoleMessage) -> str:
    """Return what the console complains about, but for the connections that the test has cut."""
    if message.type not in ("error", "warning"):
        return ""
    is_lost = re.search(
        r"net::ERR_(CONNECTION_|EMPTY_|INCOMPLETE)|status of 401|HTTP Authentication failed", message.text
    )
    return "" if is_lost else message.text


class Stage:
    """The page of an agent whose files are made up."""

    def __init__(self, files: int) -> None:
        command = [sys.executable, str(STAGE), str(files)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url: str = json.loads(self.process.stdout.readline())

    def say(self, *words: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def everything(self) -> None:
        """Have a file in each state, and names that fit nowhere."""
        self.say("add", "settling", MIB, "day 1/settling.mxf", "somebody has it open for writing")
        for state in ("growing", "ready", "copying", "verifying", "done"):
            self.say("add", state, 3 * MIB, f"day 1/{state}.mxf")
        self.say("add", "copying", 25 * 10**9, f"{'a folder with a long name/' * 4}{'take ' * 30}0001.mxf")
        self.say("add", "waiting", MIB, "day 1/waiting.mxf", "space: the destination is full")
        self.say("add", "failed", MIB, f"day 1/{'x' * 200}.mxf", "another file has this name at the destination")

    def end(self) -> None:
        with self.process:
            self.process.kill()


@pytest.fixture
def stage() -> Iterator[Begin]:
    """Begin a ``Stage``."""
    stages: list[Stage] = []

    def begin(files: int = 0) -> Stage:
        stages.append(Stage(files))
        return stages[-1]

    yield begin
    for stage in stages:
        stage.end()


def watch(site: Site, *options: str | Path, feed: str = "127.0.0.1:0") -> tuple[Running, str]:
    """Start ``trioft watch`` with the page; return it and the page's address."""
    agent = site.watch("--feed", feed, *options)
    text: str = agent.wait_for(lambda line: line["event"] == "feed")["text"]
    return agent, text.rpartition(" ")[2]


def row(page: Page, text: str) -> Locator:
    """Return the rows of the table of files in which *text* is to be read."""
    return page.locator("#rows > [role=row]:visible").filter(has_text=text)
