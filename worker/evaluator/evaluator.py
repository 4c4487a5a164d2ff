"""The evaluator: scores every checkpoint on the held-out examples and reports the scores to the chief.

The scores of further sets of held-out examples have their names, `val_NAME_loss`.

Several evaluators share the checkpoints: the chief gives each to one of them, which scores it whole.

Threads: one, and beside it one that tells the chief every second that a checkpoint is being scored. TensorFlow is
allowed here.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import keras
import numpy as np
from absl import logging

from downpour.model import keras_private, weights
from downpour.model.data import Dataset
from downpour.model.vision.records import RecordCounts
from downpour.proto.chief_pb2 import Illustration, Score
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.checkpoint import restore
from downpour.ps.checkpoint.shard_file import Damaged
from downpour.ps.layout import Layout
from downpour.worker.evaluator import scoring
from downpour.worker.evaluator.illustration import Illustrator
from downpour.worker.exchange.clients import ChiefClient
from downpour.worker.step.forward import Loss

_ASK_EVERY_S = 0.05  # the chief waits for a checkpoint before it answers that there is none
_TELL_EVERY_S = 1.0  # that a checkpoint is being scored


class Evaluator:
    """Scores parameters of one model on held-out examples.

    Args:
        model: A built model; its variables are overwritten.
        mine: The layout of its variables.
        data: Source of the held-out examples; it may have none where there are further sets.
        batch_size: Examples scored in one call.
        loss: The job's loss; None for a compiled model.
        average: Whether the average of the parameters is scored in their place.
        sets: Further sources by name.
        illustrator: Sees what is scored of `data`, if the scores are of labelled images or of a compiled model; None
            for none.

    Attributes:
        has_scored: Whether it has scored a checkpoint.
    """

    def __init__(
        self,
        model: keras.Model,
        mine: Layout,
        data: Dataset,
        batch_size: int,
        loss: Loss = None,
        average: bool = False,
        sets: Mapping[str, Dataset] | None = None,
        illustrator: Illustrator | None = None,
    ) -> None:
        self.has_scored = False
        self._illustrator = illustrator
        self._average = average
        self._model = model
        self._layout = mine
        self._data = {"": data, **(sets or {})}
        self._batch_size = batch_size
        self._evaluate = scoring.evaluation(model, data, loss)

    def illustration(self) -> Illustration | None:
        """What the last evaluation shows beside its scores; None without an illustrator."""
        return None if self._illustrator is None else self._illustrator.message()

    def score(self, directory: str) -> tuple[dict[str, float], RecordCounts]:
        """Scores one checkpoint.

        Returns:
            The scores by name; and how many records were read and skipped.

        Raises:
            LayoutMismatch: The checkpoint is of another model; the number of shards may differ.
            Damaged: The checkpoint is corrupt.
            ValueError: The checkpoint or the data cannot be read, or there is no average.
        """
        saved = checkpoint.load(directory)
        restore.check(saved, self._layout.variables)
        weights.load(self._model, saved, self._average)
        return self._score()

    def score_values(self, values: Mapping[str, np.ndarray]) -> tuple[dict[str, float], RecordCounts]:
        """Scores values of the variables, by name; returns what `score` does.

        Raises:
            ValueError: The data cannot be read.
        """
        weights.assign(self._model, values)
        return self._score()

    def _score(self) -> tuple[dict[str, float], RecordCounts]:
        scores: dict[str, float] = {}
        counts = RecordCounts()
        for name, data in self._data.items():
            found, seen = self._scored(data, is_needed=bool(name) or len(self._data) == 1)
            scores |= {scoring.name_in(name, key): value for key, value in found.items()}
            counts.read, counts.skipped = counts.read + seen.read, counts.skipped + seen.skipped
            counts.examples += seen.examples
        self.has_scored = True
        return scores, counts

    def _scored(self, data: Dataset, *, is_needed: bool) -> tuple[dict[str, float], RecordCounts]:
        """Scores one source; without a batch there is no score, or an error if one is needed."""
        for layer in keras_private.layers_of(self._model):
            if isinstance(layer, keras.layers.RNN) and layer.stateful:  # its states stem from the last batch scored
                layer.reset_state()
        with data.heldout(batch_size=self._batch_size) as batches:
            first = next(batches, None)
            if first is None and is_needed:
                raise ValueError(
                    f"data source {type(data).__name__} gives no held-out batch to score; give held-out ones, "
                    "or start with --noevaluator to train without scores"
                )
            seen = scoring.unseen
            if self._illustrator is not None and data is self._data[""]:
                self._illustrator.begin()
                seen = self._illustrator.add
            scores = {} if first is None else self._evaluate(itertools.chain([first], batches), data, seen)
            return scores, batches.counts


def run(
    evaluator: Evaluator,
    chief: ChiefClient,
    scored: Callable[[int, float, int, int], None] = lambda *_: None,
    index: int = 0,
) -> None:
    """Scores each checkpoint that the chief gives, and reports its score, until the last one.

    Args:
        evaluator: Scores them.
        chief: The chief.
        scored: Called with each one's step, the seconds that it took, and the records read and skipped.
        index: Index among the job's evaluators.
    """
    step, incarnation = -1, secrets.randbits(63)
    while True:
        found = chief.next_checkpoint(step, index, incarnation)
        if not found.directory:
            if found.stop:
                return
            time.sleep(_ASK_EVERY_S)
            continue
        step, directory = found.step, found.directory
        began_s = time.monotonic()
        try:
            with _telling(functools.partial(chief.scoring, step, index, incarnation, _TELL_EVERY_S)):
                metrics_, counts = evaluator.score(directory)
        except ValueError as error:
            whole = _is_whole(directory)
            if found.last or (whole and not isinstance(error, Damaged)):
                raise
            if whole:
                logging.warning("the checkpoint of step %d is not scored: %s", step, error)
            else:
                logging.warning("the chief removed the checkpoint of step %d before it was read", step)
            continue
        seconds = time.monotonic() - began_s
        text = ", ".join(f"{name} {value:.4g}" for name, value in metrics_.items())
        logging.info("step %d: %s; %d examples in %.1f s", step, text, counts.read, seconds)
        chief.report_score(
            Score(
                step=step,
                metrics=metrics_,
                records_read=counts.read,
                records_skipped=counts.skipped,
                skipped_examples=counts.examples,
                illustration=evaluator.illustration(),
            )
        )
        scored(step, seconds, counts.read, counts.skipped)
        if found.last:
            return


@contextlib.contextmanager
def _telling(tell: Callable[[], None]) -> Iterator[None]:
    """Calls a function every second while the block lasts."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(_TELL_EVERY_S):
            tell()

    thread = threading.Thread(target=repeat, name="telling", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _is_whole(directory: str) -> bool:
    """Whether a checkpoint still exists with all its files; the chief keeps only the newest few."""
    try:
        return checkpoint.load(directory).is_whole()
    except ValueError:
        return False
