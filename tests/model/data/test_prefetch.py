"""Batches assembled ahead: what counts, in which order, how far ahead, and how it ends."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from downpour.model.data import Batches, GeneratedImages, ImageRecords
from downpour.model.data import prefetch as prefetch_module
from downpour.model.data.batches import PlacedBatch
from downpour.model.data.order import Counted, forever
from downpour.model.data.prefetch import Prefetch
from downpour.model.vision.labels import LABELS_FILE, LabelTree
from downpour.model.vision.records import LabelledImage, RecordCounts, write_records
from tests.conftest import wait_until
from tests.model.data.test_data import png

TREE = LabelTree(names=("fruit", "apple"), parents=(-1, 0))


class Source(Batches):
    """Numbered batches of 3 records, of which each fourth is bad; fails at one of them."""

    def __init__(self, num_batches: int = 100, fails_at: int = -1) -> None:
        self.num_assembled = 0
        self.threads: set[str] = set()
        self.error = OSError("the disk is gone")
        super().__init__(self._numbered(num_batches, fails_at), RecordCounts(judge_after=None))

    def _numbered(self, num_batches: int, fails_at: int) -> Generator[PlacedBatch, None, None]:
        for number in range(num_batches):
            if number == fails_at:
                raise self.error
            self.threads.add(threading.current_thread().name)
            for _ in range(3):
                self.counts.good()
            self.counts.bad("file", number, "damaged")
            self.num_assembled += 1
            yield (np.full((3, 1, 1, 3), number, np.float32), np.zeros((3, 2), np.float32)), 4 * number + 4


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def number_of(batch: Any) -> int:
    return int(batch[0][0, 0, 0, 0])


def test_batches_come_in_order_and_only_those_taken_count() -> None:
    source = Source(num_batches=20)
    with Prefetch(source) as prefetch:
        assert (prefetch.position, prefetch.counts.read, source.num_assembled) == (0, 0, 0)
        for number in range(15):
            assert number_of(next(prefetch)) == number
            wait_until(lambda number=number: source.num_assembled == number + 2, "the batch ahead")
            assert prefetch.position == 4 * number + 4
            assert (prefetch.counts.read, prefetch.counts.skipped) == (4 * number + 4, number + 1)
        assert len(prefetch.counts.examples) == 5 == len(set(prefetch.counts.examples))
    assert (source.num_assembled, source.position) == (16, 64), "one was ahead, and none has followed it"
    assert threading.current_thread().name not in source.threads and len(source.threads) == 1


@pytest.mark.parametrize("ahead", [1, 3])
def test_as_many_are_ahead_as_asked_for_and_no_more(ahead: int) -> None:
    source = Source()
    with Prefetch(source, ahead=ahead) as prefetch:
        for taken in range(1, 4):
            next(prefetch)
            wait_until(lambda taken=taken: source.num_assembled == taken + ahead, "the batches ahead")
    assert source.num_assembled == 3 + ahead


def test_the_batches_are_those_of_the_source_bit_for_bit_and_it_may_be_closed_then() -> None:
    data, found = GeneratedImages(image_size=8, num_labels=5, num_records=50), []
    for is_ahead in (False, True):
        leases = Counted(forever(50, 7), "data source")
        with data.training(batch_size=4, seed=3, leases=leases) as batches:
            with Prefetch(batches, leases.check) as prefetch:
                found.append([next(prefetch if is_ahead else batches) for _ in range(30)])
    for (images, labels), (others, their_labels) in zip(*found, strict=True):
        np.testing.assert_array_equal(images, others)
        np.testing.assert_array_equal(labels, their_labels)


def test_what_the_source_raises_is_raised_in_the_place_of_its_batch() -> None:
    source = Source(fails_at=2)
    with Prefetch(source) as prefetch:
        assert [number_of(next(prefetch)) for _ in range(2)] == [0, 1]
        assert prefetch.position == 8
        with pytest.raises(OSError, match="the disk is gone") as caught:
            next(prefetch)
    assert caught.value is source.error
    assert "_numbered" in [entry.name for entry in caught.traceback], "the place where it was raised is there to see"


def test_an_error_ahead_of_the_last_batch_taken_does_not_matter() -> None:
    source = Source(fails_at=1)
    with Prefetch(source) as prefetch:
        assert number_of(next(prefetch)) == 0


def test_the_check_sees_every_position_and_its_error_is_raised_in_the_place_of_the_batch() -> None:
    seen: list[int] = []

    def check(position: int) -> None:
        seen.append(position)
        if position > 8:
            raise ValueError(f"position {position} is not leased")

    with Prefetch(Source(), check) as prefetch:
        next(prefetch)
        next(prefetch)
        with pytest.raises(ValueError, match="position 12 is not leased"):
            next(prefetch)
    assert seen[:3] == [4, 8, 12]


def test_a_source_that_blocks_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch_module, "_END_S", 0.2)
    go_on = threading.Event()

    def waiting() -> Generator[PlacedBatch, None, None]:
        yield next(Source()._batches)
        go_on.wait(60)

    with Batches(waiting(), RecordCounts()) as source, Prefetch(source) as prefetch:
        next(prefetch)
    go_on.set()
    wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("batches")], "the thread's end")


def test_the_source_is_closed_by_the_thread_that_iterated_over_it() -> None:
    threads = []

    def own() -> Generator[PlacedBatch, None, None]:
        try:
            for number in itertools.count():
                threads.append(threading.get_ident())
                yield next(Source(number + 1)._batches)
        finally:
            threads.append(threading.get_ident())

    with Batches(own(), RecordCounts()) as source, Prefetch(source) as prefetch:
        next(prefetch)
    assert len(threads) >= 2 and len(set(threads)) == 1 and threads[0] != threading.get_ident()


def test_it_ends_with_the_source() -> None:
    with Prefetch(Source(num_batches=3)) as prefetch:
        assert [number_of(batch) for batch in prefetch] == [0, 1, 2]


def test_pictures_are_decoded_and_batches_assembled_beside_the_caller(tmp_path: Path) -> None:
    images = [LabelledImage(png(np.full((8, 8, 3), i, np.uint8)), (1,), f"picture {i}") for i in range(20)]
    write_records(tmp_path / "train-00000.tfrecord", images)
    write_records(tmp_path / "heldout-00000.tfrecord", images)
    TREE.save(tmp_path / LABELS_FILE)
    data = ImageRecords(tmp_path, num_labels=2, resize=8, crop=8, memory_bytes=0)
    with data.training(batch_size=5, seed=0, leases=forever(20, 6)) as batches, Prefetch(batches) as prefetch:
        found = np.concatenate([next(prefetch)[0][:, 0, 0, 0] for _ in range(8)])
    epochs = np.rint((found + 1) * 127.5).astype(int).reshape(2, 20)
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
