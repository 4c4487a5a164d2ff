"""Residual networks (He et al. 2015, arXiv 1512.03385) with batch norm after each convolution.

Every layer is named by its place, never numbered by Keras, so that all processes agree on the paths of the
variables. Keras is imported in `build`, so that a recipe can name a network without it.

Shapes: `B` images in a batch, `S` side of an image, `F` features, `C` classes.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras

# Residual blocks in each stage, and whether a block is a bottleneck; He et al. 2015, table 1.
_DEPTHS = {
    18: ((2, 2, 2, 2), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
_STEMS = ("7x7", "3x3", "3x3/2")
_FORMAT = "channels_last"  # independent of keras.json


@dataclass(frozen=True)
class ResNet:
    """A residual network with one logit per label.

    Defaults are the paper's ResNet-50: a 7x7 stem, 64 channels, 2048 features. Bottlenecks take their stride in
    the 3x3 convolution, as every current implementation does; parameters are the same either way.

    Attributes:
        depth: 18 (blocks of two 3x3 convolutions), 50, 101 or 152 (bottlenecks).
        width: Channels of the stem. Stage i has `width * 2**i` of them, four times that after a bottleneck.
        stem: "7x7" halves the side twice (convolution and pooling). For small pictures: "3x3" keeps it, "3x3/2"
            halves it once.
        head_bias: Initial bias of every label's logit. A label that holds in a fraction p of the images has its
            log-odds log(p / (1 - p)) as the best constant; with many rare labels and a start at 0, the first steps
            learn nothing else, since the loss sums over all labels.
        norm_momentum: Momentum of the batch-norm moving averages; lower for short training.
        frozen: `fnmatch` patterns of layers that keep the values they begin with, `("stem_*", "stage*")` for all but
            the head. They compute as in inference, batch norm with its moving averages, and are never pushed. The
            job's own `frozen` names variables instead, and leaves batch norm on the averages of the batch.

    Raises:
        ValueError: A depth or stem that is not listed, or a number out of range.
    """

    depth: int = 50
    width: int = 64
    stem: str = "7x7"
    head_bias: float = 0.0
    norm_momentum: float = 0.99
    frozen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.depth not in _DEPTHS:
            raise ValueError(f"depth is {self.depth}; accepted are {', '.join(map(str, _DEPTHS))}")
        if self.stem not in _STEMS:
            raise ValueError(f"stem is {self.stem!r}; accepted are {', '.join(map(repr, _STEMS))}")
        if self.width < 1:
            raise ValueError(f"width is {self.width}; give at least 1 channel")
        if not 0 <= self.norm_momentum < 1:
            raise ValueError(f"norm_momentum is {self.norm_momentum}; give a number from 0 up to, not including, 1")
        if isinstance(self.frozen, str):
            raise ValueError(f"frozen is {self.frozen!r}, a text; give a tuple of patterns, such as ({self.frozen!r},)")

    def build(self, image_size: int, num_labels: int) -> keras.Model:
        """The built model: [B, S, S, 3] float32 in [-1, 1] to [B, C] float32 logits.

        Raises:
            ValueError: `image_size` or `num_labels` is below 1; a pattern of `frozen` matches no layer, or they match
                every layer that is trained.
        """
        import keras

        if image_size < 1 or num_labels < 1:
            raise ValueError(f"image_size is {image_size} and num_labels {num_labels}; give at least 1 of each")
        images = keras.Input((image_size, image_size, 3), name="images")
        x = self._stem(images)
        blocks, is_bottleneck = _DEPTHS[self.depth]
        block = self._bottleneck if is_bottleneck else self._basic
        for stage, num_blocks in enumerate(blocks):
            for i in range(num_blocks):
                stride = 2 if i == 0 and stage > 0 else 1
                x = block(x, self.width * 2**stage, stride, f"stage{stage + 1}_block{i + 1}")
        features = keras.layers.GlobalAveragePooling2D(data_format=_FORMAT, name="features")(x)
        bias = keras.initializers.Constant(self.head_bias)
        logits = keras.layers.Dense(num_labels, name="head", bias_initializer=bias, dtype="float32")(features)
        model = keras.Model(images, logits, name=f"resnet{self.depth}")
        self._freeze(model)
        return model

    def _freeze(self, model: keras.Model) -> None:
        for pattern in self.frozen:
            matched = [layer for layer in model.layers if fnmatch.fnmatchcase(layer.name, pattern)]
            if not matched:
                raise ValueError(
                    f"model.frozen: pattern {pattern!r} matches no layer; layers are named like stem_conv, "
                    "stage1_block1_1_norm and head"
                )
            for layer in matched:
                layer.trainable = False
        if not model.trainable_variables:
            raise ValueError(f"model.frozen: {', '.join(self.frozen)} match every layer; leave something to train")

    def _stem(self, x: Any) -> Any:
        import keras

        if self.stem != "7x7":
            return self._unit(x, self.width, 3, 2 if self.stem == "3x3/2" else 1, "stem")
        x = self._unit(x, self.width, 7, 2, "stem")
        return keras.layers.MaxPooling2D(3, 2, padding="same", data_format=_FORMAT, name="stem_pool")(x)

    def _basic(self, x: Any, channels: int, stride: int, name: str) -> Any:
        y = self._unit(x, channels, 3, stride, f"{name}_1")
        y = self._unit(y, channels, 3, 1, f"{name}_2", relu=False)
        return self._join(x, y, channels, stride, name)

    def _bottleneck(self, x: Any, channels: int, stride: int, name: str) -> Any:
        y = self._unit(x, channels, 1, 1, f"{name}_1")
        y = self._unit(y, channels, 3, stride, f"{name}_2")
        y = self._unit(y, 4 * channels, 1, 1, f"{name}_3", relu=False)
        return self._join(x, y, 4 * channels, stride, name)

    def _join(self, x: Any, y: Any, channels: int, stride: int, name: str) -> Any:
        """relu(shortcut + y); the shortcut is projected where the shape changes (option B of the paper)."""
        import keras

        if stride > 1 or x.shape[-1] != channels:
            x = self._unit(x, channels, 1, stride, f"{name}_shortcut", relu=False)
        return keras.layers.ReLU(name=f"{name}_relu")(keras.layers.Add(name=f"{name}_add")([x, y]))

    def _unit(self, x: Any, channels: int, size: int, stride: int, name: str, relu: bool = True) -> Any:
        """Convolution without bias, batch norm and, if `relu`, a rectifier."""
        import keras

        x = keras.layers.Conv2D(
            channels,
            size,
            stride,
            padding="same",
            data_format=_FORMAT,
            use_bias=False,
            kernel_initializer="he_normal",
            name=f"{name}_conv",
        )(x)
        x = keras.layers.BatchNormalization(momentum=self.norm_momentum, epsilon=1e-5, name=f"{name}_norm")(x)
        return keras.layers.ReLU(name=f"{name}_relu")(x) if relu else x
