"""The page of a real run in a real browser: its numbers are the run's, it goes on over the chief's death, and ends."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser import chromium, violations
from tests.launch import jobs

pytestmark = [pytest.mark.process, pytest.mark.slow]  # the small version: tests/launch/observe/page


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[jobs.LocalJob]:
    """A run that trains slowly as long as the file `slow` is there."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "slow").touch()
    run = jobs.LocalJob(jobs.write_recipe(folder, jobs.PACED), folder)
    try:
        yield run
    finally:
        run.kill()


@pytest.fixture(scope="module")
def page(run: jobs.LocalJob) -> Iterator[Any]:
    """The page, at the address that the launcher has printed, once there are scores."""
    with chromium() as browser:
        run.wait(lambda: "[local] page http://127.0.0.1:" in run.stderr, "the page")
        (url,) = re.findall(r"page (http://\S+)", run.stderr)
        page = browser.new_page()
        page.set_default_timeout(60_000)
        page.goto(url)
        page.wait_for_selector("#curves figure:has-text('Held-out')")
        yield page


def status(run: jobs.LocalJob) -> dict[str, Any]:
    """What `downpour status --json` prints."""
    command = [sys.executable, "-m", "downpour.launch.cli", "status", "--json", str(run.run_dir)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def shown(page: Any) -> dict[str, str]:
    """The facts on the page, by name."""
    rows = [text.split("\n", 1) for text in page.locator("#facts > div").all_inner_texts()]
    return {name: value for name, value in rows}


def number(text: str) -> float:
    return float(text.replace(",", "").split()[0])


def step(page: Any) -> int:
    words = page.locator("#steps-text").inner_text().split()
    assert words[0] == "Step" and words[2:] == ["of", "600"]
    return int(words[1])


def test_the_numbers_are_the_runs_and_go_on(run: jobs.LocalJob, page: Any) -> None:
    before = status(run)
    run.wait(lambda: step(page) > before["step"], "a later step on the page")
    facts, at = shown(page), step(page)
    after = status(run)
    assert before["step"] < at <= after["step"]
    assert page.locator("#state").inner_text() == after["state"] == "training"
    assert page.locator("h1").inner_text() == f"Downpour: {after['recipe']}"
    assert after["job_id"] in page.locator("#about").inner_text()
    assert number(facts["Epoch"]) == pytest.approx(at * after["epochs"] / after["step"], rel=0.2)
    assert number(facts["Examples/s"]) == pytest.approx(after["examples_per_second"], rel=0.5)
    assert number(facts["Training loss"]) == pytest.approx(after["loss"], rel=0.5)
    saved = number(facts["Last checkpoint"].removeprefix("step "))
    assert before["checkpoint"]["step"] <= saved <= after["checkpoint"]["step"]
    if before["score_step"] == after["score_step"]:
        assert number(facts["Held-out mAP@100"]) == pytest.approx(after["scores"]["map_at_100"], abs=1e-3)
    assert "guessing 0." in facts["Held-out mAP@100"]
    workers = page.locator("#workers tbody th").all_inner_texts()
    assert sorted(workers) == [str(one["worker"]) for one in after["workers"]]
    assert "2 running: 0\u20131" in page.locator("#workers-states").inner_text()
    for one in after["shards"]:
        assert page.locator(f"#shards tr:has-text('{one['address']}')").count() == 1
    texts = page.locator("#events li").all_inner_texts()
    assert len(texts) >= 3
    for one in before["events"][-3:]:
        assert any(one["text"] in text for text in texts), (one, texts)
    assert page.locator("#curve-loss svg").get_attribute("aria-label").startswith("Training loss: ")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible(page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    assert violations(page) == []


def test_it_goes_on_when_the_chief_does(run: jobs.LocalJob, page: Any) -> None:
    page.evaluate("window.sameDocument = true")
    before = step(page)
    run.role("chief").suspend()  # it would be back before the page asks again
    page.wait_for_selector("#connection:has-text('No answer since')")
    run.role("chief").kill()
    run.wait(lambda: "[chief] ended with signal SIGKILL; restart 1 of 3" in run.stderr, "the chief's end")
    page.wait_for_selector("#connection:has-text('No answer')", state="detached")
    run.wait(lambda: step(page) > before, "a later step on the page")
    page.wait_for_selector("#state:has-text('training')")
    assert page.evaluate("window.sameDocument"), "without a reload"
    assert run.stderr.count("page http") == 1, "its address is printed once"


def test_the_end_is_shown_to_who_looks(run: jobs.LocalJob, page: Any) -> None:
    (run.run_dir.parent / "slow").unlink()
    page.wait_for_selector("#summary-section:not([hidden])", timeout=120_000)
    page.wait_for_selector("#state:has-text('done')")
    rows = page.locator("#summary > div").all_inner_texts()
    assert run.end() == 0, run.stderr
    summary = run.result()
    assert any(row.startswith("Steps") and f"{summary['global_steps']:,}" in row for row in rows)
    assert any(row.startswith("Ended by") and "steps" in row for row in rows)
    assert not (run.run_dir / "page.address").exists()
    page.wait_for_selector("#connection:has-text('The run has ended')")
