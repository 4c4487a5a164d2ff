"""Compiled loops for the wire's numbers: widening, rounding, block-scaled integers, and counting non-finite values.

Each name of this module is a function without arguments that returns the compiled loop: compiled for its declared
types, or loaded from the cache beside this file, on the first call. `downpour.proto.numerics.convert` calls them.
"""

from __future__ import annotations

import numpy as np
from numba import types

from downpour.compiled import declared

_V, _S = types.float32[::1], types.float32  # a vector, a scalar
_BITS16, _BITS32, _BYTES = types.uint16[::1], types.uint32[::1], types.int8[::1]
# A payload is a view of an immutable message and may start at any byte.
_PAYLOAD16 = types.Array(types.uint16, 1, "C", readonly=True, aligned=False)
_PAYLOAD32 = types.Array(types.uint32, 1, "C", readonly=True, aligned=False)
_PAYLOAD_SCALES = types.Array(types.float32, 1, "C", readonly=True, aligned=False)
_PAYLOAD8 = types.Array(types.int8, 1, "C", readonly=True, aligned=False)


@declared(_PAYLOAD16, _BITS32)
def widen(source, target):  # type: ignore[no-untyped-def]
    """Converts bfloat16 bits to float32 bits."""
    for i in range(source.size):
        target[i] = np.uint32(source[i]) << np.uint32(16)


@declared(_BITS32, _BITS16)
def narrow(source, target):  # type: ignore[no-untyped-def]
    """Converts float32 bits to bfloat16 bits, rounded to nearest even."""
    for i in range(source.size):
        bits = source[i]
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        target[i] = np.uint16(0x7FC0) if is_nan else np.uint16(rounded)


@declared(_V, _BITS32, _V, _BITS32, _BYTES, types.intp, _S)
def quantize(x, bits, scales, scale_bits, q, block, levels):  # type: ignore[no-untyped-def]
    """Quantizes float32 to integers with a scale for each block; `x` keeps the residual."""
    for b in range(scales.size):
        # One slice a block: indices that start at 0 are known not to be negative, so the loops vectorise.
        block_bits, block_x = bits[b * block : (b + 1) * block], x[b * block : (b + 1) * block]
        block_q = q[b * block : (b + 1) * block]
        # As integers, since numbers of one sign compare like their bits: a float maximum would not vectorise.
        largest_bits = np.uint32(0)
        for i in range(block_bits.size):
            largest_bits = max(largest_bits, block_bits[i] & np.uint32(0x7FFFFFFF))
        scale_bits[b] = largest_bits
        largest = scales[b]  # the same memory
        # Below this the inverse would overflow, and zeros become NaN: such a block stays as it is, and 0 is sent.
        scale = largest / levels if largest > np.float32(1e-36) else np.float32(0)
        inverse = levels / largest if largest > np.float32(1e-36) else np.float32(0)
        scales[b] = scale
        for i in range(block_x.size):
            rounded = np.rint(block_x[i] * inverse)
            block_q[i] = np.int8(rounded)
            block_x[i] -= rounded * scale


@declared(_BYTES, _BYTES, types.intp)
def pack4(q, packed, block):  # type: ignore[no-untyped-def]
    """Packs 4-bit integers, two in a byte."""
    half = block // 2
    for b in range(packed.size // half):
        lower, upper = q[b * block : b * block + half], q[b * block + half : (b + 1) * block]
        block_packed = packed[b * half : (b + 1) * half]
        for i in range(half):
            block_packed[i] = (lower[i] + np.int8(8)) | ((upper[i] + np.int8(8)) << np.int8(4))


@declared(_PAYLOAD_SCALES, _PAYLOAD8, types.intp, types.intp, _V)
def dequantize(scales, q, first, block, out):  # type: ignore[no-untyped-def]
    """Multiplies integers by their block's scale, to float32."""
    done = 0
    while done < out.size:
        b = (first + done) // block
        stop = min((b + 1) * block - first, out.size)
        block_q, block_out, scale = q[first + done : first + stop], out[done:stop], scales[b]
        for i in range(block_out.size):
            block_out[i] = np.float32(block_q[i]) * scale
        done = stop


@declared(_V, _PAYLOAD16, _BITS32, _V)
def difference(w, published, bits, out):  # type: ignore[no-untyped-def]
    """Subtracts bfloat16 from float32."""
    # `bits` is the memory of `out`.
    for i in range(out.size):
        bits[i] = np.uint32(published[i]) << np.uint32(16)
    for i in range(out.size):
        out[i] = w[i] - out[i]


@declared(_PAYLOAD16, _PAYLOAD_SCALES, _PAYLOAD8, types.boolean, types.intp, _BYTES, _V, _BITS32, _BITS16)
def advance(published, scales, payload, is_int4, block, q, wide, bits, out):  # type: ignore[no-untyped-def]
    """Adds integers times their block's scale to bfloat16; rounds the sum to bfloat16."""
    # `q`, and `wide` with its memory `bits`, are scratch space for a block. Two roundings to nearest, one of the sum
    # and one to bfloat16, so that every machine gets the same bits.
    half = block // 2
    upper = q[half:block]
    for b in range(scales.size):
        block_published, block_out = published[b * block : (b + 1) * block], out[b * block : (b + 1) * block]
        scale = scales[b]
        if is_int4:
            packed = payload[b * half : (b + 1) * half]
            for i in range(half):
                q[i] = (packed[i] & np.int8(15)) - np.int8(8)
            for i in range(half):
                upper[i] = ((packed[i] >> np.int8(4)) & np.int8(15)) - np.int8(8)
        else:
            block_q = payload[b * block : (b + 1) * block]
            for i in range(block_q.size):
                q[i] = block_q[i]
        for i in range(block_out.size):
            bits[i] = np.uint32(block_published[i]) << np.uint32(16)
        for i in range(block_out.size):
            wide[i] += np.float32(q[i]) * scale
        for i in range(block_out.size):
            x = bits[i]
            block_out[i] = np.uint16((x + np.uint32(0x7FFF) + ((x >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@declared(_PAYLOAD32, returns=types.uint64)
def count_non_finite(bits):  # type: ignore[no-untyped-def]
    """Counts float32 bits that are NaN or infinite."""
    # Integers, because a float test costs a branch an element; the exponent of NaN and infinity is all ones.
    count = np.uint64(0)
    for i in range(bits.size):
        count += np.uint64((bits[i] & np.uint32(0x7F800000)) == np.uint32(0x7F800000))
    return count


@declared(_PAYLOAD16, types.uint16, returns=types.uint64)
def count_non_finite_16(bits, exponent):  # type: ignore[no-untyped-def]
    """Counts 16-bit floats that are NaN or infinite; `exponent` masks the exponent's bits."""
    count = np.uint64(0)
    for i in range(bits.size):
        count += np.uint64((bits[i] & exponent) == exponent)
    return count
