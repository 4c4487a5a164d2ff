"""Layouts: variables are cut into slices, which are ranges of the shards' vectors."""

from downpour.ps.layout.comparison import check_same
from downpour.ps.layout.cuts import Slicing
from downpour.ps.layout.layout import (
    FACTORED,
    FROZEN,
    STATISTIC,
    TRAINED,
    Factored,
    Layout,
    Range,
    Rate,
    Span,
    Variable,
    from_canonical,
)
from downpour.ps.layout.placement import lay_out

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
    "lay_out",
]
