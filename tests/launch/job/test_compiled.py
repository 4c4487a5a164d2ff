"""What is read from a compiled model: equal to Keras' own optimizer over 30 steps, or refused by name.

Both sides get the same gradients: Keras' `optimizer.apply`, and a shard through its messages. Tolerance: 5e-6 of the
largest parameter after 30 steps; Keras evaluates schedules and powers in float32, a shard in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from downpour.launch.job.compiled import Compiled, LossScaling, from_compiled
from downpour.ps.layout import lay_out
from downpour.ps.policy.averages import KerasPolyak
from downpour.ps.policy.rules import SGD, KerasAdam, KerasMomentum
from downpour.ps.policy.schedules import Constant, KerasCosine, Piecewise, StaircaseExponential
from downpour.worker.exchange.cadence import Accumulate, EveryStep
from downpour.worker.step.clip import Clip
from downpour.worker.step.variables import variables_of
from tests.ps.pushing import new_shard, push

NUM_STEPS = 30
TOLERANCE = 5e-6

optimizers, schedules = keras.optimizers, keras.optimizers.schedules


def network(**layer: Any) -> keras.Model:
    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense(3, name="hidden", bias_initializer="ones", **layer)
    return keras.Sequential([keras.Input((4,)), dense, keras.layers.Dense(2, name="top", bias_initializer="ones")])


def compiled(optimizer: Any, model: keras.Model | None = None, **arguments: Any) -> keras.Model:
    model = model or network()
    model.compile(optimizer, "mse", **arguments)
    return model


def gradients(model: keras.Model, step: int) -> list[np.ndarray]:
    """Of any magnitude from 1e-3 to 10, another one each step."""
    rng = np.random.default_rng([7, step])
    scale = 10 ** rng.uniform(-3, 1)
    return [(rng.normal(size=v.shape) * scale).astype(np.float32) for v in model.trainable_variables]


def clipped(grads: list[np.ndarray], clip: Clip | None) -> list[np.ndarray]:
    """As `Clip` says: TensorFlow's functions of the same names."""
    match clip:
        case None:
            return grads
        case Clip(by_value=limit) if limit:
            return [tf.clip_by_value(g, -limit, limit).numpy() for g in grads]
        case Clip(by_norm=limit) if limit:
            return [tf.clip_by_norm(g, limit).numpy() for g in grads]
    return [g.numpy() for g in tf.clip_by_global_norm(grads, clip.by_global_norm)[0]]


def on_a_shard(model: keras.Model, found: Compiled) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
    """The parameters and their average after 30 batches, as a worker and a shard compute them."""
    layout = lay_out(variables_of(model, found.weight_decay, found.undecayed, decay=found.decay), 1)
    start = layout.scatter([v.numpy() for v in model.trainable_variables])[0]
    shard = new_shard(layout, start, found.rule, found.schedule, found.average)
    per_push, gathered = found.cadence.push_every, []
    for step in range(NUM_STEPS):
        gathered.append(clipped(gradients(model, step), found.clip))
        if len(gathered) == per_push:
            mean = [np.sum(parts, axis=0) / np.float32(per_push) for parts in zip(*gathered, strict=True)]
            push(shard, (step + 1) // per_push, layout.scatter(mean)[0])
            gathered = []
    arena = shard.arena
    return layout.gather([arena.parameters]), None if arena.average is None else layout.gather([arena.average])


def in_keras(model: keras.Model) -> list[np.ndarray]:
    """The parameters after 30 steps of the model's optimizer, which is then used."""
    for step in range(NUM_STEPS):
        model.optimizer.apply([tf.constant(g) for g in gradients(model, step)], model.trainable_variables)
    return [v.numpy() for v in model.trainable_variables]


def check_close(mine: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    largest = max(float(np.abs(value).max()) for value in theirs)
    assert all(np.isfinite(value).all() for value in theirs)
    difference = max(float(np.abs(a - b).max()) for a, b in zip(mine, theirs, strict=True))
    assert difference <= TOLERANCE * largest


OPTIMIZERS: list[Callable[[], Any]] = [
    lambda: optimizers.SGD(0.05),
    lambda: optimizers.SGD(0.05, nesterov=True),
    lambda: optimizers.SGD(0.05, momentum=0.8),
    lambda: optimizers.SGD(0.05, momentum=0.8, nesterov=True, weight_decay=0.1),
    lambda: optimizers.RMSprop(0.01),
    lambda: optimizers.RMSprop(0.01, rho=0.8, momentum=0.7, epsilon=1e-3),
    lambda: optimizers.RMSprop(0.01, rho=0.8, momentum=0.7, epsilon=1e-3, centered=True),
    lambda: optimizers.RMSprop(0.01, epsilon=1e-3, centered=True, weight_decay=0.05),
    lambda: optimizers.Adagrad(0.1),
    lambda: optimizers.Adagrad(0.1, initial_accumulator_value=0.5, epsilon=1e-2, weight_decay=0.02),
    lambda: optimizers.Adam(),
    lambda: optimizers.Adam(0.01, beta_1=0.8, beta_2=0.95, epsilon=1e-4),
    lambda: optimizers.Adam(0.01, amsgrad=True, weight_decay=0.1),
    lambda: optimizers.AdamW(0.01),
    lambda: optimizers.AdamW(0.01, weight_decay=0.2, beta_1=0.7, beta_2=0.9, epsilon=1e-5, amsgrad=True),
    lambda: optimizers.SGD(0.05, clipnorm=0.5),
    lambda: optimizers.SGD(0.05, clipvalue=0.1, weight_decay=0.1),
    lambda: optimizers.SGD(0.05, global_clipnorm=0.7),
    lambda: optimizers.SGD(0.05, clipnorm=0.0),
    lambda: optimizers.Adam(0.01, global_clipnorm=0.01, weight_decay=0.01),
    lambda: optimizers.SGD(0.05, gradient_accumulation_steps=5),
    lambda: optimizers.AdamW(0.05, gradient_accumulation_steps=3, weight_decay=0.1),
]

SCHEDULES: list[Callable[[], Any]] = [
    lambda: schedules.PiecewiseConstantDecay([0, 9, 20], [0.1, 0.02, 0.2, 0.001]),
    lambda: schedules.PiecewiseConstantDecay([4.0, 9.7], [0.1, 0.02, 0.2]),
    lambda: schedules.ExponentialDecay(0.1, 7, 0.5),
    lambda: schedules.ExponentialDecay(0.1, 2.5, 0.9),
    lambda: schedules.ExponentialDecay(0.1, 7, 0.5, staircase=True),
    lambda: schedules.ExponentialDecay(0.01, 10, 1.5),
    lambda: schedules.InverseTimeDecay(0.1, 7, 0.5),
    lambda: schedules.InverseTimeDecay(0.1, 7, 0.5, staircase=True),
    lambda: schedules.PolynomialDecay(0.1, 20),
    lambda: schedules.PolynomialDecay(0.1, 20, end_learning_rate=0.0, power=0.5),
    lambda: schedules.PolynomialDecay(0.1, 7, end_learning_rate=0.01, power=2.0, cycle=True),
    lambda: schedules.PolynomialDecay(0.01, 20.5, end_learning_rate=0.1),
    lambda: schedules.CosineDecay(0.1, 20),
    lambda: schedules.CosineDecay(0.1, 20.5, alpha=0.3, warmup_steps=9),
    lambda: schedules.CosineDecay(0.0, 15, alpha=0.1, warmup_target=0.1, warmup_steps=8),
    lambda: schedules.CosineDecay(0.2, 15, warmup_target=0.1, warmup_steps=8),
    lambda: schedules.CosineDecay(0.2, 15, warmup_target=0.1),
    lambda: schedules.CosineDecayRestarts(0.1, 4),
    lambda: schedules.CosineDecayRestarts(0.1, 6, t_mul=1.0, m_mul=0.7, alpha=0.1),
    lambda: schedules.CosineDecayRestarts(0.1, 5, t_mul=1.5, m_mul=0.9),
]


def kind(make: Callable[[], Any]) -> str:
    return type(make()).__name__


@pytest.mark.parametrize("make", OPTIMIZERS, ids=kind)
def test_thirty_steps_equal_the_optimizers(make: Callable[[], Any]) -> None:
    model = compiled(make())
    mine, _ = on_a_shard(model, from_compiled(model))
    check_close(mine, in_keras(model))


@pytest.mark.parametrize("make", SCHEDULES, ids=kind)
def test_thirty_steps_equal_the_schedules(make: Callable[[], Any]) -> None:
    schedule = make()
    rates = [float(schedule(step)) for step in range(200)]
    for optimizer in (optimizers.SGD(make()), optimizers.SGD(make(), momentum=0.9), optimizers.AdamW(make())):
        model = compiled(optimizer)
        found = from_compiled(model)
        np.testing.assert_allclose([found.schedule.rate(v) for v in range(200)], rates, rtol=2e-5, atol=1e-8)
        check_close(on_a_shard(model, found)[0], in_keras(model))


def test_the_comparison_can_fail() -> None:
    model = compiled(optimizers.Adam(0.01))
    mine, _ = on_a_shard(model, Compiled(KerasAdam(epsilon=1e-3), Constant(0.01)))
    with pytest.raises(AssertionError):
        check_close(mine, in_keras(model))


def test_the_average_of_use_ema_equals_keras() -> None:
    """And training is the same as without."""
    for momentum in (0.0, 0.9):
        model = compiled(optimizers.Adam(0.01, use_ema=True, ema_momentum=momentum))
        found = from_compiled(model)
        assert found.average == KerasPolyak(momentum)
        parameters, average = on_a_shard(model, found)
        check_close(parameters, in_keras(model))
        model.optimizer.finalize_variable_values(model.trainable_variables)
        assert average is not None
        check_close(average, [v.numpy() for v in model.trainable_variables])


def test_variables_excluded_from_decay_by_name_or_by_themselves() -> None:
    for exclude in ({"var_names": ["bias"]}, {"var_names": ["nothing", "kern"]}, None):
        model = network()
        optimizer = optimizers.SGD(0.1, weight_decay=0.3)
        if exclude is None:
            optimizer.exclude_from_weight_decay(var_list=[model.layers[0].kernel])
        else:
            optimizer.exclude_from_weight_decay(**exclude)
        found = from_compiled(compiled(optimizer, model))
        assert found.undecayed
        mine, _ = on_a_shard(model, found)
        check_close(mine, in_keras(model))


def test_an_exclusion_matches_names_as_they_are() -> None:
    dense = keras.layers.Dense(2, name="what[1]*")
    model = keras.Sequential([keras.Input((4,)), dense, keras.layers.Dense(2, name="what1")])
    optimizer = optimizers.AdamW()
    optimizer.exclude_from_weight_decay(var_list=[dense.kernel])
    found = from_compiled(compiled(optimizer, model))
    variables = variables_of(model, found.weight_decay, found.undecayed, decay=found.decay)
    assert [v.name.split("/")[-2:] for v in variables if not v.decoupled_decay] == [["what[1]*", "kernel"]]


def test_every_argument_of_every_optimizer_changes_what_is_read() -> None:
    """But its name; so an argument that a function forgets to read fails here."""
    changed: dict[str, Any] = {
        "learning_rate": 0.5, "weight_decay": 0.5, "clipnorm": 0.5, "global_clipnorm": 0.5, "clipvalue": 0.5,
        "use_ema": True, "loss_scale_factor": 8.0, "gradient_accumulation_steps": 3, "momentum": 0.5, "rho": 0.5,
        "epsilon": 0.5, "centered": True, "initial_accumulator_value": 0.5, "beta_1": 0.5, "beta_2": 0.5,
        "amsgrad": True, "nesterov": True, "ema_momentum": 0.5,
    }  # fmt: skip
    for cls in (optimizers.SGD, optimizers.RMSprop, optimizers.Adagrad, optimizers.Adam, optimizers.AdamW):
        # Without momentum `nesterov` changes nothing, nor does `ema_momentum` without `use_ema`.
        base: dict[str, Any] = {"use_ema": True} | ({"momentum": 0.9} if cls is optimizers.SGD else {})
        for name in cls().get_config().keys() - {"name", "ema_overwrite_frequency"}:
            mine = {} if name in ("gradient_accumulation_steps", "use_ema") else base
            before = from_compiled(compiled(cls(**mine)))
            after = from_compiled(compiled(cls(**{**mine, name: changed[name]})))
            assert before != after, (cls, name)


def test_job_fields_are_those_of_a_job() -> None:
    from downpour.launch.job import Job

    found = from_compiled(compiled(optimizers.AdamW(0.1, clipnorm=1.0, loss_scale_factor=4.0)))
    assert found.job_fields().keys() < Job.__dataclass_fields__.keys()
    assert found == Compiled(
        KerasAdam(), Constant(0.1), 0.004, "decoupled", (), Clip(by_norm=1.0), None, EveryStep(), LossScaling(4.0, 0)
    )


def test_strings_and_rates_that_were_set() -> None:
    assert from_compiled(compiled("sgd")) == Compiled(SGD(), Constant(0.01))
    optimizer = optimizers.SGD(0.01, momentum=0.5)
    optimizer.learning_rate = 0.3
    assert from_compiled(compiled(optimizer)) == Compiled(KerasMomentum(0.5), Constant(0.3))
    optimizer.learning_rate = schedules.CosineDecay(0.1, 10)
    assert from_compiled(compiled(optimizer)).schedule == KerasCosine(0.1, 10.0)


def test_how_schedules_are_written() -> None:
    def read(schedule: Any) -> Any:
        return from_compiled(compiled(optimizers.SGD(schedule))).schedule

    assert read(schedules.PiecewiseConstantDecay([10, 20], [0.1, 0.2, 0.3])) == Piecewise((11, 21), (0.1, 0.2, 0.3))
    staircase = schedules.ExponentialDecay(0.1, 100.0, 0.9, staircase=True)
    assert repr(read(staircase)) == repr(StaircaseExponential(0.1, 0.9, 100))


def test_a_schedule_of_ones_own_is_taken_over_as_a_table() -> None:
    """As the message of its refusal says."""

    def mine(step: int) -> float:
        return 0.1 * min((step + 1) / 5, (5 / (step + 1)) ** 0.5)

    n = 40
    table = schedules.PiecewiseConstantDecay(list(range(n - 1)), [float(mine(step)) for step in range(n)])
    schedule = from_compiled(compiled(optimizers.SGD(table))).schedule
    assert [schedule.rate(version) for version in range(n)] == [mine(step) for step in range(n)]
    assert schedule.rate(10 * n) == mine(n - 1)


def test_accumulated_gradients() -> None:
    assert from_compiled(compiled(optimizers.SGD(gradient_accumulation_steps=4))).cadence == Accumulate(4)


def test_loss_scales() -> None:
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        assert from_compiled(compiled("adam")).loss_scale == LossScaling(2.0**15, 2000)
        assert from_compiled(compiled("adam", auto_scale_loss=False)).loss_scale is None
        fixed = compiled(optimizers.SGD(loss_scale_factor=128.0), auto_scale_loss=False)
        assert from_compiled(fixed).loss_scale == LossScaling(128.0, 0)
    finally:
        keras.config.set_dtype_policy(policy)
    wrapped = optimizers.LossScaleOptimizer(optimizers.Adam(0.01), initial_scale=8.0, dynamic_growth_steps=3)
    assert from_compiled(compiled(wrapped)).loss_scale == LossScaling(8.0, 3)


def test_the_model_is_not_changed() -> None:
    model = compiled(optimizers.AdamW(0.1, use_ema=True))
    before = [v.numpy() for v in (*model.variables, *model.optimizer.variables)]
    from_compiled(model)
    after = [v.numpy() for v in (*model.variables, *model.optimizer.variables)]
    assert not model.optimizer.built
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_optimizer_that_is_built_but_unused_is_read() -> None:
    for optimizer in (optimizers.Adam(0.1, use_ema=True), optimizers.Adagrad(gradient_accumulation_steps=2)):
        model = compiled(optimizer)
        unbuilt = from_compiled(model)
        model.optimizer.build(model.trainable_variables)
        assert from_compiled(model) == unbuilt


def test_an_optimizer_that_has_made_a_step_is_refused() -> None:
    model = compiled(optimizers.Adam(0.1))
    in_keras(model)
    with pytest.raises(ValueError, match=r"the optimizer adam\w* has made 30 steps; .* compile the model again"):
        from_compiled(model)
    model.optimizer.iterations.assign(0)
    with pytest.raises(ValueError, match=r"has a slot .*hidden_kernel_momentum that is not as it starts"):
        from_compiled(model)
    model = compiled(optimizers.LossScaleOptimizer(optimizers.SGD(0.1)))
    model.optimizer.build(model.trainable_variables)
    model.optimizer.apply([tf.fill(v.shape, math.inf) for v in model.trainable_variables])
    with pytest.raises(ValueError, match="has changed its loss scale to 16384"):
        from_compiled(model)


class OwnSchedule(schedules.LearningRateSchedule):
    def __call__(self, step: Any) -> Any:
        return 0.1


class OwnAdam(optimizers.Adam):
    pass


SUPPORTED = "SGD, RMSprop, Adagrad, Adam, AdamW themselves"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *(
            (getattr(optimizers, name), f"the optimizer is a {name}.*{SUPPORTED}")
            for name in ("Adadelta", "Adamax", "Ftrl", "Lion", "Nadam", "Adafactor", "Muon", "Lamb")
        ),
        (OwnAdam, f"the optimizer is a OwnAdam, a subclass of Adam; .*{SUPPORTED}"),
        (lambda: optimizers.LossScaleOptimizer(OwnAdam()), "the optimizer is a OwnAdam"),
        (lambda: optimizers.SGD(OwnSchedule()), "is a OwnSchedule, a schedule of your own; .*PiecewiseConstantDecay, "),
        (lambda: optimizers.SGD(lambda: 0.1), "learning rate of SGD is a function <lambda>; shards evaluate schedules"),
        (lambda: optimizers.SGD(momentum=1.0), "SGD cannot be taken over: rule KerasMomentum: momentum is 1.0; give"),
        (lambda: optimizers.Adam(epsilon=0.0), "Adam cannot be taken over: .*epsilon is 0.0"),
        (lambda: optimizers.Adagrad(initial_accumulator_value=0.0), "initial_accumulator is 0.0"),
        (lambda: optimizers.SGD(0.0), "learning_rate of the optimizer cannot be taken over: .* is 0.0; give a number"),
        (lambda: optimizers.SGD(weight_decay=-1.0), "SGD: weight_decay is -1.0; give 0 or more"),
        (
            lambda: optimizers.SGD(schedules.PiecewiseConstantDecay([5], [0.1, 0.0])),
            "PiecewiseConstantDecay of the optimizer cannot be taken over: .*give numbers above 0",
        ),
        (
            lambda: optimizers.SGD(schedules.PiecewiseConstantDecay([5], [1, 2])),
            r"values are \[1, 2\]; give floats, with whole numbers Keras computes in int32",
        ),
        (
            lambda: optimizers.SGD(schedules.CosineDecay(0, 5, warmup_target=0.1, warmup_steps=2)),
            "initial_learning_rate is 0, with which Keras computes in int32; give 0.0",
        ),
        (
            lambda: optimizers.SGD(schedules.ExponentialDecay(0.1, 2.5, 0.5, staircase=True)),
            "decay_steps is 2.5 with staircase=True; give a whole number",
        ),
        (lambda: optimizers.SGD(schedules.CosineDecay(0.1, 5, alpha=1.5)), "final is 1.5; give a fraction"),
        (lambda: optimizers.SGD(use_ema=True, ema_overwrite_frequency=3), "ema_overwrite_frequency=3; shards do not"),
        (lambda: optimizers.SGD(use_ema=True, ema_momentum=1.0), "ema_momentum .* KerasPolyak: decay is 1.0"),
        (lambda: optimizers.SGD(loss_scale_factor=0.0), "loss_scale_factor of the optimizer is 0.0; give"),
        (
            lambda: optimizers.SGD(gradient_accumulation_steps=2, clipnorm=1.0),
            "gradient_accumulation_steps=2 with clipping: Keras clips the mean",
        ),
        (lambda: optimizers.SGD(gradient_accumulation_steps=2, use_ema=True), "=2 with use_ema"),
        (
            lambda: optimizers.SGD(schedules.CosineDecay(0.1, 5), gradient_accumulation_steps=2),
            "=2 with a learning-rate schedule",
        ),
    ],
)
def test_optimizers_that_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_compiled(compiled(make()))


def test_two_loss_scales_are_refused() -> None:
    wrapped = optimizers.LossScaleOptimizer(optimizers.SGD())
    wrapped.inner_optimizer.loss_scale_factor = 2.0
    with pytest.raises(ValueError, match=r"loss_scale_factor=2\.0 inside a LossScaleOptimizer"):
        from_compiled(compiled(wrapped))


def test_an_average_of_constrained_parameters_is_refused() -> None:
    model = compiled(optimizers.SGD(use_ema=True), network(kernel_constraint="non_neg"))
    with pytest.raises(ValueError, match=r"use_ema=True and .*hidden/kernel has a constraint"):
        from_compiled(model)


def test_a_variable_that_takes_its_gradient_as_value_is_refused() -> None:
    model = compiled("sgd")
    model.layers[1].bias.overwrite_with_gradient = True
    with pytest.raises(ValueError, match=r"has .*top/bias, which Keras' optimizers overwrite with its gradient"):
        from_compiled(model)


def test_an_argument_of_a_newer_keras_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = optimizers.SGD.get_config
    monkeypatch.setattr(optimizers.SGD, "get_config", lambda self: {**config(self), "warp": 9})
    with pytest.raises(ValueError, match=r"SGD of Keras .* has other arguments than those known: warp"):
        from_compiled(compiled("sgd"))


class OwnStep(keras.Sequential):
    def train_step(self, data: Any) -> Any:
        return super().train_step(data)


class OwnLoss(keras.Sequential):
    def compute_loss(self, *arguments: Any, **more: Any) -> Any:
        return super().compute_loss(*arguments, **more)

    def test_step(self, data: Any) -> Any:
        return super().test_step(data)


def layers() -> list[Any]:
    return [keras.Input((4,)), keras.layers.Dense(2)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: keras.layers.Dense(2), "the model is a Dense; give a compiled keras.Model"),
        (lambda: compiled("sgd", keras.Sequential([keras.layers.Dense(2)])), "is not built; give it a keras.Input"),
        (network, "is not compiled; call model.compile"),
        (lambda: compiled(None), "has no optimizer; call model.compile"),
        (lambda: compiled("sgd", run_eagerly=True), "run_eagerly=True; leave it out"),
        (lambda: compiled("sgd", OwnStep(layers())), "the model OwnStep .* has its own train_step, which workers"),
    ],
)
def test_models_that_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_compiled(make())


def test_arguments_without_effect_and_methods_that_workers_call() -> None:
    expected = Compiled(SGD(), Constant(0.01))
    assert from_compiled(compiled("sgd", steps_per_execution=8, jit_compile=True)) == expected
    assert from_compiled(compiled("sgd", OwnLoss(layers()), loss_weights=[2.0], metrics=["mae"])) == expected
