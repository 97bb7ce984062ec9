"""The page in a real browser: what an operator sees of real runs, and when the agent is gone."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pages import MIB, Begin, Look, row, watch
from support import TOOLS, Site, make_tree, mounted, pattern, wait_until

if importlib.util.find_spec("playwright") is None:
    pytest.skip("playwright is not installed: pip install 'trioft[test-page]'", allow_module_level=True)

from playwright.sync_api import expect

RECORDER = TOOLS / "recorder.py"
EVIL = "<img src=x onerror=alert(1)>"


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
        expect(page.locator("#icon")).to_have_attribute("href", "icon-active.svg")
        expect(page.locator("#verdict")).to_have_text("No: 1 not delivered yet.")
        expect(row(page, "take.ts")).to_contain_text("copying")
        assert recorder.stdin is not None
        recorder.stdin.close()
    late = page.locator("#lately > li")
    expect(late).to_contain_text("take.ts")
    expect(late).to_contain_text("25.2 MB · verified by read-back")
    yes = r"Yes, as of \d\d:\d\d:\d\d: 1 file, 25\.2 MB, verified when delivered; each copy is there, with"
    expect(page.locator("#verdict")).to_have_text(re.compile(yes), timeout=20_000)
    expect(page.locator("#totals")).to_contain_text("1 delivered")
    expect(page.locator("#chart .curve")).to_have_attribute("d", re.compile(r"M.*L"))
    expect(page).to_have_title("trioft")
    expect(page.locator("#icon")).to_have_attribute("href", "icon.svg")


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
    expect(page.locator("#icon")).to_have_attribute("href", "icon-failed.svg")
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
    expect(page.locator("#verdict")).to_have_text(
        "No: its content was never compared with that of its copy (a.mxf).", timeout=20_000
    )
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


def test_a_file_is_seen_as_soon_as_it_is_known(stage: Begin, look: Look) -> None:
    """Promise 8: whoever waits for a file to settle sees that it does."""
    its = stage(0)
    its.say("add", "settling", MIB, "new.mxf")
    page = look(its.url)
    expect(page.locator("#now")).to_contain_text("1 file, 1.05 MB to go")
    assert row(page, "new.mxf").count() == 1


# --- when the agent is not there


def test_a_lost_agent_is_said_and_found_again(site: Site, look: Look) -> None:
    """Figures of an agent that is gone are marked as old; when it is back, the page is live by itself."""
    make_tree(site.source, {"a.mxf": 1000, "b.mxf": 1000})
    agent, url = watch(site)
    agent.wait_for_file("a.mxf", "done")
    page = look(url)
    expect(page.locator("#lately > li")).to_have_count(2)
    agent.end(signal.SIGKILL)
    expect(page.locator("#link-text")).to_have_text("Disconnected, retrying")
    expect(page.locator("#link")).to_contain_text(re.compile(r"what you see is from \d\d:\d\d:\d\d"))
    expect(page.locator("body")).to_have_class(re.compile("stale"))
    expect(page).to_have_title("disconnected ‧ trioft")
    expect(page.locator("#verdict")).to_have_text("Unknown: there is no connection to the agent.")
    expect(page.locator("#lately")).to_contain_text("a.mxf")
    watch(site, feed=url.removeprefix("http://").strip("/"))
    make_tree(site.source, {"c.mxf": 1000})
    expect(page.locator("#link-text")).to_have_text("Live")
    expect(page.locator("body")).not_to_have_class(re.compile("stale"))
    expect(page.locator("#lately")).to_contain_text("c.mxf")
    expect(page.locator("#lately > li")).to_have_count(1)


def test_silence_is_a_lost_connection(stage: Begin, look: Look) -> None:
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


def test_without_the_token_there_is_a_form(site: Site, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token is asked for once; a page whose cookie is not valid any more asks for it again, by itself."""
    monkeypatch.setenv("TRIOFT_FEED_TOKEN", "correct-horse-battery")
    agent, url = watch(site)
    page = look(url, live=False)
    page.get_by_label("Token").fill("some-other-horse")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_have_text("This is not the token.", timeout=5_000)
    page.get_by_label("Token").fill("correct-horse-battery")
    page.keyboard.press("Enter")
    expect(page.locator("#link-text")).to_have_text("Live")
    agent.end()
    expect(page.locator("#link-text")).to_have_text("Disconnected, retrying")
    monkeypatch.setenv("TRIOFT_FEED_TOKEN", "another-horse-battery")
    watch(site, feed=url.removeprefix("http://").strip("/"))
    expect(page.get_by_label("Token")).to_be_visible()


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


def test_an_operator_gives_the_network_away_and_pauses_a_file(site: Site, look: Look, tmp_path: Path) -> None:
    """The limit is shown where it is changed, in the notation of the file; a single file is paused in its details."""
    config = tmp_path / "config.yaml"
    config.write_text("feed: {control: true}\n")
    make_tree(site.source, {"long.mxf": 100 * MIB})
    agent, url = watch(site, "-c", config, "--bwlimit", "4MB/s")
    page = look(url)
    limit = page.get_by_label("Limit")
    expect(limit).to_have_attribute("placeholder", "4 MB/s")
    limit.press_sequentially("3MB/s")  # the slash begins no search here
    limit.press("Enter")
    expect(page.locator("#answer")).to_contain_text("bwlimit is 3MB/s")
    expect(limit).to_have_attribute("placeholder", "3 MB/s")
    limit.fill("much")
    limit.press("Enter")
    expect(page.locator("#answer")).to_contain_text('bwlimit: found "much", expected a rate')
    page.locator("#active").get_by_role("button", name="long.mxf", exact=True).click()
    page.get_by_role("button", name="Pause this file").click()
    expect(page.locator("#facts")).to_contain_text("paused by an operator")
    page.get_by_role("button", name="Resume").click()
    page.get_by_role("button", name="Close").click()
    limit.fill("off")
    limit.press("Enter")
    agent.wait_for_file("long.mxf", "done")
    expect(limit).to_have_attribute("placeholder", "off")


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


def test_the_verdict_is_looked_at_and_outlives_the_agent(site: Site, look: Look) -> None:
    """What an earlier run has delivered counts; a copy that is not there any more, and a file left out, do not."""
    make_tree(site.source, {"a.mxf": 1000, "b.mxf": 1000})
    assert site.sync().code == 0
    agent, url = watch(site, "--exclude", "*.tmp")
    page = look(url)
    verdict = page.locator("#verdict")
    expect(verdict).to_have_text(re.compile("^Yes, as of .*: 2 files"), timeout=20_000)
    (site.dest / "a.mxf").unlink()
    expect(verdict).to_have_text(re.compile("no a.mxf at the destination any more"), timeout=15_000)
    agent.end()
    make_tree(site.source, {"left.tmp": 10})
    agent, url = watch(site, "--exclude", "*.tmp")
    page = look(url)
    expect(page.locator("#no-attention")).to_have_text("Nothing failed, nothing waits.")
    expect(page.locator("#verdict")).to_have_text(
        re.compile(r"No: .*it is not on record that it was delivered \(left\.tmp\)"), timeout=20_000
    )
    expect(page.locator("#verdict")).to_contain_text("there is no a.mxf at the destination any more")
    site.dest.rename(site.root / "elsewhere")
    agent.wait_for(lambda line: line["event"] == "storage")
    expect(page.locator("#verdict")).to_have_text("Unknown: the destination cannot be seen.", timeout=20_000)
    expect(page.locator("#more-troubles")).to_contain_text("the destination cannot be used")
    expect(page.locator("#no-attention")).to_be_hidden()
