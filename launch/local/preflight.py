"""Builds a job and traces its whole training step once, so that a mistake is reported before any role starts.

Checks, in this order: the model and the loss (`downpour.launch.job.build` documents what it refuses); the first batch
of the data (shapes, kinds of numbers, leases); the evaluator's prediction; the step as workers compile it; and the
scores that callbacks follow. Trains and writes nothing. Used by `downpour.launch.layout_table`, the process that
launchers start first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from downpour.launch.job import Job, mistakes
from downpour.launch.job.build import MORE_THAN_IMAGES, build, check_data, check_image_shape
from downpour.model.data import Batches, GeneratedImages, ImageRecords
from downpour.model.data.batches import Batch, has_labelled_images, positions_in_batch
from downpour.model.data.nests import flatten, num_examples
from downpour.model.data.order import Counted, forever
from downpour.model.vision import metrics
from downpour.proto.codec import CODECS
from downpour.ps.layout import Layout
from downpour.worker.chief.callbacks import check_scores
from downpour.worker.exchange.replica import step_codec

_WITHOUT_SCORES = "start with --noevaluator to train without scores"


@mistakes.final()
def check(job: Job, *, evaluator: bool) -> tuple[Any, Layout]:
    """Checks that a job can be trained, and scored if it has an evaluator; returns its model and layout.

    Raises:
        ValueError: The model, the data or the loss cannot be used.
        Mistake: Their own code raised something else.
    """
    check_data(job)
    model, layout = build(job)
    batches = batches_of(job, evaluator=evaluator)
    for batch in reversed(batches):  # the held-out one last, so that what it does not fit is known to fit the others
        if has_labelled_images(job.data):
            check_image_shape(model, batch[0].shape[1:])
            if job.loss is not None:
                _check_labels(batch[1], predict(model, batch[0]), evaluator=evaluator)
        try:
            _trace_step(job, model, layout, batch)
        except Exception as error:
            if len(batches) > 1 and batch is batches[0]:
                error.add_note("with the held-out examples, `validation_data` of `fit`; training examples fit")
            raise
    if job.callbacks:
        check_scores(job.callbacks, _score_names(job, model) if evaluator else ())
    return model, layout


def batches_of(job: Job, *, evaluator: bool) -> list[Batch]:
    """Returns first batches: held-out if scored or of our sources, and training ones of the user's own sources.

    Raises:
        ValueError: There is no held-out batch to score, or a batch is not what `Batches` says.
    """
    ours = type(job.data) in (ImageRecords, GeneratedImages)  # whose training batches need no check
    found = []
    if evaluator or ours:
        with job.data.heldout(batch_size=job.batch_size) as batches:
            first: Any = next(iter(batches), None)
        if first is None and evaluator and not job.validation_sets:
            raise ValueError(
                f"{_name(job)} gives no held-out batch to score; give held-out examples, or {_WITHOUT_SCORES}"
            )
        found += [] if first is None else [_checked(job, first)]
    if not ours:
        leases = Counted(forever(job.data.num_records, positions_in_batch(job.data, job.batch_size)), _name(job))
        given = job.data.training(batch_size=job.batch_size, seed=job.seed, leases=leases)
        if not isinstance(given, Batches):
            kind = type(given).__name__
            raise ValueError(
                f"{_name(job)}: training() returns a {kind}; return downpour.model.data.Batches{_at(job, 'training')}"
            )
        with given as batches:
            first = next(iter(batches), None)
            if first is None:
                raise ValueError(
                    f"{_name(job)} gives no training batch although there are leases; batches end with them"
                )
            leases.check(batches.position)
            second: Any = next(iter(batches), None)
        found.append(_checked(job, first))
        if second is not None:
            _check_new_arrays(job, found[-1], _checked(job, second))
    return found


def _check_new_arrays(job: Job, first: Batch, second: Batch) -> None:
    """Raises `ValueError` for a source that fills the arrays of one batch again for the next, which is made ahead."""
    ones, others = (
        [leaf for leaf in flatten(batch).values() if isinstance(leaf, np.ndarray) and leaf.flags.writeable]
        for batch in (first, second)
    )
    if any(np.shares_memory(one, other) for one in ones for other in others):
        raise ValueError(
            f"{_name(job)}: two batches share an array; give every batch arrays of its own, as batches are assembled "
            f"while others are trained on{_at(job, 'training')}"
        )


def predict(model: Any, images: np.ndarray) -> Any:
    """Traces the model's output for a batch as the evaluator does, without computing it; returns a symbolic tensor.

    Raises:
        ValueError: The output is not one tensor.
    """
    import tensorflow as tf

    from downpour.worker.step.forward import infer

    spec = tf.TensorSpec(images.shape, images.dtype)
    traced = tf.function(lambda given: infer(model, given), autograph=False).get_concrete_function(spec)
    outputs = traced.structured_outputs
    if not isinstance(outputs, tf.TensorSpec | tf.Tensor):
        number = (
            f"{len(outputs)} outputs" if isinstance(outputs, dict | list | tuple) else f"a {type(outputs).__name__}"
        )
        raise ValueError(
            f"the model gives {number}, and data of labelled images give one array [B, labels]; {MORE_THAN_IMAGES}"
        )
    return outputs


def _checked(job: Job, batch: Any) -> Batch:
    if has_labelled_images(job.data):
        return _pair(job, batch)
    if not isinstance(batch, tuple) or len(batch) not in (2, 3):
        given = f"{len(batch)} values" if isinstance(batch, tuple | list) else f"a {type(batch).__name__}"
        raise ValueError(f"{_name(job)} gives {given} a batch; give a tuple (x, y) or (x, y, sample_weight)")
    num_examples(batch[0])  # raises
    return batch


def _pair(job: Job, batch: Any) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        given = f"{len(batch)} values" if isinstance(batch, tuple | list) else f"a {type(batch).__name__}"
        raise ValueError(f"{_name(job)} gives {given} a batch; give a pair of images and labels; {MORE_THAN_IMAGES}")
    for what, value in zip(("images", "labels"), batch, strict=True):
        if isinstance(value, dict | tuple | list):
            raise ValueError(
                f"{_name(job)} gives {what} as a {type(value).__name__}, not as one array; {MORE_THAN_IMAGES}"
            )
    images, labels = (np.asarray(value) for value in batch)
    if images.dtype == object or labels.dtype == object or not images.ndim or not labels.ndim:
        raise ValueError(
            f"{_name(job)} gives images {_shape(images)} and labels {_shape(labels)}; give arrays of numbers"
        )
    if len(images) != len(labels):
        raise ValueError(f"{_name(job)} gives {len(images)} images and {len(labels)} labels in one batch; give as many")
    return images, labels


def _check_labels(labels: np.ndarray, outputs: Any, *, evaluator: bool) -> None:
    """Raises `ValueError` for labels that have another shape than the outputs, or cannot be scored."""
    shape = tuple(outputs.shape)
    if labels.shape != shape:
        raise ValueError(
            f"the model gives {shape} and the data labels {labels.shape}; give both as [images, labels], so that "
            "`num_labels` of the data is the model's last dimension"
        )
    if evaluator:
        metrics.check_labels(labels)


def _score_names(job: Job, model: Any) -> list[str]:
    from downpour.worker.evaluator.scoring import score_names

    return score_names(model, job.data, job.loss, job.validation_sets)


def _trace_step(job: Job, model: Any, layout: Layout, batch: Batch) -> None:
    from downpour.worker.step.step import TrainingStep

    wire = step_codec(job.cadence, CODECS[job.exchange.codec])
    TrainingStep(model, job.loss, layout, wire, job.clip).trace(*batch)


def _at(job: Job, method: str) -> str:
    return mistakes.defined(getattr(type(job.data), method))


def _name(job: Job) -> str:
    return f"data source {type(job.data).__name__}"


def _shape(array: np.ndarray) -> str:
    return f"{array.shape} {array.dtype}"
