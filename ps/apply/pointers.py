"""numba intrinsics of the compiled loops: parts of tuples of vectors, vectors at addresses, compiler barriers.

numba's cache does not track that loops depend on this module: touch `downpour.ps.apply.loops` when something changes
here.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core.imputils import impl_ret_untracked
from numba.extending import intrinsic, overload
from numba.np.arrayobj import populate_array


def cut(vectors: Any, begin: int, end: int) -> Any:
    """Elements [begin, end) of each of a tuple of vectors; for compiled loops only."""
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
    """Compiler barrier: keeps the program order of stores before and after it; emits no instruction."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        builder.fence("seq_cst", "singlethread")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def vector_at(typing, address, like):  # type: ignore[no-untyped-def]
    """A view of the vector at `address`, of the type and the size of the vector `like`."""

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
