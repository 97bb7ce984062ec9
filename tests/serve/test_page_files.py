"""The page of an agent with many files, or of any kind: for everybody, on every screen."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from pages import PHONE, Begin, Look, row

if importlib.util.find_spec("playwright") is None:
    pytest.skip("playwright is not installed: pip install 'trioft[test-page]'", allow_module_level=True)

from playwright.sync_api import Page, expect

# --- many files


def test_ten_thousand_files_are_a_few_rows(stage: Begin, look: Look) -> None:
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


def test_files_are_filtered_searched_and_sorted(stage: Begin, look: Look) -> None:
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


def test_the_table_is_used_by_keyboard(stage: Begin, look: Look) -> None:
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


def test_states_are_told_by_word_and_shape(stage: Begin, look: Look) -> None:
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
@pytest.mark.parametrize("size", [None, PHONE], ids=["desk", "phone"])
def test_nobody_is_kept_out(scheme: str, size: dict[str, int] | None, stage: Begin, look: Look) -> None:
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


def test_a_phone_has_room_for_it(stage: Begin, look: Look) -> None:
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


def test_without_control_there_are_no_buttons(stage: Begin, look: Look) -> None:
    """A page that may only look offers nothing else."""
    its = stage(0)
    its.everything()
    page = look(its.url)
    expect(page.locator("#troubles > li")).to_have_count(2)
    for name in ("Pause", "Resume", "Retry", "Cancel"):
        expect(page.get_by_role("button", name=re.compile(f"^{name}"))).to_have_count(0)
