"""Training and held-out examples of indexed sources: arrays, Hugging Face, torch, PyDataset, Grain, lists.

Leases name positions of an epoch, and `Order` the item at each, so that all workers together train on every item
exactly once an epoch, in an order that the seed decides and not the number of workers.

Shapes: `B` examples of a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import Any

from downpour.model.data.assembly import gathered, of_size, rows, whole
from downpour.model.data.batches import Batch, Batches, check_batch_size
from downpour.model.data.collation import ExampleBatch
from downpour.model.data.epochs import check_fits
from downpour.model.data.indexed import Source, is_a, rows_directly
from downpour.model.data.nests import num_examples
from downpour.model.data.order import Lease, Order, Place
from downpour.model.data.preparation import Preparation, blank_like, check_alike
from downpour.model.data.reading import Reader, check_picklable, items_read
from downpour.model.data.restriction import Restriction
from downpour.model.vision.records import RecordCounts


@dataclass(frozen=True, eq=False)
class Examples(Preparation, Restriction):
    """Examples out of indexed sources; batches are `(x, y, sample_weight)`.

    A source is one of: an array; a dict or tuple of arrays (nested as x, y and weights are), indexed along axis 0;
    anything with `__len__` and `__getitem__`, whose items are `(x, y, sample_weight)`, `(x, y)`, `x`, or dicts of
    columns (Hugging Face, torch, lists, Grain's sources and `MapDataset`); a `keras.utils.PyDataset`, whose items are
    batches; or a function without arguments that returns one of these, called once in each process, so that a job
    holds no open files. A Grain `MapDataset` may shuffle, map, mix and filter by itself; its random numbers differ by
    epoch.

    A position of a lease is an item: an example, or a batch where items are batches.

    Attributes:
        train: Source of the training examples.
        validation: Source of the held-out ones; None for none.
        shuffle: Whether epochs are shuffled here. False where the source shuffles, as Grain does, or its order counts.
        num_threads: Threads that read items at once; the source must allow it. None for 1, the loading thread, or the
            `workers` of a PyDataset.
        num_processes: Processes that read items at once, in place of threads, for a `map` that is slow Python. None
            for 0, or the `workers` of a PyDataset with `use_multiprocessing`.
    """

    train: Any = field(repr=False)
    validation: Any = field(default=None, repr=False)
    _: KW_ONLY
    shuffle: bool = True
    num_threads: int | None = None
    num_processes: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_restriction()
        for name, least in (("num_threads", 1), ("num_processes", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; give at least {least}")

    @cached_property
    def num_records(self) -> int:
        """Positions of an epoch: training examples, or batches where items are batches.

        Raises:
            ValueError: The source is refused; see `check`.
        """
        return self.num_used(len(self._train))

    def positions_in_batch(self, batch_size: int) -> int:
        """Positions of the leases that a batch takes: its examples, or 1 where items are batches."""
        return 1 if self._train.has_batches else batch_size

    def for_worker(self, index: int, num_workers: int) -> Examples:
        """The examples of one worker: all, since leases divide them."""
        return self

    def check(self) -> None:
        """Reads and maps the first and the last item of both sources.

        Raises:
            ValueError: A source is empty or none, its arrays differ in length, an item cannot be made an example, the
                two items differ, held-out examples have other inputs or targets, or cannot be read by other processes.
        """
        if self._num_at_once("processes", self.num_processes, 0):
            check_picklable(map=self.map, **{source.name: source.given for source in self._sources()})
        check_alike([self._ends(source) for source in self._sources()])

    def check_all(self) -> None:
        """Checks as `check` does, and every example of arrays in memory that no function changes.

        Raises:
            ValueError: See `check`; or an example is refused, or a key of `class_weight` is no label of those arrays.
        """
        self.check()
        if self.map is not None or self.collate is not None:
            return
        for source in self._sources():
            columns = rows_directly(source.opened)
            if columns is not None:
                batcher = self.batcher(source.name, is_training=source is self._train)
                batcher.check_all(columns.pieces())

    def first_heldout(self) -> ExampleBatch | None:
        """The first held-out item, as a batch; None if there is no source of them, or it is left out.

        Raises:
            ValueError: See `check`.
        """
        return None if self.validation is None else self._ends(self._validation)

    def batch_size_of_items(self) -> int | None:
        """Examples of the first item, where items are batches; else None.

        Raises:
            ValueError: The source is refused; see `check`.
        """
        first = self._ends(self._train) if self._train.opened.batched else None
        return None if first is None else num_examples(first[0])

    def _sources(self) -> list[Source]:
        return [self._train] if self.validation is None else [self._train, self._validation]

    def blank(self, batch_size: int) -> Batch:
        """Zeros like a training batch; see `batches.blank_batch`. Reads and maps the first item, if none is left out.

        Raises:
            ValueError: The source is refused, or its first and its last item are left out by `map`.
        """
        return blank_like(self._ends(self._train), batch_size, "train")

    def training(self, *, batch_size: int, seed: int, leases: Iterator[Lease]) -> Batches:
        """Batches of exactly `batch_size` that run across leases and epochs; they end with `leases`.

        Examples at the end that do not fill a batch are dropped. Where items are batches, every item is one as it is:
        item 0 must have `batch_size` examples, the others at most as many.

        Args:
            batch_size: Examples in a batch, B.
            seed: Seed of order and augmentation; the same for all workers, so that leases name the same examples.
            leases: Positions to train on; taken by the loading thread, ahead of the batches.

        Raises:
            ValueError: There are fewer examples than a batch. While iterating: a lease is not within an epoch, or an
                example is refused.
        """
        check_batch_size(batch_size)
        num_items = len(self._train)
        reader = Reader(self._train, self.map, seed, num_items)
        if self._train.opened.batched:
            first = zip([0], reader.read([Place(0, 0, 0)]), strict=True)
            counts, batcher = RecordCounts(), self.batcher("train", is_training=True)
            next(whole(first, batcher, batch_size, counts, by_examples=False), None)  # refuses another size
        else:
            check_fits(batch_size, self.num_records)
        order = Order(self.num_records, seed, shuffle=self.shuffle, chosen=self.chosen(num_items, seed))
        return self._load(reader, order, leases, batch_size)

    def heldout(self, *, batch_size: int) -> Batches:
        """One pass over the held-out examples in the order of the source; the last batch may be short.

        There is no batch if there is no source of them. Raises as `training` does while iterating.
        """
        check_batch_size(batch_size)
        if self.validation is None:
            return Batches((_ for _ in ()), RecordCounts())
        num_items = len(self._validation.opened)
        reader = Reader(self._validation, self.map, None, num_items)
        once = iter([Lease(0, 0, num_items)])
        return self._load(reader, Order(num_items, 0, shuffle=False), once, batch_size, is_training=False)

    @cached_property
    def _train(self) -> Source:
        return Source(self.train, "train", self.batched)

    @cached_property
    def _validation(self) -> Source:
        return Source(self.validation, "validation", self.batched)

    def _num_at_once(self, how: str, given: int | None, otherwise: int) -> int:
        """Threads or processes to read with."""
        if given is None and is_a(value := self._train.value, "keras", "PyDataset"):
            wanted = "processes" if value.use_multiprocessing else "threads"
            return int(value.workers) if how == wanted else otherwise
        return otherwise if given is None else given

    def _ends(self, source: Source) -> ExampleBatch | None:
        """The first item of a source, as a batch, after a look at the last one; None if they are left out."""
        is_training = source is self._train
        batcher, reader = (
            self.batcher(source.name, is_training=is_training),
            Reader(source, self.map, 0 if is_training else None),
        )
        found: list[ExampleBatch] = []
        for record in sorted({0, len(source.opened) - 1}):
            (item,) = reader.read([Place(0, record, record)])
            if item is not None:
                found.append(batcher.alone(item, record, batched=source.opened.batched))
        return found[0] if found else None

    def _load(
        self, reader: Reader, order: Order, leases: Iterator[Lease], batch_size: int, *, is_training: bool = True
    ) -> Batches:
        counts, source = RecordCounts(judge_after=None), reader.source.opened
        batcher = self.batcher(reader.source.name, is_training=is_training)
        columns = rows_directly(source) if self.map is None and self.collate is None else None
        if columns is not None:
            made = rows(columns, reader, order.groups(leases, batch_size), batcher, counts)
        elif source.batched:
            most = batch_size if is_training else None
            made = whole(self._items(reader, order.places(leases), 1), batcher, most, counts, by_examples=False)
        else:
            items = self._items(reader, order.places(leases), batch_size)
            made = gathered(items, len(source), batcher, batch_size, counts)
        if is_training and not source.batched:
            made = of_size(made, batch_size)
        return Batches(self.with_labels(made, is_training=is_training), counts)

    def _items(self, reader: Reader, places: Iterable[Place], size: int) -> Iterator[tuple[int, Any]]:
        threads = self._num_at_once("threads", self.num_threads, 1)
        processes = self._num_at_once("processes", self.num_processes, 0)
        return items_read(reader, places, size, threads, processes)
