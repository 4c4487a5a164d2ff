"""Conversions between float32 and the wire's number formats, into given arrays, without copies.

Threads: any; these functions keep no state.
"""

from __future__ import annotations

import numpy as np

from downpour.proto import codec
from downpour.proto.numerics import loops

_f = np.float32


def widen(source: np.ndarray, target: np.ndarray) -> None:
    """Converts bfloat16 bits, [n] uint16, to [n] float32; exact."""
    loops.widen()(source, target.view(np.uint32))


def narrow(source: np.ndarray, target: np.ndarray) -> None:
    """Converts [n] float32 to bfloat16 bits, [n] uint16, rounded to nearest even; any NaN becomes the quiet one."""
    loops.narrow()(source.view(np.uint32), target)


def to_float32(values: np.ndarray, out: np.ndarray) -> None:
    """Converts [n] of a wire dtype, at any address, to [n] float32; exact."""
    if values.dtype == np.uint16:
        widen(values, out)
    else:
        out[:] = values


def to_wire(values: np.ndarray, out: np.ndarray) -> None:
    """Converts [n] float32 to [n] of a wire dtype, rounded to nearest even; float16 overflow becomes infinite."""
    if out.dtype == np.uint16:
        narrow(values, out)
    else:
        with np.errstate(over="ignore"):
            out[:] = values


def quantize(x: np.ndarray, scales: np.ndarray, q: np.ndarray, levels: int = 127) -> None:
    """Quantizes [n] float32 to [n] int8 in [-levels, levels] and [ceil(n / BLOCK)] scales; `x` keeps the residual."""
    bits, scale_bits = x.view(np.uint32), scales.view(np.uint32)
    loops.quantize()(x, bits, scales, scale_bits, q, codec.BLOCK, _f(levels))


def quantize4(x: np.ndarray, scales: np.ndarray, packed: np.ndarray) -> None:
    """Quantizes like `quantize`, but to INT4: [ceil(n / BLOCK) * BLOCK / 2] bytes."""
    q = np.zeros(2 * packed.size, np.int8)
    quantize(x, scales, q[: x.size], levels=7)
    loops.pack4()(q, packed, codec.BLOCK)


def dequantize(scales: np.ndarray, q: np.ndarray, first: int, out: np.ndarray) -> None:
    """Inverts `quantize`, without the residual, for elements [first, first + n) of a chunk, at any address."""
    loops.dequantize()(scales, q, first, codec.BLOCK, out)


def difference(w: np.ndarray, published: np.ndarray, out: np.ndarray) -> None:
    """Computes out = w - published, of [n] float32 and of [n] bfloat16 bits at any address."""
    loops.difference()(w, published, out.view(np.uint32), out)


def advance(wire: int, published: np.ndarray, scales: np.ndarray, q: np.ndarray, out: np.ndarray) -> None:
    """Computes out = published + q * scale of its block, [n] bfloat16 bits, equal on every machine; may be in place.

    Args:
        wire: Codec of `q`, INT8 or INT4.
        published: [n] bfloat16 bits, at any address.
        scales: As returned by `Chunk.blocks`.
        q: The elements' bytes, as returned by `Chunk.blocks`.
        out: [n] bfloat16 bits.
    """
    room, wide = np.empty(codec.BLOCK, np.int8), np.empty(codec.BLOCK, np.float32)
    loops.advance()(published, scales, q, wire == codec.INT4, codec.BLOCK, room, wide, wide.view(np.uint32), out)


def num_non_finite(values: np.ndarray) -> int:
    """Counts the NaN and infinite values among [n] of a wire dtype, at any address."""
    if values.dtype.itemsize == 2:
        exponent = np.uint16(0x7F80 if values.dtype == np.uint16 else 0x7C00)
        return int(loops.count_non_finite_16()(values.view(np.uint16), exponent))
    return int(loops.count_non_finite()(values.view(np.uint32)))


def load() -> None:
    """Compiles or loads the loops that every shard needs, so that its first push does not wait for them."""
    for loop in (loops.widen, loops.narrow, loops.count_non_finite, loops.count_non_finite_16):
        loop()


def load_blocks() -> None:
    """Compiles or loads the loops that INT8 and INT4 need, on either side."""
    for loop in (loops.widen, loops.difference, loops.quantize, loops.pack4, loops.advance, loops.dequantize):
        loop()
