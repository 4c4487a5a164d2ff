"""Features of pictures: the output of a layer of a network, batch by batch. Keras is imported in the functions.

Shapes: `B` pictures in a batch, `S` side of what the network sees, `F` features.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from downpour.model.data.pixels import Pixels
from downpour.model.vision.picture_folder import Named

if TYPE_CHECKING:
    import keras

POOLED = "pooled"
_STAGE = re.compile(r"conv([2-5])")  # as He et al. 2015, table 1, call the stages 1 to 4


def network(model: keras.Model, layer: str, pool: bool) -> tuple[keras.Model, str]:
    """The part of a model from its input to a layer's output, averaged over positions [H, W] if `pool`.

    Args:
        model: A model with one input, of images [B, S, S, 3].
        layer: A layer's name; `conv2` to `conv5` for the last layer of a stage of a residual network; `pooled` for the
            layer `features`, or, where there is none, for what the last layer takes.
        pool: Whether a map [B, H, W, F] becomes its mean over positions, [B, F].

    Returns:
        The network, whose output is float32; and the name of the layer.

    Raises:
        ValueError: The model has no such layer, or one whose output is no single array.
    """
    import keras

    found = _layer(model, layer)
    output = found.output
    if isinstance(output, list | tuple | dict):
        raise ValueError(f"--layer={layer}: {found.name} has several outputs; give another layer")
    if pool and len(output.shape) == 4:
        output = keras.layers.GlobalAveragePooling2D(name="mean_over_positions", dtype="float32")(output)
    return keras.Model(model.inputs, output, name="features"), found.name


def _layer(model: keras.Model, layer: str) -> Any:
    names = [one.name for one in model.layers]
    if layer in names:
        return model.get_layer(layer)
    if layer == POOLED:
        return model.get_layer("features") if "features" in names else model.layers[-2]
    if stage := _STAGE.fullmatch(layer):
        of_stage = [name for name in names if name.startswith(f"stage{int(stage[1]) - 1}_")]
        if of_stage:
            return model.get_layer(of_stage[-1])
    shown = names if len(names) <= 12 else [*names[:4], "...", *names[-6:]]
    raise ValueError(
        f"--layer={layer}: the model {model.name!r} has no such layer; give {POOLED}, conv2 to conv5 of a residual "
        f"network, or one of {', '.join(shown)}"
    )


def features(
    net: keras.Model, pictures: Iterable[Named], batch_size: int
) -> Iterator[tuple[Sequence[Named], np.ndarray]]:
    """Yields pictures in batches, each with the network's output in inference mode, float32 [B, ...].

    Images are in [-1, 1], as the evaluator's.
    """
    import tensorflow as tf

    compute = tf.function(lambda images: tf.cast(net(images, training=False), tf.float32), reduce_retracing=True)
    for members in _batches(pictures, batch_size):
        images = Pixels(np.stack([named.picture.image for named in members]))
        yield members, compute(tf.convert_to_tensor(images)).numpy()


def _batches(pictures: Iterable[Named], size: int) -> Iterator[list[Named]]:
    members: list[Named] = []
    for named in pictures:
        members.append(named)
        if len(members) == size:
            yield members
            members = []
    if members:
        yield members
