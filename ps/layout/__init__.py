"""Variables, cut into slices, which lie in ranges of the shards' vectors."""

from downpour.ps.layout.layout import (
    FACTORED,
    FROZEN,
    STATISTIC,
    TRAINED,
    Factored,
    Layout,
    Range,
    Rate,
    Slicing,
    Span,
    Variable,
    check_same,
    from_canonical,
    plan,
)

__all__ = [
    "FACTORED",
    "FROZEN",
    "STATISTIC",
    "TRAINED",
    "Factored",
    "Layout",
    "Range",
    "Rate",
    "Slicing",
    "Span",
    "Variable",
    "check_same",
    "from_canonical",
    "plan",
]
