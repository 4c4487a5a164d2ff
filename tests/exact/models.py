"""Random Keras models and how they are trained, each a function of two integers.

    drawn = Drawn(seed=0, number=17)
    model = Network(drawn).build(image_size, num_labels)

Every model holds one kind of `special.py`, in turn, one of `kinds.py`, in turn, and others at random.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import keras
import numpy as np
from keras import layers

from downpour.launch.job import Cluster, Exchange, Job
from downpour.model.data import GeneratedImages
from downpour.model.vision.losses import per_label_logistic, softmax_cross_entropy
from downpour.ps.layout import Slicing
from downpour.ps.policy.rules import SGD, AdamW, KerasAdagrad, KerasAdam, KerasMomentum, KerasRMSProp, Rule
from downpour.ps.policy.schedules import Constant
from downpour.worker.step.clip import Clip
from tests.exact.kinds import KINDS
from tests.exact.sketch import Sketch
from tests.exact.special import REFUSABLE, SPECIAL
from tests.exact.written import OwnTrainStep, PenalisedOutput, WithoutTraining, WithTraining

NUM_SHARDS = 3
NUM_STEPS = 2
FORMS: dict[str, Any] = {
    "functional": None,
    "functional too": None,
    "nested": None,
    "without training": WithoutTraining,
    "with training": WithTraining,
    "penalised": PenalisedOutput,
}
POLICIES = (*["float32"] * 7, "mixed_bfloat16", "mixed_float16", "layers")

# Rounding in a gradient that is exactly zero (a bias before batch norm) would be a whole step of Adam or RMSProp
# with their usual epsilon; with this one it stays rounding.
EPSILON = 1e-2


def mean_squared(labels: Any, outputs: Any) -> Any:
    import tensorflow as tf

    return tf.reduce_mean(tf.square(outputs - labels))


# The job's loss, and Keras's own of the same meaning.
LOSSES: dict[str, tuple[Callable[[Any, Any], Any], Callable[[], Any]]] = {
    "mean squared": (mean_squared, keras.losses.MeanSquaredError),
    "per-label logistic": (per_label_logistic, lambda: per_label_logistic),
    "categorical": (softmax_cross_entropy, lambda: keras.losses.CategoricalCrossentropy(from_logits=True)),
}


@dataclass(frozen=True)
class Drawn:
    """One model, its training and its data.

    Attributes:
        seed: Of the whole series.
        number: Of the model in it.
    """

    seed: int
    number: int

    def rng(self, what: str) -> random.Random:
        """Random numbers for one purpose: what is drawn for another does not move them."""
        return random.Random(f"{what} {self.seed} {self.number}")

    @cached_property
    def batch_size(self) -> int:
        return self.rng("batch").choice((2, 3, 4))

    @cached_property
    def image_size(self) -> int:
        return self.rng("side").choice((4, 4, 6))

    @cached_property
    def num_labels(self) -> int:
        return self.rng("labels").choice((1, 3, 5, 16))

    @cached_property
    def policy(self) -> str:
        return self.rng("policy").choice(POLICIES)

    @cached_property
    def loss(self) -> str:
        return self.rng("loss").choice([name for name in LOSSES if self.num_labels > 1 or name != "categorical"])

    @cached_property
    def special(self) -> str:
        return list(SPECIAL)[self.number % len(SPECIAL)]

    @cached_property
    def assigned(self) -> str:
        """Where the job names a float that a layer assigns: in "statistics", "local" or "nowhere"; "" if none is."""
        if self.special != "running_scale":
            return ""
        return self.rng("assigned").choice(("statistics", "local", "nowhere"))

    @property
    def may_be_refused(self) -> bool:
        return self.special in REFUSABLE or self.assigned == "nowhere"

    def job(self, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Job:
        """How it is trained; with the shapes of its variables, one that is not of the head is cut, too."""
        rng = self.rng("job")
        rule = _rule(rng)
        if self.special == "narrow_variables":  # in 16 bits, where 1 - 0.999 is 0, Keras's Adam stands still
            rule = KerasMomentum(0.9)
        rate = rng.choice((0.02, 0.05))
        assigned = {self.assigned: ("*runningscale*",)}
        clip = rng.choice((None, None, Clip(by_global_norm=0.5), Clip(by_norm=0.3), Clip(by_value=0.05)))
        slices = rng.choice((1, 2, 3)) if self.num_labels >= 3 else 1
        # Shards multiply factors in float32, where the float16 product of plain Keras may overflow and skip the step.
        factors = self.policy not in ("mixed_float16", "layers")
        return Job(
            name="drawn",
            model=Network(self),
            data=GeneratedImages(image_size=self.image_size, num_labels=self.num_labels, num_heldout=4, num_records=64),
            loss=LOSSES[self.loss][0],
            rule=rule,
            schedule=Constant(rate),
            num_steps=NUM_STEPS,
            batch_size=self.batch_size,
            slicing=(Slicing("*head/*", slices), *self._cut(shapes or {})),
            clip=None if self.special in ("narrow_variables", "double_variables") else clip,  # plain Keras fails
            weight_decay=0.0 if isinstance(rule, AdamW) else rng.choice((0.0, 0.0, 0.1)),
            decay="decoupled",
            undecayed=(),
            statistics=assigned.get("statistics", ()),
            local=assigned.get("local", ()),
            cluster=Cluster(num_ps=NUM_SHARDS, num_workers=1),
            exchange=Exchange(codec="float32", factors=factors, overlap=False, give_up_after_s=60.0),
            seed=self.number,
        )

    def _cut(self, shapes: Mapping[str, tuple[int, ...]]) -> list[Slicing]:
        """Two slices of a variable that no job would think of, along its first or last axis, for every third model."""
        rng = self.rng("cut")
        wide = [(name, axis) for name, shape in shapes.items() for axis in (0, -1) if shape and shape[axis] > 1]
        # The head is cut already, and what `Normalization` has adapted is on no shard.
        wide = [(name, axis) for name, axis in wide if not {"head", "normalization"} & set(_words(name))]
        if not wide or rng.random() < 0.7:
            return []
        name, axis = rng.choice(wide)
        return [Slicing(name, 2, axis)]

    def batches(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Images [B, S, S, 3] and labels [B, C], float32: numbers, several labels, or one each, as the loss needs."""
        rng = np.random.default_rng([self.seed, self.number])
        found = []
        for _ in range(NUM_STEPS):
            images = rng.uniform(-1, 1, (self.batch_size, self.image_size, self.image_size, 3))
            labels = (rng.uniform(size=(self.batch_size, self.num_labels)) < 0.4).astype(np.float32)
            if self.loss == "categorical":
                labels = np.eye(self.num_labels)[rng.integers(0, self.num_labels, self.batch_size)]
            elif self.loss == "mean squared":
                labels = rng.normal(size=labels.shape)
            found.append((images.astype(np.float32), labels.astype(np.float32)))
        return found

    @property
    def training(self) -> str:
        """How it is trained, in one line."""
        job = self.job()
        return (
            f"batch {self.batch_size}, side {self.image_size}, {self.num_labels} labels, {self.loss}, {self.policy}; "
            f"{job.rule}, {job.schedule}, decay {job.weight_decay}, {job.clip}, slices {job.slicing[0].num_slices}"
        )


def _words(path: str) -> list[str]:
    """The parts of a variable's path, without their numbers."""
    return [part.rstrip("0123456789") for part in path.split("/")]


def _rule(rng: random.Random) -> Rule:
    """One of the rules that Keras has an optimizer of the same arithmetic for."""
    return rng.choice(
        (
            SGD(),
            SGD(),
            KerasMomentum(0.9, nesterov=rng.random() < 0.5),
            KerasRMSProp(0.9, rng.choice((0.0, 0.9)), EPSILON, rng.random() < 0.3),
            KerasAdam(0.9, 0.999, EPSILON, rng.random() < 0.3),
            AdamW(0.9, 0.999, EPSILON, False, 0.05),
            KerasAdagrad(0.1, EPSILON),
        )
    )


class Network:
    """Builds the model that was drawn; the same every time."""

    def __init__(self, drawn: Drawn) -> None:
        self._drawn = drawn
        self.sketches: list[Sketch] = []

    def build(self, image_size: int, num_labels: int) -> Any:
        drawn = self._drawn
        rng = drawn.rng("model")
        form = "own training" if drawn.special == "own_train_step" else rng.choice(list(FORMS))
        policy = "float32" if drawn.policy == "layers" else drawn.policy
        keras.config.set_dtype_policy(policy)
        single = ("float32", "mixed_bfloat16", "mixed_float16") if drawn.policy == "layers" else ()
        batch = drawn.batch_size if drawn.special == "stateful" or rng.random() < 0.1 else None
        images = keras.Input(batch_shape=(batch, image_size, image_size, 3), name="images")
        sketch = Sketch(rng, images, single)
        self.sketches.append(sketch)
        sketch.note(f"form: {form}, policy: {drawn.policy}")
        x = images
        for name in self._kinds(rng):
            ranks, draw = (KINDS | SPECIAL)[name]
            if len(x.shape) > 2 and x.shape[-1] > 64:
                x = sketch.flat(x)
            sketch.note(f"# {name}")
            x = draw(sketch, sketch.to_rank(x, tuple(dict.fromkeys(ranks))))
        x = sketch.flat(x)
        if sketch.chance(0.3):
            x = sketch.layer(layers.Dense, 48)(x)
        head = layers.Dense(num_labels, name="head", dtype=policy, **_head_arguments(sketch))
        model = keras.Model(images, head(x), name="body")
        return _wrapped(model, form, images)

    def _kinds(self, rng: random.Random) -> list[str]:
        """The special kind and the ordinary one whose turn it is, and up to two more, in any order."""
        names = list(KINDS)
        found = [names[self._drawn.number % len(names)], self._drawn.special]
        found += rng.choices(names, k=rng.choice((0, 1, 1, 2)))
        rng.shuffle(found)
        # A mask must reach the output to matter.
        return sorted(found, key="masked_output".__eq__)


def _head_arguments(sketch: Sketch) -> dict[str, Any]:
    more: dict[str, Any] = {}
    if sketch.chance(0.15):
        more["kernel_regularizer"] = keras.regularizers.L2(1e-2)
    if sketch.chance(0.08):
        more["kernel_constraint"] = keras.constraints.NonNeg()
    sketch.note(f"head: {', '.join(more)}")
    return more


def _wrapped(model: Any, form: str, images: Any) -> Any:
    if form.startswith("functional"):
        return model
    if form == "nested":
        again = keras.Input(batch_shape=images.shape, name="outer_images")
        return keras.Model(again, model(again), name="outer")
    outer = OwnTrainStep(model, name="outer") if form == "own training" else FORMS[form](model, name="outer")
    outer(np.zeros((images.shape[0] or 2, *images.shape[1:]), np.float32))
    return outer
