"""Training and held-out examples of streams: tf.data, Grain's `IterDataset`, generators, any iterable.

A stream has no positions to lease, so a lease of n positions lets a worker read the next n examples of its own part.
Every example is read at least once by a worker that lives through an epoch of its part; a worker that is started again
begins at the beginning of its part, and what a lost worker had not read stays unread until it returns.

Shapes: `B` examples of a batch.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from typing import Any

from downpour.model.data.assembly import gathered, whole, within
from downpour.model.data.batches import Batch, Batches, check_batch_size
from downpour.model.data.collation import ExampleBatch
from downpour.model.data.epochs import check_fits
from downpour.model.data.examples import Examples
from downpour.model.data.nests import num_examples
from downpour.model.data.order import Lease, Place
from downpour.model.data.preparation import Preparation, blank_like, check_alike
from downpour.model.data.reading import with_random_numbers
from downpour.model.vision.records import RecordCounts

ENDLESS = 1 << 62  # positions of an epoch that never ends

Opens = Callable[[int, int], Iterable[Any]]


def takes_worker(given: Any) -> bool:
    """Whether something is a function of (worker index, number of workers)."""
    if not callable(given) or isinstance(given, type):
        return False
    try:
        inspect.signature(given).bind(0, 1)
    except (TypeError, ValueError):
        return False
    return True


@dataclass(frozen=True, eq=False)
class Stream(Preparation):
    """Examples out of streams; batches are `(x, y, sample_weight)`.

    Attributes:
        train: A function of (worker index, number of workers) that returns a new iterable over this worker's part:
            examples, or batches with `batched=True`. When it ends, the function is called again. It may never end.
        validation: Such a function for the held-out examples, called with (0, 1), whose iterable ends; or an indexed
            source of them, as `Examples` takes it; None for none.
        num_examples: Examples of an epoch in all parts together; None where that is not known or has no end: there
            is one epoch then, that never ends.
        worker_index: Number of this worker; see `for_worker`.
        num_workers: Number of parts.
    """

    train: Opens = field(repr=False)
    validation: Any = field(default=None, repr=False)
    _: KW_ONLY
    num_examples: int | None = None
    worker_index: int = 0
    num_workers: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.train):
            raise ValueError(
                f"train is a {type(self.train).__name__}; give a function of (worker_index, num_workers) that returns "
                "a new iterable, since every epoch and every process opens it anew"
            )
        if self.num_examples is not None and self.num_examples < 1:
            raise ValueError(f"num_examples is {self.num_examples}; give at least 1, or None if it is not known")
        if not 0 <= self.worker_index < self.num_workers:
            raise ValueError(f"worker_index is {self.worker_index} of {self.num_workers}; give one from 0 below that")

    @property
    def num_records(self) -> int:
        """Positions of an epoch: its examples, or `ENDLESS`."""
        return ENDLESS if self.num_examples is None else self.num_examples

    def positions_in_batch(self, batch_size: int) -> int:
        """Positions of the leases that a batch takes: its examples."""
        return batch_size

    def for_worker(self, index: int, num_workers: int) -> Stream:
        """The part of one worker."""
        return replace(self, worker_index=index, num_workers=num_workers)

    def check(self) -> None:
        """Opens both streams, and reads and maps their first item.

        Raises:
            ValueError: A stream gives nothing or no iterable, an item cannot be made an example, or held-out examples
                have other inputs or targets.
        """
        firsts: list[ExampleBatch | None] = [self._first("train")]
        if self._indexed is not None:
            firsts.append(self._indexed.first_heldout())
        elif self.validation is not None:
            firsts.append(self._first("validation"))
        check_alike(firsts)

    check_all = check  # examples of a stream are checked when they are read

    def batch_size_of_items(self) -> int | None:
        """Examples of the first item, where items are batches; else None. Opens the stream."""
        return num_examples(self._first("train")[0]) if self.batched else None

    def blank(self, batch_size: int) -> Batch:
        """Zeros like a training batch; see `batches.blank_batch`. Opens the stream for its first item."""
        return blank_like(self._first("train"), batch_size, "train")

    def training(self, *, batch_size: int, seed: int, leases: Iterator[Lease]) -> Batches:
        """Batches of exactly `batch_size`, which run across the ends of the stream; they end with `leases`.

        Where items are batches, every item is one as it is: the first must have `batch_size` examples, the others at
        most as many.

        Args:
            batch_size: Examples in a batch, B.
            seed: Seed of the random numbers that `map` gets.
            leases: Only the numbers of their positions count.

        Raises:
            ValueError: An epoch has fewer examples than a batch. While iterating: this worker's part has no example,
                or fewer than a batch, or an example is refused.
        """
        check_batch_size(batch_size)
        check_fits(batch_size, self.num_records)
        counts = RecordCounts(judge_after=None)
        batcher = self.batcher("train", is_training=True)
        items = self._passes(1 if self.batched else batch_size, seed)
        if self.batched:
            made = whole(items, batcher, batch_size, counts, by_examples=True)
        else:
            made = gathered(items, ENDLESS, batcher, batch_size, counts)
        return Batches(within(made, leases), counts)

    def heldout(self, *, batch_size: int) -> Batches:
        """One pass over the held-out examples; the last batch may be short. None without such a stream."""
        check_batch_size(batch_size)
        if self._indexed is not None:
            return self._indexed.heldout(batch_size=batch_size)
        counts = RecordCounts(judge_after=None)
        batcher = self.batcher("validation", is_training=False)
        items = self._items("validation", 0, None) if self.validation is not None else iter(())
        if self.batched:
            made = whole(items, batcher, None, counts, by_examples=True)
        else:
            made = gathered(items, ENDLESS, batcher, batch_size, counts)
        return Batches(made, counts)

    @cached_property
    def _indexed(self) -> Examples | None:
        """The held-out examples, if they are an indexed source."""
        if self.validation is None or takes_worker(self.validation):
            return None
        names = ("inputs", "targets", "weights", "map", "collate", "finite")
        return Examples((), self.validation, **{name: getattr(self, name) for name in names})

    def _passes(self, least: int, seed: int) -> Iterator[tuple[int, Any]]:
        """Yields numbers and items of one pass after the other.

        Raises:
            ValueError: A pass has fewer than `least` items that are not left out.
        """
        for epoch in itertools.count():
            num_items = kept = 0
            for number, item in self._items("train", epoch, seed):
                num_items += 1
                kept += item is not None
                yield number, item
            if kept < least:
                raise ValueError(self._too_few(epoch, num_items, kept, least))

    def _too_few(self, epoch: int, num_items: int, kept: int, least: int) -> str:
        call = f"train({self.worker_index}, {self.num_workers})"
        if epoch and not num_items:
            return f"{call} gave examples once and now none; return a new iterator from every call"
        if num_items and not kept:
            return f"{call} gives {num_items} examples and `map` leaves all out; keep some"
        return (
            f"{call} gives {kept} examples, fewer than {least}; give every worker at least a batch: split by example "
            "and not by file, or start fewer workers"
        )

    def _items(self, name: str, epoch: int, seed: int | None) -> Generator[tuple[int, Any], None, None]:
        """Yields numbers and mapped items of a pass."""
        call = None if self.map is None else with_random_numbers(self.map, seed)
        doing, number = "reading", -1
        with closing(self._opened(name)) as stream:
            try:
                for number, item in enumerate(stream):
                    place, doing = Place(epoch, number * self.num_workers + self.worker_index, number), "mapping"
                    mapped, doing = item if call is None else call(item, place), "reading"
                    yield number, mapped
            except Exception as error:
                error.add_note(f"while {doing} {name}{self._where(name)}, item {number + (doing == 'reading')}")
                raise

    def _opened(self, name: str) -> Generator[Any, None, None]:
        """Yields the items of a stream and closes it, if it can be closed."""
        where = self._where(name)
        stream = getattr(self, name)(*where)
        # tf.data's own iterator gives tensors.
        iterable = stream.as_numpy_iterator() if hasattr(stream, "as_numpy_iterator") else stream
        try:
            iterator = iter(iterable)
        except TypeError:
            raise ValueError(f"{name}{where} returns a {type(stream).__name__}; return an iterable") from None
        try:
            yield from iterator
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    def _where(self, name: str) -> tuple[int, int]:
        """Worker index and number of workers that a stream is opened with."""
        return (self.worker_index, self.num_workers) if name == "train" else (0, 1)

    def _first(self, name: str) -> ExampleBatch:
        batcher = self.batcher(name, is_training=name == "train")
        with closing(self._items(name, 0, 0 if name == "train" else None)) as items:
            for number, item in items:
                if item is not None:
                    return batcher.alone(item, number, batched=self.batched)
        raise ValueError(self._too_few(0, 0, 0, 1) if name == "train" else "validation(0, 1) gives no example")
