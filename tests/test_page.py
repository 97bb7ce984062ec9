"""
The page in a real browser: what an operator sees of real runs, of ten thousand files, and when the agent is gone.

No test may cause a message of the browser's console, a violation of the content security policy first of all; where a
connection is lost on purpose, the browser says so, and nothing else is forgiven.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support import PATIENCE, Running, Site, make_tree, mounted, pattern, wait_until

if importlib.util.find_spec("playwright") is None:
    pytest.skip("playwright is not installed: pip install 'trioft[test-page]'", allow_module_level=True)
if shutil.which("chromium") is None:
    pytest.skip("Chromium is not installed", allow_module_level=True)

from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

if TYPE_CHECKING:
    from playwright.sync_api import Locator

MIB = 1 << 20
RECORDER = Path(__file__).with_name("recorder.py")
STAGE = Path(__file__).with_name("page_site.py")
QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
QUIET += ["--disable-sync", "--no-first-run"]
EVIL = "<img src=x onerror=alert(1)>"
PHONE = {"width": 360, "height": 740}
expect.set_options(timeout=PATIENCE * 1000 / 3)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=QUIET)
        yield browser
        browser.close()


Look = Callable[..., Page]


@pytest.fixture
def look(browser: Browser) -> Iterator[Look]:
    """Open the page at an address in a window of its own, and wait until it is live. The console stays empty."""
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
def stage() -> Iterator[Callable[[int], Stage]]:
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


# --- what is going on


def test_a_recording_is_followed_before_the_operators_eyes(site: Site, look: Look, tmp_path: Path) -> None:
    """While it is recorded the page says how far behind the copy is; then that it is there, and how that is known."""
    config = tmp_path / "config.yaml"
    config.write_text("growing: {min_size: 1MiB}\ncopy: {checkpoint_time: 200ms}\n")
    _, url = watch(site, "-c", config, "--settle", "1s")
    page = look(url)
    expect(page.locator("#no-active")).to_have_text("Nothing is being transferred.")
    expect(page).to_have_title("trioft")
    command = [
        sys.executable,
        str(RECORDER),
        "ts",
        str(site.source / "take.ts"),
        "--size",
        "24MiB",
        "--rate",
        "12MiB/s",
    ]
    with subprocess.Popen([*command, "--wait"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as recorder:
        active = page.locator("#active > li")
        expect(active).to_contain_text("take.ts")
        expect(active).to_contain_text(re.compile(r"following, \d+\.\d s behind"))
        expect(active.get_by_role("progressbar")).to_have_attribute(
            "aria-valuetext", re.compile(r"[1-9]\d* % copied, [1-9]\d* % verified")
        )
        expect(page).to_have_title(re.compile(r"^1 ▸ \d+% trioft$"))
        expect(page.locator("#icon")).to_have_attribute("href", "/icon-active.svg")
        expect(page.locator("#verdict")).to_have_text("No: 1 not delivered yet.")
        expect(row(page, "take.ts")).to_contain_text("copying")
        assert recorder.stdin is not None
        recorder.stdin.close()
    late = page.locator("#lately > li")
    expect(late).to_contain_text("take.ts")
    expect(late).to_contain_text("25.2 MB · verified by read-back")
    expect(page.locator("#verdict")).to_have_text(
        "Yes, what this run has found: 1 file delivered, verified by read-back."
    )
    expect(page.locator("#totals")).to_contain_text("1 delivered")
    expect(page.locator("#chart .curve")).to_have_attribute("d", re.compile(r"M.*L"))
    expect(page).to_have_title("trioft")
    expect(page.locator("#icon")).to_have_attribute("href", "/icon.svg")


def test_a_failure_is_said_with_its_reason(site: Site, look: Look) -> None:
    """What failed is on top, announced, and in the tab; the source must not be removed."""
    make_tree(site.dest, {"show.mxf": b"another one"})
    agent, url = watch(site, "--if-exists", "fail")
    page = look(url)
    expect(page.locator("#no-attention")).to_be_visible()
    make_tree(site.source, {"show.mxf": pattern(3000), "good.mxf": pattern(4000)})
    agent.wait_for_file("show.mxf", "failed")
    trouble = page.locator("#troubles > li")
    expect(trouble).to_contain_text("failed")
    expect(trouble).to_contain_text("show.mxf")
    expect(trouble).to_contain_text("another file has this name at the destination")
    expect(page.get_by_role("alert")).to_have_text("show.mxf failed: another file has this name at the destination")
    expect(page).to_have_title("1 failed ‧ trioft")
    expect(page.locator("#icon")).to_have_attribute("href", "/icon-failed.svg")
    expect(page.locator("#lately")).to_contain_text("good.mxf")
    expect(page.locator("#verdict")).to_have_text("No: 1 failed.")


def test_a_full_destination_is_said_with_what_waits_for_it(site: Site, look: Look) -> None:
    """How much is free is a figure and a bar; what does not fit waits, and why."""
    with mounted("trioft-page", site.dest, "-t", "tmpfs", "-o", "size=8M"):
        assert site.dest.stat().st_dev != site.root.stat().st_dev
        agent, url = watch(site)
        page = look(url)
        make_tree(site.source, {"large.mxf": 12 * MIB, "small.mxf": 1000})
        agent.wait_for_file("large.mxf", "waiting")
        trouble = page.locator("#troubles > li")
        expect(trouble).to_contain_text("waiting")
        expect(trouble).to_contain_text("large.mxf")
        expect(trouble).to_contain_text(re.compile("space", re.IGNORECASE))
        expect(page.locator("#space-text")).to_contain_text(re.compile(r"8\.3\d MB free of 8\.39 MB"))
        expect(page.locator("#space")).to_have_attribute("aria-label", "0 % used")
        expect(page.locator("#lately")).to_contain_text("small.mxf")
        expect(page.locator("#verdict")).to_have_text("No: 1 not delivered yet.")
        agent.end()


def test_less_proof_is_said_to_be_less(site: Site, look: Look) -> None:
    """Whoever had only sizes compared does not read that the source may be removed."""
    make_tree(site.source, {"a.mxf": 1000})
    agent, url = watch(site, "--verify", "size")
    agent.wait_for_file("a.mxf", "done")
    page = look(url)
    expect(page.locator("#verdict")).to_have_text("Not proven: 1 file delivered, compared by size only.")
    page.locator("#lately").get_by_role("button", name="a.mxf").click()
    expect(page.locator("dialog")).to_contain_text("Not proven: delivered, only its size was compared.")


def test_the_names_of_files_are_text(site: Site, look: Look) -> None:
    """A name that is markup, or turns the direction of reading, is shown, and nothing else comes of it."""
    make_tree(site.dest, {f"{EVIL}.failed": b"x"})
    make_tree(site.source, {f"{EVIL}.mxf": 10, f"{EVIL}.failed": 20, "two\nlines \u202efxm.exe": 30})
    agent, url = watch(site, "--if-exists", "fail")
    agent.wait_for_file("two\nlines \u202efxm.exe", "done")
    agent.wait_for_file(f"{EVIL}.mxf", "done")
    page = look(url)
    expect(row(page, f"{EVIL}.mxf")).to_be_visible()
    expect(row(page, "two\\nlines \\u{202e}fxm.exe")).to_be_visible()
    expect(page.locator("#troubles")).to_contain_text(f"{EVIL}.failed")
    expect(page.get_by_role("alert")).to_contain_text(EVIL)
    row(page, f"{EVIL}.mxf").get_by_role("button").click()
    expect(page.locator("#details-name")).to_have_text(f"{EVIL}.mxf")
    assert page.locator("img, [onerror]").count() == 0


@pytest.mark.xfail(strict=True, reason="the feed learns of a file when its state changes first")
def test_a_file_is_seen_as_soon_as_it_is_known(stage: Callable[[int], Stage], look: Look) -> None:
    """Promise 8: whoever waits for a file to settle sees that it does."""
    its = stage(0)
    its.say("add", "settling", MIB, "new.mxf")
    page = look(its.url)
    expect(page.locator("#now")).to_contain_text("1 file, 1.05 MB to go")
    assert row(page, "new.mxf").count() == 1


# --- when the agent is not there


def test_a_lost_agent_is_said_and_found_again(site: Site, look: Look) -> None:
    """Figures of an agent that is gone are marked as old; when it is back, the page is live by itself."""
    make_tree(site.source, {"a.mxf": 1000})
    agent, url = watch(site)
    agent.wait_for_file("a.mxf", "done")
    page = look(url)
    expect(page.locator("#lately")).to_contain_text("a.mxf")
    agent.end(signal.SIGKILL)
    expect(page.locator("#link-text")).to_have_text("Disconnected, retrying")
    expect(page.locator("#link")).to_contain_text(re.compile(r"what you see is from \d\d:\d\d:\d\d"))
    expect(page.locator("body")).to_have_class(re.compile("stale"))
    expect(page).to_have_title("disconnected ‧ trioft")
    expect(page.locator("#verdict")).to_have_text("Unknown: there is no connection to the agent.")
    expect(page.locator("#lately")).to_contain_text("a.mxf")
    watch(site, feed=url.removeprefix("http://").strip("/"))
    make_tree(site.source, {"b.mxf": 1000})
    expect(page.locator("#link-text")).to_have_text("Live")
    expect(page.locator("body")).not_to_have_class(re.compile("stale"))
    expect(page.locator("#lately")).to_contain_text("b.mxf")
    expect(page.locator("#lately")).not_to_contain_text("a.mxf")


def test_silence_is_a_lost_connection(stage: Callable[[int], Stage], look: Look) -> None:
    """Fifteen seconds without a heartbeat, on a connection that seems to be there, count as disconnected."""
    its = stage(3)
    page = look(its.url)
    page.clock.install()
    page.reload()
    expect(page.locator("#link-text")).to_have_text("Live")
    its.process.send_signal(signal.SIGSTOP)
    page.clock.fast_forward(14_000)
    expect(page.locator("#link-text")).to_have_text("Live")
    page.clock.fast_forward(2_000)
    expect(page.locator("#link-text")).to_have_text("Disconnected, retrying")
    its.process.send_signal(signal.SIGCONT)
    page.get_by_role("button", name="Try now").click()
    expect(page.locator("#link-text")).to_have_text("Live")


@pytest.mark.xfail(strict=True, reason="no-referrer makes browsers send the form with Origin: null, which is refused")
def test_without_the_token_there_is_a_form(site: Site, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token is asked for once; a page whose cookie is not valid any more asks for it again, by itself."""
    monkeypatch.setenv("TRIOFT_FEED_TOKEN", "correct horse")
    agent, url = watch(site)
    page = look(url, live=False)
    page.get_by_label("Token").fill("battery staple")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_have_text("This is not the token.")
    page.get_by_label("Token").fill("correct horse")
    page.keyboard.press("Enter")
    expect(page.locator("#link-text")).to_have_text("Live")
    agent.end()
    expect(page.locator("#link-text")).to_have_text("Disconnected, retrying")
    monkeypatch.setenv("TRIOFT_FEED_TOKEN", "another")
    watch(site, feed=url.removeprefix("http://").strip("/"))
    expect(page.get_by_label("Token")).to_be_visible()


# --- many files


def test_ten_thousand_files_are_a_few_rows(stage: Callable[[int], Stage], look: Look) -> None:
    """Only rows that can be seen exist, wherever one scrolls to; the table says how many there are, and which these."""
    page = look(stage(10_000).url)
    table = page.get_by_role("table")
    expect(table).to_have_attribute("aria-rowcount", "10001")
    page.get_by_role("button", name="Name").click()
    expect(page.get_by_role("columnheader", name="Name")).to_have_attribute("aria-sort", "ascending")
    assert page.evaluate("document.querySelectorAll('*').length") < 1500
    page.locator("#view").scroll_into_view_if_needed()
    for index in (0, 4321, 9999):
        page.evaluate("n => { const v = document.getElementById('view'); v.scrollTop = n * 34 }", index)
        wanted = row(page, f"clip {index:05d}.mxf")
        expect(wanted).to_be_in_viewport()
        expect(wanted).to_have_attribute("aria-rowindex", str(index + 2))
        expect(wanted).to_contain_text(f"day {index // 1000}/clip {index:05d}.mxf")
    assert page.evaluate("document.querySelectorAll('*').length") < 1500
    # Every place that is scrolled over shows its rows in the next frame, and none twice.
    shown: list[list[int]] = page.evaluate("""async () => {
        const view = document.getElementById("view"), seen = [];
        for (let top = 0; top < 340000; top += 17001) {
            view.scrollTop = top;
            await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
            const rows = [...document.querySelectorAll("#rows > [role=row]:not([hidden])")];
            const box = view.getBoundingClientRect();
            const inside = rows.filter((row) => {
                const { top, bottom } = row.getBoundingClientRect();
                return bottom > box.top && top < box.bottom;
            });
            seen.push(inside.map((r) => Number(r.querySelector(".name").title.slice(-9, -4))).sort((a, b) => a - b));
        }
        return seen;
    }""")
    for n, indexes in enumerate(shown):
        first = n * 17001 // 34
        assert indexes[:2] == [first, first + 1]
        assert indexes == list(range(first, first + len(indexes)))
        assert len(indexes) > 10


def test_files_are_filtered_searched_and_sorted(stage: Callable[[int], Stage], look: Look) -> None:
    """By state, with counts; by name; by any column, either way round."""
    its = stage(2000)
    its.say("add", "failed", 5, "other/bad one.mxf", "it is bad")
    for n in range(3):
        its.say("add", "done", 10**9 * (n + 1), f"other/clip good {n}.mxf")
    page = look(its.url)
    table, chips = page.get_by_role("table"), page.locator("#chips")
    expect(chips.get_by_role("button", pressed=True)).to_have_text("all 2,004")
    expect(chips.get_by_role("button")).to_have_text(["all 2,004", "failed 1", "ready 2,000", "done 3"])
    expect(page.locator("#rows [aria-rowindex='2']")).to_contain_text("bad one.mxf")
    chips.get_by_role("button", name="done 3").click()
    expect(table).to_have_attribute("aria-rowcount", "4")
    names = page.locator("#rows > [role=row]:visible").get_by_role("button")
    by_index = "rows => rows.sort((a, b) => a.ariaRowIndex - b.ariaRowIndex).map(r => r.querySelector('.name').title)"
    visible = page.locator("#rows > [role=row]:visible")
    goods = [f"other/clip good {n}.mxf" for n in range(3)]
    page.get_by_role("columnheader", name="Size").get_by_role("button").click()
    expect(names).to_have_count(3)
    assert visible.evaluate_all(by_index) == goods
    page.get_by_role("columnheader", name="Size").get_by_role("button").click()
    expect(page.get_by_role("columnheader", name="Size")).to_have_attribute("aria-sort", "descending")
    assert visible.evaluate_all(by_index) == goods[::-1]
    its.say("add", "done", 10, "other/clip good 3.mxf")
    expect(table).to_have_attribute("aria-rowcount", "5")
    chips.get_by_role("button", name="all").click()
    page.keyboard.press("/")
    expect(page.get_by_label("Find")).to_be_focused()
    page.keyboard.type("CLIP 0012")
    expect(table).to_have_attribute("aria-rowcount", "11")
    page.get_by_label("Find").fill("nothing like that")
    expect(page.locator("#no-files")).to_have_text("No file is like that.")


# --- for everybody


def test_the_table_is_used_by_keyboard(stage: Callable[[int], Stage], look: Look) -> None:
    """One stop of the Tab key; arrows go from file to file, Enter shows all about one, Escape goes back to it."""
    page = look(stage(500).url)
    page.get_by_role("button", name="Name").click()
    page.get_by_role("columnheader", name="Time").get_by_role("button").focus()
    page.keyboard.press("Tab")
    focused = page.locator(":focus")
    expect(focused).to_have_attribute("title", "day 0/clip 00000.mxf")
    for _ in range(60):
        page.keyboard.press("ArrowDown")
    expect(focused).to_have_attribute("title", "day 0/clip 00060.mxf")
    expect(focused).to_be_in_viewport()
    page.keyboard.press("End")
    expect(focused).to_have_attribute("title", "day 0/clip 00499.mxf")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="day 0/clip 00498.mxf")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(focused).to_have_attribute("title", "day 0/clip 00498.mxf")


def test_states_are_told_by_word_and_shape(stage: Callable[[int], Stage], look: Look) -> None:
    """Never by colour alone: each state has a word, and a shape that no other has."""
    its = stage(0)
    its.everything()
    page = look(its.url)
    cells = page.locator("#rows > [role=row]:visible .c-state")
    expect(cells).to_have_count(9)
    told: list[tuple[str, str]] = cells.evaluate_all(
        "cells => cells.map(c => [c.innerText, c.querySelector('use').getAttribute('href')])"
    )
    states = {"settling", "growing", "ready", "copying", "verifying", "waiting", "done", "failed"}
    assert {(word, shape) for word, shape in told} == {(state, f"#i-{state}") for state in states}
    drawings: list[str] = page.evaluate("[...document.querySelectorAll('symbol')].map(s => s.innerHTML)")
    assert len(set(drawings)) == len(drawings)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [{"width": 1280, "height": 900}, PHONE], ids=["desk", "phone"])
def test_nobody_is_kept_out(scheme: str, size: dict[str, int], stage: Callable[[int], Stage], look: Look) -> None:
    """axe finds nothing wrong: contrast, names, roles; also in the details of a file."""
    axe = importlib.util.find_spec("axe_playwright_python")
    if axe is None or axe.origin is None:
        pytest.skip("axe is not installed: pip install 'trioft[test-page]'")
    its = stage(50)
    its.everything()
    page = look(its.url, scheme, size)
    expect(page.locator("#troubles > li")).to_have_count(2)
    page.evaluate(Path(axe.origin).with_name("axe.min.js").read_text())
    assert _violations(page) == []
    page.locator("#troubles").get_by_role("button").first.click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert _violations(page) == []


def _violations(page: Page) -> list[str]:
    found: dict[str, Any] = page.evaluate("axe.run()")
    assert len(found["passes"]) > 15
    return [f"{v['id']}: {node['html']} {node['failureSummary']}" for v in found["violations"] for node in v["nodes"]]


def test_a_phone_has_room_for_it(stage: Callable[[int], Stage], look: Look) -> None:
    """At 360 pixels nothing sticks out to the side, however long a name is."""
    its = stage(50)
    its.everything()
    page = look(its.url, size=PHONE)
    expect(page.locator("#active > li")).to_have_count(3)
    sticking: list[str] = page.evaluate("""() => [...document.querySelectorAll("header *, main *")]
        .filter((e) => e.getClientRects().length && !e.closest(".unseen, .name, .row > div"))
        .filter((e) => e.getBoundingClientRect().right > 360.5).map((e) => e.outerHTML.slice(0, 80))""")
    assert sticking == []
    assert page.evaluate("document.documentElement.scrollWidth") == 360


# --- control


def test_an_operator_pauses_and_tries_again(site: Site, look: Look, tmp_path: Path) -> None:
    """With feed.control there are buttons, and what came of pressing one is said; without it there are none."""
    config = tmp_path / "config.yaml"
    config.write_text("feed: {control: true}\n")
    make_tree(site.dest, {"show.mxf": b"another one"})
    make_tree(site.source, {"show.mxf": pattern(3000)})
    agent, url = watch(site, "-c", config, "--if-exists", "fail")
    agent.wait_for_file("show.mxf", "failed")
    page = look(url)
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#answer")).to_contain_text("paused")
    expect(page.locator("#now")).to_contain_text("Paused")
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("#answer")).to_contain_text("resumed")
    os.unlink(site.dest / "show.mxf")
    page.get_by_role("button", name="Retry show.mxf").click()
    expect(page.locator("#answer")).to_contain_text("show.mxf is tried again")
    expect(page.locator("#lately")).to_contain_text("show.mxf")
    expect(page.locator("#troubles > li")).to_have_count(0)
    wait_until(lambda: (site.dest / "show.mxf").exists())


def test_an_operator_cancels_a_transfer(site: Site, look: Look, tmp_path: Path) -> None:
    """A file that is being copied is left when its button is pressed, and never has its final name."""
    config = tmp_path / "config.yaml"
    config.write_text("feed: {control: true}\n")
    make_tree(site.source, {"long.mxf": 40 * MIB})
    _, url = watch(site, "-c", config, "--bwlimit", "4MiB/s")
    page = look(url)
    page.locator("#active").get_by_role("button", name="Cancel long.mxf").click()
    expect(page.locator("#answer")).to_contain_text("long.mxf is left")
    expect(page.locator("#active > li")).to_have_count(0)
    assert not (site.dest / "long.mxf").exists()


def test_without_control_there_are_no_buttons(stage: Callable[[int], Stage], look: Look) -> None:
    """A page that may only look offers nothing else."""
    its = stage(0)
    its.everything()
    page = look(its.url)
    expect(page.locator("#troubles > li")).to_have_count(2)
    for name in ("Pause", "Resume", "Retry", "Cancel"):
        expect(page.get_by_role("button", name=re.compile(f"^{name}"))).to_have_count(0)
