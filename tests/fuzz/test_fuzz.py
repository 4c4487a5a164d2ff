"""Ten seconds of fuzzing, five minutes of it in `make slow`, and that the fuzzer itself works.

`make fuzz` runs an hour. A failure prints the seed, the case and the command that plays it again.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from downpour.proto import parameter_server_pb2 as pb
from tests.fuzz import clients, mutate, run, workers
from tests.fuzz import frames as h2
from tests.fuzz import shard as shards
from tests.fuzz.batch import Plan, Player, num_acknowledged, wrong_with
from tests.fuzz.campaign import Campaign, miscounts
from tests.fuzz.frames import Frame
from tests.fuzz.mutate import Case, draw
from tests.fuzz.mutations import MUTATIONS
from tests.fuzz.record import Session, blocks_of, digest
from tests.fuzz.send import End, Played
from tests.fuzz.shard import CONTROLS, NUM_CONTROLS, Books, FuzzedShard

pytestmark = [pytest.mark.process, pytest.mark.xdist_group("fuzz")]

SEED = 17
NUMBERS = range(400)
MAY_BE_CALLED = {"Status", "Pull", "Push", "PushPull", "Initialize", "Restore", "Absent"}


@pytest.fixture(scope="module")
def sessions() -> list[Session]:
    return run.recorded()


def test_ten_seconds(sessions: list[Session]) -> None:
    check(sessions, 10.0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_five_minutes(sessions: list[Session]) -> None:
    check(sessions, 300.0)


def check(sessions: list[Session], seconds: float) -> None:
    """Fuzzes, and makes sure that what was to happen happened."""
    result = run.fuzz(SEED, seconds, (False, True), 1, sessions)
    assert not result["failures"], result
    at_least = {"cases": 200, "controls": 10, "workers_pushes": 20, "fuzzers_pushes": 10, "client_cases": 20}
    assert all(result[key] >= number for key, number in at_least.items()), result
    assert result["client_answers"], result


def test_a_recording_does_not_depend_on_the_moment(sessions: list[Session]) -> None:
    assert digest(run.recorded()) == digest(sessions)


def test_what_is_recorded(sessions: list[Session]) -> None:
    """Every method that a fuzzer may call, in both dialects, answered; what ends the job is not among them."""
    for dialect in ("ours", "grpcio"):
        mine = [session for session in sessions if session.name.startswith(dialect) and session.is_admitted]
        paths = [pairs[":path"] for session in mine for pairs in blocks_of(session.sent).values()]
        assert {path.rpartition("/")[2] for path in paths} == MAY_BE_CALLED
    strangers = [session for session in sessions if not session.is_admitted]
    assert all(set(session.statuses.values()) == {"16"} for session in strangers) and len(strangers) >= 5
    plain = [session for session in sessions if session.is_admitted and session.name != "grpcio/gzip"]
    assert all(set(session.statuses.values()) == {"0"} for session in plain)


def test_a_seed_and_a_number_draw_the_same_case(sessions: list[Session]) -> None:
    first, second, other = (
        [draw(seed, number, sessions, tls=True) for number in NUMBERS] for seed in (SEED, SEED, SEED + 1)
    )
    assert first == second
    assert sum(a.pieces == b.pieces for a, b in zip(first, other, strict=True)) < len(NUMBERS) / 20


def test_cases_are_of_every_kind(sessions: list[Session]) -> None:
    cases = [draw(SEED, number, sessions, tls=True) for number in NUMBERS]
    assert {name for case in cases for name in case.mutations} == {*MUTATIONS, "bytes"}
    assert {case.ending for case in cases} == {mutate.WAIT, mutate.HALF_CLOSE, mutate.CLOSE, mutate.RESET}
    assert 20 < sum(case.is_control for case in cases) < 60
    assert 30 < sum(not case.session.is_admitted for case in cases) < 90
    assert sum(case.flips is not None for case in cases) > 15
    assert {case.session.name for case in cases} == {session.name for session in sessions}


@pytest.mark.parametrize("name", list(MUTATIONS))
def test_a_mutation_changes_what_is_sent(name: str, sessions: list[Session]) -> None:
    """Not always, since a field may be set to what it is: in a third of all times at least."""
    rng, session = random.Random(SEED), next(session for session in sessions if session.name == "ours/steps")
    before = list(session.sent)
    changed = sum(h2.encode(MUTATIONS[name](rng, before, sessions)) != h2.encode(before) for _ in range(60))
    assert changed >= 20
    assert before == list(session.sent)


def test_flipped_records_differ_in_few_bits() -> None:
    records = [bytes(100), bytes(50)]
    changed = mutate.flipped(SEED, records)
    assert changed == mutate.flipped(SEED, records)
    assert 1 <= sum(byte.bit_count() for record in changed for byte in record) <= 8


def test_pushes_of_controls_and_of_others_have_names_of_their_own(sessions: list[Session]) -> None:
    session = next(session for session in sessions if session.name == "ours/pushes")
    names = []
    for number in range(50):
        for is_control in (False, True):
            frames = mutate.named(session, number, is_control=is_control)
            for stream in session.pushes:
                header = pb.Chunk.FromString(h2.messages_of(frames, stream)[0]).push
                names.append((header.worker, header.incarnation, header.sequence))
    assert len(set(names)) == len(names) == 400


@pytest.mark.parametrize("name", ["ours/steps", "grpcio/pushes"])
def test_frames_are_read_as_they_were_written(name: str, sessions: list[Session]) -> None:
    session = next(session for session in sessions if session.name == name)
    data = h2.encode(session.sent)
    assert h2.parse(data) == list(session.sent) and h2.parse(data[:-1]) == list(session.sent[:-1])
    stream = session.pushes[0]
    bodies = h2.messages_of(session.sent, stream)
    again = h2.with_messages(session.sent, stream, [h2.message(body) for body in bodies])
    assert h2.messages_of(again, stream) == bodies and len(bodies) == 3
    assert [frame for frame in again if frame.stream != stream] == [f for f in session.sent if f.stream != stream]


def test_a_claimed_length_stands_in_the_head_alone() -> None:
    assert Frame(h2.DATA, 0, 1, b"abc", claimed=9).encode() == Frame(h2.DATA, 0, 1, b"abc").encode().replace(
        b"\3", b"\x09", 1
    )


def test_a_control_that_is_answered_otherwise_is_wrong(sessions: list[Session]) -> None:
    session = next(session for session in sessions if session.name == "ours/pushes")
    case = Case(0, session, (), (), mutate.WAIT)
    answer = h2.encode(case.session.answered)
    assert not wrong_with(case, Played(End.BY_SERVER, answer))
    assert num_acknowledged(case, answer) == len(case.session.pushes)
    assert "ended with" in wrong_with(case, Played(End.BY_SERVER, answer[: len(answer) // 2]))
    assert "refused" in wrong_with(case, Played(End.REFUSED, error="reset"))
    assert "open" in wrong_with(case, Played(End.UNANSWERED, answer))


def test_books_that_do_not_agree_are_noticed() -> None:
    of_worker = {1001: 5, 1002: 6, 100: 1, **dict.fromkeys(range(CONTROLS, CONTROLS + NUM_CONTROLS), 1)}
    total = sum(of_worker.values())
    told = {1001: 5, 1002: 6}
    good = Books(0, total, total, total, of_worker)
    assert miscounts(good, told, 0) == []
    assert len(miscounts(good, told | {1001: 4}, 0)) == 1  # applied twice
    assert len(miscounts(good, told | {1001: 6}, 0)) == 1  # acknowledged and lost
    assert len(miscounts(good, told, 1)) == 1
    assert len(miscounts(Books(0, total + 1, total, total, of_worker), told, 0)) == 1


def test_a_shard_that_dies_is_noticed(sessions: list[Session], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = FuzzedShard.answers

    def answers(shard: FuzzedShard) -> bool:
        shard.kill()
        assert shard.has_ended(10.0)
        return asked(shard)

    monkeypatch.setattr(FuzzedShard, "answers", answers)
    monkeypatch.setattr(workers, "_GIVE_UP_S", 1.0)
    monkeypatch.setattr(shards, "ANSWER_S", 1.0)
    outcome = Campaign(SEED, sessions, tls=False).run(1.0)
    assert outcome.has_crashed and "the shard has ended" in outcome.failures[0], outcome


def test_tracebacks_are_found_in_a_log(tmp_path: Path) -> None:
    with FuzzedShard(tmp_path, tls=False) as shard:
        assert shard.tracebacks() == []
        with (tmp_path / "log").open("a") as log:
            log.write("Traceback (most recent call last):\n")
            log.write('  File "/x/proto/http2/connection.py", line 12, in read\n    number = 7\n')
            log.write("ValueError: 17 is too much\n[ps/0] goes on\n")
        assert shard.tracebacks() == ["http2/connection.py in read: ValueError: N is too much"]


def test_one_case_can_be_played_alone(sessions: list[Session], tmp_path: Path) -> None:
    with FuzzedShard(tmp_path, tls=True) as shard:
        player = Player(Plan(SEED, sessions, shard.port, shard.certificates))
        number = next(n for n in NUMBERS if is_counted(draw(SEED, n, sessions, tls=True)))
        reports = [player.play_one(number) for _ in range(2)]
    assert [report.wrong for report in reports] == [[], []]
    assert [report.acknowledged for report in reports] == [4, 0]  # the second time they are repeated


def is_counted(case: Case) -> bool:
    return case.is_control and case.session.name.endswith("/pushes")


def test_our_client_is_fuzzed_by_what_was_recorded(sessions: list[Session]) -> None:
    answers = [clients.draw(SEED, number, sessions) for number in range(200)]
    assert answers == [clients.draw(SEED, number, sessions) for number in range(200)]
    assert {answer.method for answer in answers} == {"Status", "Pull", "Push"}
    unchanged = next(answer for answer in answers if not answer.mutations and answer.method == "Pull")
    assert clients.reason_of(unchanged) == ""
    broken = clients.Answer("Pull", (), unchanged.data[: len(unchanged.data) // 2], closes=True)
    assert "as recorded failed" in clients.reason_of(broken)
