"""What Kubeflow Trainer is told, by posts to its status server as `tests.launch.trainer` plays it."""

from __future__ import annotations

import datetime
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from absl import logging

from downpour.launch.observe import trainer_status
from downpour.launch.observe.trainer_status import Reporter, StatusServer, post, server_of
from downpour.proto.chief_pb2 import ProgressReply
from tests.conftest import wait_until
from tests.launch.trainer import Trainer, check

NOW = datetime.datetime(2026, 1, 23, 11, 30, 45, 250_000, tzinfo=datetime.timezone(datetime.timedelta(hours=1)))


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainer]:
    with Trainer(tmp_path_factory.mktemp("trainer")) as trainer:
        yield trainer


def server(trainer: Trainer) -> StatusServer:
    found = server_of(trainer.environment)
    assert found is not None
    return found


def reply(**changes: object) -> ProgressReply:
    known = {
        "state": ProgressReply.STATE_TRAINING,
        "step": 120,
        "num_steps": 3000,
        "loss": 12.3456789,
        "examples_per_second": 210.04,
        "staleness_mean": 1.25,
        "seconds_left": 125.2,
        "metrics": {"map_at_100": 0.6149},
        "details": ProgressReply.Details(epochs=1.5, train_seconds=40),
    }
    return ProgressReply(**known | changes)  # type: ignore[arg-type]


def told(**changes: object) -> dict[str, object]:
    has_time_limit = bool(changes.pop("has_time_limit", False))
    request = trainer_status.trainer_status(reply(**changes), has_time_limit=has_time_limit, now=NOW)
    assert not check(request)
    return request["trainerStatus"]


def test_a_status_has_what_is_known() -> None:
    assert told() == {
        "progressPercentage": 4,
        "estimatedRemainingSeconds": 126,
        "metrics": [
            {"name": "map_at_100", "value": "0.6149"},
            {"name": "loss", "value": "12.3457"},
            {"name": "step", "value": "120"},
            {"name": "num_steps", "value": "3000"},
            {"name": "epochs", "value": "1.5"},
            {"name": "examples_per_second", "value": "210.04"},
            {"name": "staleness_mean", "value": "1.25"},
        ],
        "lastUpdatedTime": "2026-01-23T10:30:45Z",
    }


@pytest.mark.parametrize(
    ("changes", "percentage", "seconds"),
    [
        ({"state": ProgressReply.STATE_PREPARING, "step": 0, "seconds_left": -1}, 0, None),
        ({"seconds_left": -1}, 4, None),
        ({"seconds_left": 1e12}, 4, (1 << 31) - 1),
        ({"step": 3001, "seconds_left": 0}, 99, 0),  # until the last checkpoint and score
        ({"state": ProgressReply.STATE_DONE, "step": 1200, "seconds_left": 99}, 100, 0),  # by early stopping
        ({"state": ProgressReply.STATE_FAILED, "step": 1200, "seconds_left": 99}, 40, None),
        ({"seconds_left": 10, "has_time_limit": True}, 80, 10),  # 40 s of 50 s
        ({"num_steps": 0}, 0, 126),
    ],
)
def test_percentage_and_time_left(changes: dict[str, object], percentage: int, seconds: int | None) -> None:
    status = told(**changes)
    assert (status["progressPercentage"], status.get("estimatedRemainingSeconds")) == (percentage, seconds)


def test_more_metrics_than_trainer_takes_are_cut_off() -> None:
    metrics = told(metrics={f"{i}{'x' * 100}": float("nan") for i in range(300)})["metrics"]
    assert isinstance(metrics, list)
    assert len(metrics) == 256


def test_the_environment_names_the_server() -> None:
    assert server_of({"PATH": "/bin", "KUBEFLOW_TRAINER_SERVER_TOKEN": "/t"}) is None
    proposed = {"URL": "https://a/b", "TOKEN": "/t", "CA_CERT": "/c"}
    old = {f"KUBEFLOW_TRAINER_STATUS_{name}": value for name, value in proposed.items()}
    assert server_of(old) == StatusServer("https://a/b", "/t", "/c", "KUBEFLOW_TRAINER_STATUS_URL")
    both = old | {"KUBEFLOW_TRAINER_SERVER_URL": "https://c/d"}
    assert server_of(both) == StatusServer("https://c/d", "", "", "KUBEFLOW_TRAINER_SERVER_URL")


def test_posts_go_on_with_a_new_token_and_end_with_the_last_status(trainer: Trainer) -> None:
    trainer.accepted.clear()
    replies = [reply(step=0), reply(state=ProgressReply.STATE_DONE, step=3000)]

    def accepted(number: int) -> None:
        wait_until(lambda: len(trainer.accepted) >= number, f"{number} posts")

    with Reporter(server(trainer), lambda: trainer_status.trainer_status(replies[0]), every_s=0.02):
        accepted(2)
        trainer.token_file.write_text("a.newer.token")
        accepted(len(trainer.accepted) + 2)
        replies[0] = replies[1]
    assert trainer.accepted[0]["progressPercentage"] == 0
    assert trainer.accepted[-1]["progressPercentage"] == 100
    assert "loss" not in {metric["name"] for metric in trainer.accepted[0]["metrics"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"url": "http://localhost:1/x"}, "SERVER_URL is 'http://localhost:1/x', no https://HOST"),
        ({"url": "https://localhost:x/"}, "Port could not be cast"),
        ({"token_file": ""}, "SERVER_TOKEN names no file with a token"),
        ({"token_file": "/missing/token"}, "No such file"),
        ({"ca_file": "/missing/ca.crt"}, "No such file"),
        ({"ca_file": ""}, "CERTIFICATE_VERIFY_FAILED"),  # not of the system's authorities
        ({"url": "https://localhost:1/x"}, "Connection refused"),
    ],
)
def test_what_cannot_be_posted_says_why(trainer: Trainer, changes: dict[str, str], message: str) -> None:
    good = server(trainer)
    wrong = StatusServer(**{"url": good.url, "token_file": good.token_file, "ca_file": good.ca_file} | changes)
    with pytest.raises((OSError, ValueError), match=message):
        post(wrong, {})


def test_a_token_of_more_than_one_line_is_not_logged(trainer: Trainer, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\r\nX-More: header")
    with pytest.raises(ValueError, match="names no file with a token") as raised:
        post(StatusServer(trainer.url, str(tmp_path / "token"), str(trainer.ca_file)), {})
    assert "secret" not in str(raised.value)


def test_refusals_are_logged_once_and_end_nothing(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("another")
    trainer.refused.clear()
    logged: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda words, *given: logged.append(words % given))
    wrong = StatusServer(trainer.url, str(tmp_path / "token"), str(trainer.ca_file))
    with Reporter(wrong, lambda: trainer_status.trainer_status(reply()), every_s=0.01):
        wait_until(lambda: len(trainer.refused) >= 3, "three refusals")
    (message,) = logged
    assert "answers 403 Forbidden" in message
    assert trainer.refused[0] == (403, "Forbidden")


def test_a_server_that_never_answers_holds_up_no_end(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_status, "LAST_WITHIN_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://localhost:{silent.getsockname()[1]}/x"
        stuck = StatusServer(url, str(trainer.token_file), str(trainer.ca_file))
        with Reporter(stuck, lambda: trainer_status.trainer_status(reply()), every_s=0.01):
            silent.accept()
            begin = time.monotonic()
        assert 0.4 < time.monotonic() - begin < 30
