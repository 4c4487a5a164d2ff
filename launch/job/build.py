"""Builds what every TensorFlow role needs of a job: the model and the layout of its variables.

Imports TensorFlow inside functions, so that flags are checked before that takes seconds.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging

from downpour.launch.job import keras_settings, mistakes
from downpour.launch.job.job import Job
from downpour.launch.job.loading import load_tensorflow
from downpour.model import keras_private
from downpour.model.data import nests
from downpour.model.data.batches import (
    Batch,
    blank_batch,
    check_same_labels,
    has_labelled_images,
    positions_in_batch,
)
from downpour.model.weights import ASSIGNED
from downpour.proto.codec import CODECS, WIRE_DTYPES
from downpour.proto.http2.assembly import MAX_FACTORS_BYTES
from downpour.ps.layout import Layout, Slicing, lay_out
from downpour.ps.policy.pace import Sync
from downpour.ps.policy.staleness import Compensate
from downpour.worker.exchange.cadence import Accumulate, EveryStep

# The way out for data sets with `image_size` and `num_labels`.
MORE_THAN_IMAGES = (
    "for several inputs or outputs, or sample weights, give the data as downpour.model.data.Examples, and a compiled "
    "model without a loss of the job (docs/data.md, docs/fit.md)"
)


def limit_threads(num_threads: int) -> None:
    """Sets TensorFlow's threads in this process; call it before anything of the user's runs, which may use TensorFlow.

    Where the recipe's file has used it already, TensorFlow keeps its threads, and a warning says so.

    Args:
        num_threads: Their number; 0 for one per core.
    """
    if not num_threads:
        return
    load_tensorflow()
    import tensorflow as tf

    try:
        tf.config.threading.set_intra_op_parallelism_threads(num_threads)
        tf.config.threading.set_inter_op_parallelism_threads(num_threads)
    except RuntimeError:  # it has begun to compute
        logging.warning(
            "a file that the recipe imports has used TensorFlow, which therefore runs a thread per core in this "
            "process and not %d as cluster.threads_per_worker says; make tensors and data sets within functions",
            num_threads,
        )


@mistakes.final()
def build(job: Job) -> tuple[Any, Layout]:
    """Builds the Keras model with the job's seed, and its layout. Both are the same in every process of the job.

    Args:
        job: The job.

    Raises:
        ValueError: Keras is set to another backend or dtype; a pattern of the job matches no variable of the model; the
            model is not built and cannot be called; it does something with a variable that workers cannot carry out
            (`worker.examine`); a constraint cannot be applied by shards or with the job's cadence; or the pace is Sync
            and a shard has nothing to update.
        Mistake: The network's code raised something else.
    """
    keras_settings.check()
    with mistakes.final():
        batch = blank_batch(job.data, job.batch_size)

    load_tensorflow()
    import keras

    from downpour.model.keras_private import restart_numbering
    from downpour.worker.step.examine import examine

    keras.config.set_image_data_format("channels_last")  # as images are; keras.json may set another
    restart_numbering()
    keras.utils.set_random_seed(job.seed)
    model = job.model.build(*_arguments(job.data)) if hasattr(job.model, "build") else job.model()
    _check_model(model, job)
    if not model.built:
        _call_once(model, batch[0])
    if has_labelled_images(job.data):
        _check_ends(model, job.batch_size, job.data.image_size, job.data.num_labels)
    if job.loss is None:
        check_compiled(model, job, batch)
    elif has_labelled_images(job.data):
        _check_loss(job.loss, (job.batch_size, job.data.num_labels))
    examined = examine(model, job.loss, batch)
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


def _arguments(data: Any) -> tuple[int, ...]:
    """Arguments of the network's `build`."""
    return (data.image_size, data.num_labels) if has_labelled_images(data) else ()


def _call_once(model: Any, inputs: Any) -> None:
    """Builds a model by a call on inputs of zeros, then resets the states of recurrent layers."""
    import keras
    import tensorflow as tf

    try:
        model(tf.nest.map_structure(tf.convert_to_tensor, inputs))
    except (ValueError, TypeError, AttributeError, NotImplementedError, tf.errors.OpError) as error:
        raise ValueError(
            f"model: {type(model).__name__} {model.name!r} is not built, and its call on zeros, "
            f"{nests.describe(inputs)}, fails: {mistakes.describe(error)}; build it in the `build` of the job's model"
        ) from error
    for layer in keras_private.layers_of(model):
        if isinstance(layer, keras.layers.RNN) and layer.stateful:
            layer.reset_state()


def _check_cadence(job: Job, layout: Layout) -> None:
    """Raises `ValueError` for variables that need what cadence or average do not do.

    Constraints are not applied to a worker's own copy; nor are the differences of assigned kernels added to it, or
    to an average.
    """
    assigned = [v.name.removesuffix(ASSIGNED) for v in layout.variables if v.name.endswith(ASSIGNED)]
    if assigned and (job.average is not None or not isinstance(job.cadence, EveryStep)):
        what = "average" if job.average is not None else f"cadence: {type(job.cadence).__name__}"
        raise ValueError(
            f"{what}: {assigned[0]} is assigned by its layer in each step (SpectralNormalization), which works with "
            "EveryStep and without an average; change that, or take the layer out"
        )
    constrained = [v for v in layout.variables if v.constraint]
    if constrained and not isinstance(job.cadence, EveryStep | Accumulate):
        raise ValueError(
            f"cadence: {type(job.cadence).__name__} steps on the worker's own copy, to which the constraint "
            f"{constrained[0].constraint} of {constrained[0].name} is not applied; give EveryStep or Accumulate, or "
            "set constraint=None"
        )


def _check_model(model: Any, job: Job) -> None:
    """Raises `ValueError` unless the model is a `keras.Model`, compiled if the job has no loss."""
    import keras

    builds = getattr(job.model, "build", job.model)
    made = f"{type(job.model).__name__}.build returned" if hasattr(job.model, "build") else "the job's model returned"
    at = mistakes.defined(builds)
    if not isinstance(model, keras.Model):
        raise ValueError(f"{made} {_kind(model)}; return a keras.Model for the inputs of the data{at}")
    if job.loss is None and not model.compiled:
        raise ValueError(
            f"{made} a model that is not compiled, and the job has no loss; give the job a `loss`, or call "
            f"compile(loss=...) before returning the model{at}"
        )
    if job.loss is not None and model.compiled:
        raise ValueError(
            f"{made} a compiled model, whose optimizer, loss and metrics would not be used: the job's rule and loss "
            f"are. Leave compile() out, or the job's loss: loss=None; a saved model is loaded by "
            f"keras.saving.load_model(..., compile=False){at}"
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
            f"the model has {len(inputs)} inputs, and data of labelled images give one array; {MORE_THAN_IMAGES}"
        )
    check_image_shape(model, (image_size, image_size, 3))
    if len(outputs) != 1:
        raise ValueError(
            f"the model gives {len(outputs)} outputs, and data of labelled images give one array [B, labels]; "
            f"{MORE_THAN_IMAGES}"
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


def _check_loss(loss_of: Callable[[Any, Any], Any], shape: tuple[int, int]) -> None:
    """Raises `ValueError` unless the loss of labels and outputs of a shape is a scalar."""
    import tensorflow as tf

    spec = tf.TensorSpec(shape, tf.float32)
    traced = tf.function(lambda *given: loss_of(*given), autograph=False).get_concrete_function(spec, spec)
    loss = traced.structured_outputs
    accepted = f"return one number, such as keras.ops.mean of the losses of the examples{mistakes.defined(loss_of)}"
    if not isinstance(loss, tf.TensorSpec | tf.Tensor):
        raise ValueError(f"the loss returns {'None' if loss is None else f'a {type(loss).__name__}'}; {accepted}")
    if loss.shape.rank not in (0, None):
        raise ValueError(f"the loss returns an array of shape {tuple(loss.shape)}; {accepted}")


def check_data(job: Job) -> None:
    """Raises `ValueError` when the data cannot be read, or are fewer than one batch."""
    with mistakes.final():
        job.data.check()
        for name, scored in job.validation_sets.items():
            scored.check()
            check_same_labels(name, scored, job.data)
        if job.data.num_records < positions_in_batch(job.data, job.batch_size):
            raise ValueError(
                f"batch_size is {job.batch_size}, but there are only {job.data.num_records} training records; give "
                f"--set=batch_size={job.data.num_records} or less"
            )


def check_compiled(model: Any, job: Job, batch: Batch) -> None:
    """Computes the loss of a compiled model on a batch of zeros, with which Keras makes its losses and metrics.

    Raises:
        ValueError: The loss does not fit the outputs; or the optimizer says something else than the job, which would
            be ignored.
    """
    import keras
    import tensorflow as tf

    from downpour.launch.job.compiled import LossScaling, from_compiled
    from downpour.worker.step.loss_scale import GROWTH_STEPS, LossScale

    given = from_compiled(model)
    decays = () if given.weight_decay else ("decay", "undecayed")  # without decay, their values do not matter
    for name, value in given.job_fields().items():
        if getattr(job, name) != value and name not in decays:
            raise ValueError(
                f"{name}: the compiled model's optimizer says {value!r}, and the job {getattr(job, name)!r}; give both "
                "the same"
            )
    scaling = LossScaling(LossScale().value, GROWTH_STEPS)
    if given.loss_scale not in (None, scaling):
        raise ValueError(f"the optimizer has {given.loss_scale}; workers scale the loss by {scaling}, or not at all")
    is_sized = any(tensor.shape[0] is not None for tensor in tf.nest.flatten(getattr(model, "inputs", None) or []))
    num = job.batch_size if is_sized else _few(model, batch)
    few = nests.map_leaves(lambda _, leaf: leaf if leaf is None else leaf[:num], batch)
    state = [(variable, keras.ops.copy(variable.value)) for variable in model.non_trainable_variables]
    try:
        model.test_on_batch(*few)
    except (ValueError, TypeError, AttributeError, KeyError, NotImplementedError, tf.errors.OpError) as error:
        outputs = _outputs(model, few[0])
        shown = "unknown: the model's call fails, too" if outputs is None else nests.describe(outputs, "output")
        raise ValueError(
            f"the loss of the compiled model {model.name!r} fails on a batch of zeros: targets are "
            f"{nests.describe(few[1], 'y')}; outputs are {shown}{_unpaired(model, few[1])}"
            f"{_remedy(model, few[1], outputs)}: {mistakes.describe(error)}"
        ) from error
    model.reset_metrics()
    for variable, value in state:  # seeds advance in inference, too
        variable.assign(value)


def _few(model: Any, batch: Batch) -> int:
    """The least number of examples above 1 that is no other size of an array, so that none is broadcast along them."""
    leaves = [leaf for leaf in nests.flatten(batch).values() if leaf is not None]
    outputs = [tensor.shape for tensor in getattr(model, "outputs", None) or []]
    others = {size for shape in (*(leaf.shape for leaf in leaves), *outputs) for size in shape[1:]}
    most = len(leaves[0])
    return next((number for number in range(2, most) if number not in others), most)


def _outputs(model: Any, inputs: Any) -> Any:
    """The nest of a model's outputs, for messages; None if its call fails."""
    import keras

    try:
        return keras.tree.map_structure(lambda output: output.numpy(), model(inputs))
    except (ValueError, TypeError, AttributeError, NotImplementedError):
        return None


def _remedy(model: Any, targets: Any, outputs: Any) -> str:
    """How targets can be made to fit outputs of another shape, for messages; "" where that is not known."""
    wanted, given = nests.flatten(outputs), nests.flatten(targets)
    losses = str(keras_private.compile_arguments(model).get("loss")).lower().replace("_", "")
    if given.keys() != wanted.keys() or outputs is None:
        return ""
    for path, output in wanted.items():
        target = given[path]
        if target is not None and target.dtype.kind in "OSU":
            return "; targets are strings; give numbers of classes: np.unique(y, return_inverse=True)[1]"
        if "sparse" in losses:
            is_one_hot = target is not None and output.ndim > 1 and target.shape == output.shape
            return "; one-hot targets need categorical_crossentropy; or give numbers of classes" if is_one_hot else ""
        if target is not None and target.shape != output.shape:
            if "categoricalcrossentropy" in losses and target.shape in (output.shape[:-1], (*output.shape[:-1], 1)):
                return "; numbers of classes need sparse_categorical_crossentropy; or give one-hot targets"
            return "; give targets of the shape of the outputs"
    return ""


def _unpaired(model: Any, targets: Any) -> str:
    """Names that only targets or only outputs have, for messages; "" unless both have names."""
    outputs = getattr(model, "output", None)
    if not isinstance(outputs, Mapping) or not isinstance(targets, Mapping) or outputs.keys() == targets.keys():
        return ""
    return f"; only one of them has {', '.join(sorted(map(str, outputs.keys() ^ targets.keys())))}"


def _may_factor(job: Job) -> bool:
    """Whether pushes may carry factors: not if clip, treatment or cadence needs dense gradients in the worker."""
    by_value = job.clip is not None and job.clip.by_value is not None
    needs_elements = by_value or isinstance(job.treatment, Compensate) or not isinstance(job.cadence, EveryStep)
    return job.exchange.factors and not needs_elements
