"""Builds what every TensorFlow role needs of a job: the model and the layout of its variables.

Imports TensorFlow inside functions, so that flags are checked before that takes seconds.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from downpour.launch.job import keras_settings, mistakes
from downpour.launch.job.job import Job
from downpour.model import keras_private
from downpour.proto.codec import CODECS, WIRE_DTYPES
from downpour.proto.http2.assembly import MAX_FACTORS_BYTES
from downpour.ps.layout import Layout, Slicing, lay_out
from downpour.ps.policy.pace import Sync
from downpour.ps.policy.staleness import Compensate
from downpour.worker.exchange.cadence import Accumulate, EveryStep


@mistakes.final()
def build(job: Job, num_threads: int = 0) -> tuple[Any, Layout]:
    """Builds the Keras model with the job's seed, and its layout. Both are the same in every process of the job.

    Args:
        job: The job.
        num_threads: TensorFlow's threads in this process; 0 for one per core.

    Raises:
        ValueError: Keras is set to another backend or dtype; a pattern of the job matches no variable of the model; the
            model is not built and cannot be called; it does something with a variable that workers cannot carry out
            (`worker.examine`); a constraint cannot be applied by shards or with the job's cadence; or the pace is Sync
            and a shard has nothing to update.
        Mistake: The network's code raised something else.
    """
    keras_settings.check()
    image_size, num_labels = job.data.image_size, job.data.num_labels

    import keras
    import tensorflow as tf
    from keras.src.utils.naming import reset_uids

    from downpour.worker.step.examine import examine

    if num_threads:
        tf.config.threading.set_intra_op_parallelism_threads(num_threads)
        tf.config.threading.set_inter_op_parallelism_threads(num_threads)
    keras.config.set_image_data_format("channels_last")  # as images are; keras.json may set another
    reset_uids()  # unnamed layers are numbered from one, however many models this process has built
    keras.utils.set_random_seed(job.seed)
    model = job.model.build(image_size, num_labels)
    _check_model(model, job, image_size)
    images = (job.batch_size, image_size, image_size, 3)
    if not model.built:
        _call_once(model, images)
    _check_ends(model, job.batch_size, image_size, num_labels)
    _check_loss(job, (job.batch_size, num_labels))
    examined = examine(model, job.loss, images, (job.batch_size, num_labels))
    if examined.unreached:
        logging.warning(
            "no gradient reaches %s, so it is not trained, as in plain Keras", ", ".join(sorted(examined.unreached))
        )
    layout = _layout(job, model, examined)
    _check_cadence(job, layout)
    if isinstance(job.pace, Sync):
        for shard in range(layout.num_shards):
            if not layout.num_pushed(shard):  # its version would never advance, and every pull would block on it
                raise ValueError(f"pace: under Sync shard {shard} has nothing to update; give a smaller cluster.num_ps")
    return model, layout


def _layout(job: Job, model: Any, examined: Any) -> Layout:
    """Places a model's variables; kernels are pushed as factors where that saves bytes and fits a message."""
    from downpour.worker.step.examine import kinds_of
    from downpour.worker.step.variables import factored_names, variables_of

    kinds = kinds_of(model, examined, statistics=job.statistics, local=job.local, frozen=job.frozen)
    factored = factored_names(model, job.batch_size, examined) if _may_factor(job) else set()
    factored -= _cut_along_inputs(factored, job.slicing)
    while True:
        variables = variables_of(
            model,
            job.weight_decay,
            job.undecayed,
            decay=job.decay,
            rates=job.rates,
            frozen=job.frozen,
            factored=factored,
            kinds=kinds,
            unreached=examined.unreached,
        )
        layout = lay_out(variables, job.cluster.num_ps, job.slicing)
        too_large = unsendable(layout, examined.rows, WIRE_DTYPES[CODECS[job.exchange.codec]].itemsize)
        if not too_large:
            return layout
        factored -= too_large


def unsendable(layout: Layout, rows: Mapping[str, int], itemsize: int) -> set[str]:
    """Returns the factored variables whose factors, one message a shard, exceed `MAX_FACTORS_BYTES`.

    Args:
        layout: Layout with factored variables.
        rows: Rows of each variable's factors, by name.
        itemsize: Bytes of an element on the wire.
    """
    names = set()
    for shard in range(layout.num_shards):
        for group in layout.factored(shard):
            name = layout.variables[group.ranges[0].variable].name
            if rows[name] * (group.num_inputs + group.num_outputs) * itemsize > MAX_FACTORS_BYTES:
                names.add(name)
    return names


def _cut_along_inputs(kernels: set[str], slicing: Sequence[Slicing]) -> set[str]:
    """Names of kernels [I, O] that a job slices along I; these cannot be pushed as factors."""
    axes = {name: rule.axis % 2 for rule in slicing for name in kernels if fnmatch.fnmatchcase(name, rule.pattern)}
    return {name for name, axis in axes.items() if axis == 0}


def _call_once(model: Any, images: tuple[int, ...]) -> None:
    """Builds a model by a call on images of zeros, then resets the states of recurrent layers."""
    import keras
    import tensorflow as tf

    try:
        model(keras.ops.zeros(images))
    except (ValueError, TypeError, AttributeError, NotImplementedError, tf.errors.OpError) as error:
        raise ValueError(
            f"model: {type(model).__name__} {model.name!r} is not built, and its call on images of zeros, "
            f"{list(images)}, fails: {mistakes.describe(error)}; build it in the `build` of the job's model"
        ) from error
    for layer in keras_private.layers_of(model):
        if isinstance(layer, keras.layers.RNN) and layer.stateful:
            layer.reset_state()


def _check_cadence(job: Job, layout: Layout) -> None:
    """Raises `ValueError` if variables have constraints and workers step on their own copy, which applies none."""
    constrained = [v for v in layout.variables if v.constraint]
    if constrained and not isinstance(job.cadence, EveryStep | Accumulate):
        raise ValueError(
            f"cadence: {type(job.cadence).__name__} steps on the worker's own copy, to which the constraint "
            f"{constrained[0].constraint} of {constrained[0].name} is not applied; give EveryStep or Accumulate, or "
            "set constraint=None"
        )


def _check_model(model: Any, job: Job, image_size: int) -> None:
    """Raises `ValueError` unless the model is a `keras.Model` that is not compiled."""
    import keras

    made, at = f"{type(job.model).__name__}.build returned", mistakes.defined(job.model.build)
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"{made} {_kind(model)}; return a keras.Model that maps [B, {image_size}, ...] to [B, labels]{at}"
        )
    if model.compiled:
        raise ValueError(
            f"{made} a compiled model, whose optimizer, loss and metrics would not be used: the job's rule and loss "
            f"are. Leave compile() out; a saved model is loaded by keras.saving.load_model(..., compile=False){at}"
        )


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _check_ends(model: Any, batch_size: int, image_size: int, num_labels: int) -> None:
    """Raises `ValueError` unless a model takes the data's images and returns an output for each of their labels.

    Subclassed models declare neither inputs nor outputs; the trace that follows checks them.
    """
    inputs, outputs = getattr(model, "inputs", None) or [None], getattr(model, "outputs", None) or [None]
    if len(inputs) != 1:
        raise ValueError(
            f"the model has {len(inputs)} inputs; today a model takes one array [B, ...] (join them in it)"
        )
    check_image_shape(model, (image_size, image_size, 3))
    if len(outputs) != 1:
        raise ValueError(
            f"the model gives {len(outputs)} outputs; today a model gives one array [B, labels] (join them in it)"
        )
    if outputs[0] is not None and tuple(outputs[0].shape[1:]) != (num_labels,):
        raise ValueError(
            f"the model gives {(batch_size, *outputs[0].shape[1:])} and the data labels {(batch_size, num_labels)}; "
            "give both as [images, labels], so that `num_labels` of the data is the model's last dimension"
        )


def check_image_shape(model: Any, shape: Sequence[int]) -> None:
    """Raises `ValueError` for a model that does not take images of this shape, [S, S, 3]."""
    expected = getattr(model, "input_shape", None) if getattr(model, "inputs", None) else None
    if not isinstance(expected, tuple):
        return
    same = len(expected) == 1 + len(shape) and all(e in (None, g) for e, g in zip(expected[1:], shape, strict=True))
    if not same:
        wanted = ", ".join("any" if size is None else str(size) for size in expected[1:])
        raise ValueError(
            f"the data give images of shape {tuple(shape)}, the model takes ({wanted}); let `image_size` of the data "
            "be the side of its images, and the model be built for it"
        )


def _check_loss(job: Job, shape: tuple[int, int]) -> None:
    """Raises `ValueError` unless the loss of labels and outputs of a shape is a scalar."""
    import tensorflow as tf

    spec = tf.TensorSpec(shape, tf.float32)
    traced = tf.function(lambda *given: job.loss(*given), autograph=False).get_concrete_function(spec, spec)
    loss = traced.structured_outputs
    accepted = f"return one number, such as keras.ops.mean of the losses of the examples{mistakes.defined(job.loss)}"
    if not isinstance(loss, tf.TensorSpec | tf.Tensor):
        raise ValueError(f"the loss returns {'None' if loss is None else f'a {type(loss).__name__}'}; {accepted}")
    if loss.shape.rank not in (0, None):
        raise ValueError(f"the loss returns an array of shape {tuple(loss.shape)}; {accepted}")


def check_data(job: Job) -> None:
    """Raises `ValueError` when the data cannot be read, or are fewer than one batch."""
    with mistakes.final():
        job.data.check()
        if job.data.num_records < job.batch_size:
            raise ValueError(
                f"batch_size is {job.batch_size}, but there are only {job.data.num_records} training records; give "
                f"--set=batch_size={job.data.num_records} or less"
            )


def _may_factor(job: Job) -> bool:
    """Whether pushes may carry factors: not if clip, treatment or cadence needs dense gradients in the worker."""
    by_value = job.clip is not None and job.clip.by_value is not None
    needs_elements = by_value or isinstance(job.staleness, Compensate) or not isinstance(job.cadence, EveryStep)
    return job.exchange.factors and not needs_elements
