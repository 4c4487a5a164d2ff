"""Reads a compiled model: the parts of a job that its optimizer decides. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import keras

from downpour.launch.job.compiled import optimizer as optimizers
from downpour.launch.job.compiled.learning_rate import schedule_of
from downpour.launch.job.compiled.optimizer import LossScaling
from downpour.ps.policy.averages import KerasPolyak
from downpour.ps.policy.rules import Rule
from downpour.ps.policy.schedules import Constant, Schedule
from downpour.worker.exchange.cadence import Accumulate, EveryStep
from downpour.worker.step.clip import Clip

# Methods of `keras.Model` that train it; a model's own would not be called.
_TRAINING = ("train_step", "make_train_function", "train_on_batch", "fit")


@dataclass(frozen=True)
class Compiled:
    """What the optimizer of a compiled model says, in the words of a `Job`.

    Attributes:
        rule: See `Job`.
        schedule: See `Job`; a version of a shard is an iteration of the optimizer.
        weight_decay: See `Job`.
        decay: See `Job`; Keras' is always decoupled.
        undecayed: Patterns that match exactly the variables of `exclude_from_weight_decay`.
        clip: See `Job`.
        average: That of `use_ema`, of all variables; see `Job`. Keras averages only trainable variables, trains and
            validates with the parameters themselves, and assigns the average to the trainable ones when `fit` ends;
            the others, such as moving statistics, keep their own values.
        cadence: See `Job`. With `Accumulate` the gradients equal Keras'; moving statistics are added up over the
            accumulated batches, as over workers (`worker.step`).
        loss_scale: Scale of the loss; None for none. It is not a field of `Job`.
    """

    rule: Rule
    schedule: Schedule
    weight_decay: float = 0.0
    decay: str = "decoupled"
    undecayed: tuple[str, ...] = ()
    clip: Clip | None = None
    average: KerasPolyak | None = None
    cadence: EveryStep | Accumulate = field(default_factory=EveryStep)
    loss_scale: LossScaling | None = None

    def job_fields(self) -> dict[str, Any]:
        """Keyword arguments for `Job`: all but `loss_scale`."""
        return {name: value for name, value in vars(self).items() if name != "loss_scale"}


def from_compiled(model: keras.Model) -> Compiled:
    """Reads optimizer and training arguments of a compiled model, which is not changed.

    Args:
        model: A built and compiled model whose optimizer has made no step.

    Raises:
        ValueError: The model is not built or compiled, or says something that a job cannot carry out exactly: an
            optimizer, learning rate or argument that shards do not know, or a training method of its own. The message
            names it, and what is accepted.
    """
    _check(model)
    optimizer, loss_scale = optimizers.unwrapped(model.optimizer)
    optimizers.check_unused(optimizer)
    schedule = schedule_of(optimizer)
    config = optimizers.config_of(optimizer)
    num_accumulated = config["gradient_accumulation_steps"]
    compiled = Compiled(
        rule=optimizers.rule_of(optimizer, config),
        schedule=schedule,
        weight_decay=optimizers.weight_decay_of(optimizer, config),
        undecayed=optimizers.undecayed_of(optimizer, config, model.trainable_variables),
        clip=optimizers.clip_of(config),
        average=optimizers.average_of(config, model.trainable_variables),
        cadence=Accumulate(int(num_accumulated)) if num_accumulated else EveryStep(),
        loss_scale=loss_scale or optimizers.fixed_scale_of(config),
    )
    _check_accumulated(compiled)
    return compiled


def _check(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise ValueError(f"the model is a {type(model).__name__}; give a compiled keras.Model")
    name = f"{type(model).__name__} {model.name!r}"
    if not model.built:
        raise ValueError(f"the model {name} is not built; give it a keras.Input, or call it on a batch first")
    if not model.compiled or model.optimizer is None:
        lack = "has no optimizer" if model.compiled else "is not compiled"
        raise ValueError(f"the model {name} {lack}; call model.compile(optimizer=..., loss=...) first")
    if model.run_eagerly:
        raise ValueError(f"the model {name} is compiled with run_eagerly=True; leave it out, a step is always compiled")
    for method in _TRAINING:
        if method in vars(model) or getattr(type(model), method) is not getattr(keras.Model, method):
            raise ValueError(
                f"the model {name} has its own {method}, which workers would not call; put what it does into `call`, "
                "`add_loss` or `compute_loss`, or train this model with plain Keras"
            )
    for variable in model.trainable_variables:
        if getattr(variable, "overwrite_with_gradient", False):  # scales of float8 layers
            raise ValueError(
                f"the model {name} has {variable.path}, which Keras' optimizers overwrite with its gradient, as float8 "
                "training does; shards apply a rule to every variable: use another dtype policy"
            )


def _check_accumulated(compiled: Compiled) -> None:
    """Raises `ValueError` for arguments that mean another thing in Keras once gradients are accumulated."""
    if not isinstance(compiled.cadence, Accumulate):
        return
    conflicts = [
        (compiled.clip is not None, "clipping: Keras clips the mean of the gradients, a worker each of them"),
        (compiled.average is not None, "use_ema: Keras moves the average after each batch, shards after each update"),
        (
            not isinstance(compiled.schedule, Constant),
            "a learning-rate schedule: Keras reads it at the number of batches, shards at that of updates",
        ),
    ]
    for found, reason in conflicts:
        if found:
            raise ValueError(
                f"the optimizer has gradient_accumulation_steps={compiled.cadence.num_batches} with {reason}; leave "
                "one of them out"
            )
