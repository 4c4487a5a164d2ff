"""The page in a real browser: made-up runs of any size, and who is let in; tests/launch/test_page.py has a real one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from downpour.launch.observe.page.server import PageServer
from downpour.proto.security.config import PLAIN, Security
from tests.browser import chromium, is_too_wide, violations
from tests.launch.observe import statuses

pytestmark = pytest.mark.process

TOKEN = "a-token-of-this-job-0123456789"
RECIPE = "a_recipe_of_its_own"
HOSTILE = "<img src=x onerror=document.title='markup'>"


# Names in the picture of the processes that reach out of their box, or of the picture.
CUT_OFF = """[...document.querySelectorAll("#topology text")].filter((text) => {
  const own = text.getBoundingClientRect();
  const box = text.parentNode.querySelector(":scope > rect").getBoundingClientRect();
  const all = document.querySelector("#topology svg").getBoundingClientRect();
  const within = (outer) => own.left >= outer.left && own.right <= outer.right && own.bottom <= outer.bottom;
  return !(text.parentNode.tagName === "g" ? within(box) : within(all));
}).map((text) => text.textContent)"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


class Run:
    """A made-up run that is served, and may be changed."""

    def __init__(self, folder: Path, port: int = 0, security: Security = PLAIN, **changes: Any) -> None:
        self.status = statuses.status(recipe=RECIPE, summary=None, **changes)
        lines = [statuses.entry(number, {"0": 9, "1": 20, "2": 5}, learning_rate=0.1) for number in range(1, 9)]
        lines += [{"kind": "loss", "step": s, "seconds": s / 15, "loss": 2 / (1 + s / 99)} for s in range(0, 800, 9)]
        lines += [{"kind": "score", "step": s, "seconds": s / 15, "accuracy": 0.5 + s / 2000} for s in (200, 400, 700)]
        (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        self.folder, self.security = folder, security
        self.server = PageServer("127.0.0.1", port, lambda: self.status, folder / "history.jsonl", security)

    def close(self) -> None:
        self.server._cached_s = -1e9  # nobody looks any more
        self.server.close()


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Run]:
    """A run of 200 workers: 7 is lost, 150 is slow, and of the events one lies in the future."""
    workers = [statuses.worker(index) for index in range(200)]
    workers[7] = statuses.worker(7, state="lost", silent_seconds=95.0)
    workers[150] = statuses.worker(150, input=0.4, host=HOSTILE)
    shards = [statuses.shard(index) for index in range(24)]
    shards[3] = statuses.shard(3, state="silent")
    events = [statuses.event("worker_joined", index, f"worker {index} has joined") for index in range(199)]
    events.append({"time": time.time() + 86400 * 365, "step": 800, "event": "worker_lost", "text": HOSTILE})
    evaluators = [statuses.evaluator(0), statuses.evaluator(1, state="lost", silent_seconds=40.0)]
    run = Run(tmp_path, workers=workers, shards=shards, events=events, evaluators=evaluators)
    run.status["staleness_histogram"] = [10 * min(i, 400 - i) for i in range(400)]
    yield run
    run.close()


def open_page(browser: Any, url: str, **context: Any) -> Any:
    page = browser.new_page(**context)
    page.set_default_timeout(15_000)
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda said: page.errors.append(said.text) if "Content Security" in said.text else None)
    page.goto(url)
    return page


@pytest.mark.parametrize(
    ("scheme", "width"),
    [
        ("light", 1280),
        ("dark", 360),
        pytest.param("dark", 1280, marks=pytest.mark.slow),
        pytest.param("light", 360, marks=pytest.mark.slow),
    ],
)
def test_two_hundred_workers_are_readable(browser: Any, large: Run, scheme: str, width: int) -> None:
    page = open_page(browser, large.server.url, color_scheme=scheme, viewport={"width": width, "height": 800})
    page.wait_for_selector("#workers tbody tr")
    rows = page.locator("#workers tbody tr")
    assert rows.count() == 10
    assert rows.nth(0).locator("th").inner_text() == "7" and "lost" in rows.nth(0).inner_text()
    assert rows.nth(1).locator("th").inner_text() == "150"
    assert page.locator("#workers-states").inner_text() == "1 lost: 7; 199 running: 0\u20136, 8\u2013199"
    assert page.locator("#topology svg").get_attribute("aria-label") == (
        "Topology: the chief is training; evaluators: 1 lost: 1; 1 scoring: 0; "
        "workers: 1 lost: 7; 1 slow: 150; 198 running; "
        "shards: 1 silent: 3; 23 ready; workers push 370 MB/s to the shards and pull 739 MB/s"
    )
    assert page.locator("#topology .box").count() == (2 + 3 + 2 if width == 360 else 2 + 3 + 24)
    assert page.evaluate(CUT_OFF) == []
    assert page.locator("#findings li").first.inner_text().startswith("worker 7 has not reported for 95 s")
    assert "worker 150 takes" in page.locator("#findings").inner_text()
    assert page.locator("#events li").count() == 12 and HOSTILE in page.locator("#events li").first.inner_text()
    assert not is_too_wide(page) and violations(page) == []
    more = page.locator("#workers-more")
    assert more.inner_text() == "Show 190 more workers"
    more.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#workers tbody tr:nth-child(200)")
    page.locator("figure summary").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#curve-loss tbody tr")
    assert page.locator("#curve-loss tbody tr").count() == 18, "at most 20, evenly spaced"
    assert not is_too_wide(page) and violations(page) == []
    assert page.title().startswith(RECIPE) and page.errors == []
    page.close()


def test_the_picture_of_the_processes_says_the_state_of_each(browser: Any, tmp_path: Path) -> None:
    workers = [
        *(statuses.worker(0), statuses.worker(1, state="lost"), statuses.worker(2, input=0.4)),
        *(statuses.worker(3, state="expected", seconds_per_step={}), statuses.worker(4, state="finished")),
    ]
    run = Run(tmp_path, workers=workers)
    page = open_page(browser, run.server.url, viewport={"width": 360, "height": 640})
    page.wait_for_selector("#topology .box")
    found = [" ".join(text.split()) for text in page.locator("#topology .box").all_text_contents()]
    assert found == [
        "✓ Chieftraining", "✓ Evaluatorscores 3 s", "worker 0: running✓ 00.13 s", "worker 1: lost✕ 1lost",
        "worker 2: slow! 20.53 s", "worker 3: expected… 3expected", "worker 4: finished✓ 4finished",
        *(f"shard {index}: ready✓ {index}5.2 ms" for index in range(3)),
    ]  # fmt: skip
    assert page.evaluate(CUT_OFF) == [] and page.errors == []
    hint = page.locator("#topology-rules").inner_text().replace("\u00a0", " ")
    assert "Who has not reported for 30 s, its lease, counts as lost. A checkpoint is due every 100 steps." in hint
    run.status |= {"evaluators": [], "workers": [], "shards": [], "state": "preparing"}
    page.wait_for_selector("#topology text:has-text('none known yet')")
    assert page.locator("#topology .box").all_text_contents() == ["… Chiefpreparing"] and violations(page) == []
    page.close()
    run.close()


def test_a_stranger_sees_the_login_form_only(browser: Any, tmp_path: Path) -> None:
    run = Run(tmp_path, security=Security(token=TOKEN))
    page = open_page(browser, run.server.url, viewport={"width": 360, "height": 640})
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert violations(page) == [] and not is_too_wide(page)
    assert RECIPE not in page.content() and page.locator("input").count() == 1
    assert page.evaluate("fetch('/status.json').then((a) => a.text())") == "The token of the job is needed.\n"
    page.keyboard.type("wrong, as strangers' are")  # the field has the focus
    page.keyboard.press("Enter")
    page.wait_for_selector("text=not this job's token")
    page.fill("#token", TOKEN)
    page.keyboard.press("Enter")
    page.wait_for_selector(f"h1:has-text('{RECIPE}')")
    assert page.evaluate("document.cookie") == "", "no script reads it"
    assert TOKEN not in json.dumps(page.context.cookies()) and TOKEN not in page.url
    run.close()
    other = Run(tmp_path, run.server.server_port, Security(token="another-token-of-another-job"))
    page.wait_for_selector("#token")  # the job behind the port is another one now
    page.close()
    other.close()


def test_it_says_since_when_nobody_answers_and_goes_on_by_itself(browser: Any, tmp_path: Path) -> None:
    run = Run(tmp_path)
    page = open_page(browser, run.server.url)
    page.wait_for_selector("#steps-text:has-text('Step 800 of 2,000')")
    assert page.locator("#news").inner_text() == "", "what was before is not read out"
    run.close()
    page.wait_for_selector("#connection:has-text('No answer since')")
    assert page.locator("#steps-text").inner_text() == "Step 800 of 2,000", "the last that is known stays"
    (tmp_path / "other").mkdir()
    again = Run(tmp_path / "other", run.server.server_port, step=900)
    again.status["events"] = [*again.status["events"], statuses.event("worker_back", 900, "worker 1 reports again")]
    page.wait_for_selector("#steps-text:has-text('Step 900 of 2,000')")
    assert page.locator("#connection").inner_text() == ""
    assert page.locator("#news").inner_text() == "worker 1 reports again"
    summary = {"global_steps": 2000, "ended_by": "steps", "seconds": 130.0, "loss": 0.25, "records_repeated": 0}
    again.status = again.status | {"state": "done", "summary": summary}
    page.wait_for_selector("#summary dd:has-text('2,000')")
    assert violations(page) == []
    again.close()
    page.wait_for_selector("#connection:has-text('The run has ended')")
    page.close()


@pytest.mark.slow
def test_who_does_not_look_costs_nothing(browser: Any, tmp_path: Path) -> None:
    run = Run(tmp_path)
    asked: list[float] = []
    run.server._status = lambda: asked.append(time.monotonic()) or run.status  # type: ignore[func-returns-value]
    page = open_page(browser, run.server.url)
    page.wait_for_selector("#steps-text:has-text('Step 800')")
    page.evaluate("Object.defineProperty(document, 'hidden', { value: true })")
    time.sleep(2.5)  # for a question that was under way
    before = len(asked)
    time.sleep(4.5)
    assert before and len(asked) == before
    page.close()
    run.close()
