"""What compiled loops need that Python has no words for: parts of tuples of vectors, vectors at addresses, barriers.

numba does not see that a loop it keeps depends on this module: touch `downpour.ps.apply.loops` when something changes
here.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core.imputils import impl_ret_untracked
from numba.extending import intrinsic, overload
from numba.np.arrayobj import populate_array


def cut(vectors: Any, begin: int, end: int) -> Any:
    """Elements [begin, end) of each of a tuple of vectors, within a loop."""
    raise NotImplementedError("compiled only")


@overload(cut, inline="always")
def _cut(vectors, begin, end):  # type: ignore[no-untyped-def]
    return {
        1: lambda vectors, begin, end: (vectors[0][begin:end],),
        2: lambda vectors, begin, end: (vectors[0][begin:end], vectors[1][begin:end]),
        3: lambda vectors, begin, end: (vectors[0][begin:end], vectors[1][begin:end], vectors[2][begin:end]),
        4: lambda vectors, begin, end: (
            vectors[0][begin:end],
            vectors[1][begin:end],
            vectors[2][begin:end],
            vectors[3][begin:end],
        ),
    }[len(vectors)]


@intrinsic
def keep_order(typing):  # type: ignore[no-untyped-def]
    """What is stored before is stored before what is stored after, as far as this process sees; no instruction."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        builder.fence("seq_cst", "singlethread")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def vector_at(typing, address, like):  # type: ignore[no-untyped-def]
    """The vector at an address that has the type and the size of another."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        other = context.make_array(like)(context, builder, arguments[1])
        vector = context.make_array(like)(context, builder)
        populate_array(
            vector,
            data=builder.inttoptr(arguments[0], other.data.type),
            shape=other.shape,
            strides=other.strides,
            itemsize=other.itemsize,
            meminfo=None,
        )
        return impl_ret_untracked(context, builder, like, vector._getvalue())

    return like(address, like), generate
