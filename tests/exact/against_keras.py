"""One drawn model through three real shards, beside plain Keras: the same values after two steps, or a refusal by name.

The product's way is the public one: `launch.build.build`, `TrainingStep`, `Exchanger` over gRPC to three servers, a
checkpoint written by the shards, `weights.assign`. Plain Keras is `compile` and `train_on_batch`.

Tolerances, of each variable's largest difference:

- `ROUNDING` of the largest of its values, of the learning rate (what a gradient of 1 moves) and of its change. Both
  sides compute in float32; sums over factors, and norms of products, add up in another order. Mostly nothing differs.
- With a policy that rounds to 16 bits also `ROUNDING_16` of the largest change of any variable: a kernel's gradient is
  rounded to 8 or 11 bits by plain Keras, while its factors are multiplied in float32 on the shard; and where a value
  lies between two 16-bit numbers, a difference of one float32 bit decides which of them the next layer sees.
- Variables that are themselves of 16 bits, `ROUNDING_16` of their largest value, too: shards keep them in float32.
- Where a step overflows float16, plain Keras and Downpour both leave it out and halve the loss scale; plain Keras keeps
  what the step has assigned to statistics, infinite perhaps, and Downpour does not. The plain side is put back.
- `LOSS` of the loss. With such a policy `LOSS_16` of the largest loss of the run, for the same reasons: what the first
  step's rounding does to the second loss is a part of what the step did to it, however small a loss it leaves.
"""

from __future__ import annotations

import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from downpour.launch.job.build import build
from downpour.model import weights
from downpour.proto import codec
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.checkpoint.shard_file import ShardFile
from downpour.ps.layout import FACTORED, Layout
from downpour.ps.policy import rules
from downpour.ps.service.server import ShardServer
from downpour.worker.exchange.clients import ShardClient
from downpour.worker.exchange.exchange import Exchanger
from downpour.worker.step.step import TrainingStep
from downpour.worker.step.variables import initial_values
from tests.exact.models import LOSSES, NUM_SHARDS, NUM_STEPS, Drawn, Network
from tests.worker.cluster import initialize

ROUNDING = 1e-5
ROUNDING_16 = 3e-2
LOSS = 1e-5
LOSS_16 = 1e-2


class Refused(Exception):
    """The product refused the model, naming one of its layers or variables."""


@dataclass(frozen=True)
class Trained:
    """What training a model gave.

    Attributes:
        losses: Of each step.
        values: Of each variable, by path and place.
        factored: Names of the variables whose gradients travelled as factors.
        names: Of the model, its layers and variables.
    """

    losses: list[float]
    values: dict[str, np.ndarray]
    factored: tuple[str, ...] = ()
    names: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Outcome:
    """What came of one model.

    Attributes:
        number: Of the model.
        status: "equal", "refused" or "failed".
        reason: Of a refusal or a failure; else what differs most, and by how much.
        error: Largest difference, in units of its tolerance.
        factored: Whether a gradient travelled as factors.
        recipe: How to read the model.
    """

    number: int
    status: str
    reason: str = ""
    error: float = 0.0
    factored: bool = False
    recipe: Sequence[str] = field(default_factory=tuple)
    seconds: float = 0.0


def outcome_of(drawn: Drawn) -> Outcome:
    """Trains a model both ways and compares."""
    begin = time.monotonic()
    network = Network(drawn)
    status, reason, error, factored = "failed", "", 0.0, False
    try:
        before, plain = train_plainly(drawn, network)
        try:
            mine = train_through_shards(drawn, before, plain.names)
            factored = bool(mine.factored)
            error, where = largest(plain, mine, before, drawn)
            status = "equal" if error <= 1 else "failed"
            reason = f"differs by {error:.3g} tolerances: {where}"
        except Refused as refusal:
            reason = str(refusal)
            status = "refused" if drawn.may_be_refused else "failed"
            reason = reason if drawn.may_be_refused else f"refused, and must not be: {reason}"
    except Exception:
        reason = traceback.format_exc(limit=-6)
    finally:
        keras.config.set_dtype_policy("float32")
    recipe = [*network.sketches[-1].recipe, drawn.training] if network.sketches else [drawn.training]
    return Outcome(drawn.number, status, reason, error, factored, recipe, time.monotonic() - begin)


def fresh(drawn: Drawn) -> None:
    """Leaves nothing behind of a model before: names are counted from the start, random layers draw the same."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(drawn.number)


def keyed(model: Any) -> dict[str, Any]:
    """The model's variables by path, with their place where paths repeat."""
    found: dict[str, Any] = {}
    for variable in (*model.trainable_variables, *model.non_trainable_variables):
        name = variable.path
        found[name if name not in found else f"{name} #{len(found)}"] = variable
    return found


def train_plainly(drawn: Drawn, network: Any) -> tuple[dict[str, np.ndarray], Trained]:
    """Plain Keras: the values before, and what training gave."""
    fresh(drawn)
    model = network.build(drawn.image_size, drawn.num_labels)
    variables = keyed(model)
    before = {name: np.array(v) for name, v in variables.items()}
    optimizer = plain_optimizer(drawn)
    mend(model, optimizer)
    if any(layer.compute_dtype == "float16" for layer in model._flatten_layers()):
        optimizer = keras.optimizers.LossScaleOptimizer(
            optimizer
        )  # Keras's own choice looks at the model's policy only
    model.compile(optimizer=optimizer, loss=LOSSES[drawn.loss][1](), run_eagerly=False, jit_compile=False)
    losses = []
    for images, labels in drawn.batches():
        model.reset_metrics()
        statistics = [v for v in model.non_trainable_variables if keras.backend.is_float_dtype(v.dtype)]
        saved = [np.array(v) for v in statistics]
        losses.append(float(model.train_on_batch(images, labels)))
        if was_skipped(optimizer):
            for variable, value in zip(statistics, saved, strict=True):
                variable.assign(value)
    names = frozenset([*variables, *(layer.name for layer in model._flatten_layers())])
    return before, Trained(losses, {name: np.array(v) for name, v in variables.items()}, names=names)


def mend(model: Any, optimizer: Any) -> None:
    """Two places where Keras 3.15 fails, or treats equal gradients differently.

    It packs losses of several dtypes into one tensor, which TensorFlow refuses; they are cast. It clips an embedding's
    gradient row by row of the batch, before rows of the same token are added; they are added first.
    """
    model._aggregate_additional_loss = lambda loss: keras.ops.cast(keras.ops.sum(loss), "float32")
    clip = optimizer._clip_gradients
    optimizer._clip_gradients = lambda gradients: clip([tf.convert_to_tensor(g) for g in gradients])


def was_skipped(optimizer: Any) -> bool:
    """Whether the last step overflowed: then the number of good steps since begins again."""
    return isinstance(optimizer, keras.optimizers.LossScaleOptimizer) and int(optimizer.step_counter) == 0


def plain_optimizer(drawn: Drawn) -> Any:
    """Keras's optimizer of the job's rule, rate, decay and clipping."""
    job, known = drawn.job(), keras.optimizers
    more: dict[str, Any] = {"learning_rate": job.schedule.learning_rate, "weight_decay": job.weight_decay or None}
    if job.clip is not None:
        more |= {"clipvalue": job.clip.by_value, "clipnorm": job.clip.by_norm}
        more |= {"global_clipnorm": job.clip.by_global_norm}
    match job.rule:
        case rules.SGD():
            return known.SGD(**more)
        case rules.KerasMomentum(momentum, nesterov):
            return known.SGD(momentum=momentum, nesterov=nesterov, **more)
        case rules.KerasRMSProp(rho, momentum, epsilon, centered):
            return known.RMSprop(rho=rho, momentum=momentum, epsilon=epsilon, centered=centered, **more)
        case rules.KerasAdagrad(initial, epsilon):
            return known.Adagrad(initial_accumulator_value=initial, epsilon=epsilon, **more)
        case rules.AdamW(beta_1, beta_2, epsilon, amsgrad, decay):
            more["weight_decay"] = decay
            return known.AdamW(beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, amsgrad=amsgrad, **more)
        case rules.KerasAdam(beta_1, beta_2, epsilon, amsgrad):
            return known.Adam(beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, amsgrad=amsgrad, **more)
    raise AssertionError(job.rule)


def train_through_shards(drawn: Drawn, before: dict[str, np.ndarray], names: frozenset[str]) -> Trained:
    """Downpour: one worker, float32, without overlap, three shards.

    Raises:
        Refused: Before the first push, with the name of a layer or variable of the model.
    """
    fresh(drawn)
    job = drawn.job({name: value.shape for name, value in before.items() if "#" not in name and is_float(value)})
    try:
        model, layout = build(job)
        step = TrainingStep(model, job.loss, layout, codec.FLOAT32, job.clip)
    except ValueError as error:
        raise refusal(error, names) from error
    for name, variable in keyed(model).items():
        np.testing.assert_array_equal(variable, before[name], f"the builds differ in {name}")
    servers = [ShardServer(i) for i in range(NUM_SHARDS)]
    addresses = [f"127.0.0.1:{server.port}" for server in servers]
    try:
        initialize(addresses, layout, initial_values(model, layout), job.rule, job.schedule)
        losses = _train(drawn, step, layout, addresses, names)
        with tempfile.TemporaryDirectory() as folder:
            _fill(model, layout, addresses, folder)
    finally:
        for server in servers:
            server.stop(grace_s=0)
    carried = {v.name for v in layout.variables}
    values = {name: np.array(v) for name, v in keyed(model).items() if v.path in carried}
    return Trained(losses, values, tuple(v.name for v in layout.variables if v.kind == FACTORED))


def _train(
    drawn: Drawn, step: TrainingStep, layout: Layout, addresses: list[str], names: frozenset[str]
) -> list[float]:
    exchange = Exchanger(addresses, layout, wire=codec.FLOAT32, worker=0, incarnation=1, give_up_after_s=60)
    losses: list[float] = []
    try:
        answer = exchange.start().result()
        for images, labels in drawn.batches():
            try:
                result = step(answer.parameters, images, labels)
            except ValueError as error:
                if losses:
                    raise
                raise refusal(error, names) from error
            losses.append(result.loss)
            if result.is_finite:
                answer = exchange.start(result.gradients).result()
            else:
                assert result.loss_scale is not None, f"loss {losses}, gradient norm {result.gradient_norm}"
                answer = exchange.start().result()
    finally:
        exchange.close()
    return losses


def _fill(model: Any, layout: Layout, addresses: list[str], folder: str) -> None:
    """Writes a checkpoint and gives the model its values, as the evaluator and `downpour export` do."""
    clients = [ShardClient(i, address, layout, 60) for i, address in enumerate(addresses)]
    files = tuple(ShardFile.of(client.write_checkpoint(folder)) for client in clients)
    for client in clients:
        client.close()
    weights.assign(model, weights.named(checkpoint.Checkpoint(folder, NUM_STEPS, layout, files)))


def refusal(error: ValueError, names: frozenset[str]) -> Exception:
    """The error as a refusal, if it names the model or one of its layers or variables; else as it is."""
    return Refused(str(error)) if any(name in str(error) for name in names) else error


def largest(plain: Trained, mine: Trained, before: dict[str, np.ndarray], drawn: Drawn) -> tuple[float, str]:
    """The largest difference in units of its tolerance, and of what."""
    rounds = drawn.policy != "float32" or drawn.special == "narrow_variables"
    found = [_of_losses(plain.losses, mine.losses, rounds=rounds)]
    changes = {name: float(np.abs(_wide(plain.values[name]) - _wide(before[name])).max(initial=0)) for name in before}
    largest_change = max((changes[name] for name in mine.values), default=0.0)
    for name in plain.values.keys() - mine.values.keys():
        # What a shard does not hold is a worker's own: seeds, counters, a recurrent layer's states.
        assert not is_float(before[name]) or not changes[name] or drawn.assigned == "local", f"{name} is on no shard"
    for name, value in mine.values.items():
        scale = max(float(np.abs(_wide(plain.values[name])).max(initial=0)), drawn.job().schedule.learning_rate)
        tolerance = ROUNDING * max(scale, changes[name]) + (ROUNDING_16 * largest_change if rounds else 0.0)
        if before[name].dtype.itemsize == 2:
            tolerance += ROUNDING_16 * scale
        difference = float(np.abs(_wide(value) - _wide(plain.values[name])).max(initial=0))
        worst = difference / tolerance if np.isfinite(difference) else np.inf
        found.append((worst, f"{name} {value.shape}: {difference:.3g}, its change {changes[name]:.3g}"))
    return max(found)


def _of_losses(plain: list[float], mine: list[float], *, rounds: bool) -> tuple[float, str]:
    p, m = np.array(plain), np.array(mine)
    both = (m == p) | (np.isnan(m) & np.isnan(p))  # equally infinite, or not numbers, where a step overflows
    scale = np.maximum(np.abs(p), 1e-3)
    tolerance = LOSS_16 * scale.max(where=np.isfinite(scale), initial=0) if rounds else LOSS * scale
    error = float(np.where(both, 0.0, np.abs(m - p) / tolerance).max())
    return (error if np.isfinite(error) else np.inf), f"losses {mine} instead of {plain}"


def is_float(value: np.ndarray) -> bool:
    return bool(keras.backend.is_float_dtype(keras.backend.standardize_dtype(value.dtype)))


def _wide(value: np.ndarray) -> np.ndarray:
    return np.asarray(value).astype(np.float64)
