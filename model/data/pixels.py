"""Images of a batch that stay bytes until they are where the model computes.

Shapes: `B` images in a batch, `S` side of an image in pixels.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from downpour.model.data.batches import new_images

_SCALE, _OFFSET = np.float32(1 / 127.5), np.float32(-1)


class Pixels:
    """Images [B, S, S, 3] float32 in [-1, 1], held as bytes: byte v means v / 127.5 - 1.

    To the step, a model and `np.asarray` it is the float32 array. `tf.convert_to_tensor`, which the step and the
    evaluator call, copies the bytes to an accelerator, if there is one, and makes floats of them there: a fourth of the
    traffic. An array of bytes of a user's own is not of this type, and nobody scales it.

    Args:
        bytes_: [B, S, S, 3] uint8.

    Attributes:
        bytes: The same.
    """

    dtype = np.dtype(np.float32)
    ndim = 4

    def __init__(self, bytes_: NDArray[np.uint8]) -> None:
        if bytes_.dtype != np.uint8 or bytes_.ndim != self.ndim:
            raise ValueError(f"pixels are {bytes_.dtype} {bytes_.shape}; give uint8 [B, S, S, 3]")
        self.bytes = bytes_

    @property
    def shape(self) -> tuple[int, ...]:
        """[B, S, S, 3]."""
        return self.bytes.shape

    def __len__(self) -> int:
        return len(self.bytes)

    def __getitem__(self, key: Any) -> NDArray[np.float32]:
        """A part of the array, as float32."""
        return np.multiply(self.bytes[key], _SCALE, dtype=np.float32) + _OFFSET

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """The array, always a new one; called by numpy.

        Raises:
            ValueError: It is to be made without a copy.
        """
        if copy is False:
            raise ValueError("pixels are bytes, and floats of them are a copy; give copy=None or True")
        from downpour.model.vision.resampling import scaled

        floats = new_images(*self.shape)
        scaled(self.bytes, _SCALE, _OFFSET, floats)
        return floats if dtype is None else floats.astype(dtype, copy=False)

    def __tf_tensor__(self, dtype: Any = None, name: str | None = None) -> Any:
        """The array as a tensor, scaled on the device; called by `tf.convert_to_tensor`."""
        import tensorflow as tf

        if has_accelerator():
            floats = _on_device()(tf.convert_to_tensor(self.bytes, name=name))
        else:  # one pass of ours takes a third of the time of TensorFlow's three; the tensor is of the array's memory
            floats = tf.experimental.dlpack.from_dlpack(np.asarray(self).__dlpack__())
        return floats if dtype is None else tf.cast(floats, dtype)


@functools.cache
def has_accelerator() -> bool:
    """Whether TensorFlow computes on something else than the processor in this process."""
    import tensorflow as tf

    return any(device.device_type != "CPU" for device in tf.config.list_logical_devices())


@functools.cache
def _on_device() -> Any:
    """The compiled function from bytes to floats, on the device; its bits are those of the array."""
    import tensorflow as tf

    def on_device(values: Any) -> Any:
        return tf.cast(values, tf.float32) * _SCALE + _OFFSET

    signature = [tf.TensorSpec([None] * Pixels.ndim, tf.uint8)]
    return tf.function(on_device, input_signature=signature, autograph=False)
