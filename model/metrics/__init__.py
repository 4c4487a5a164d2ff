"""Scores of a model: metrics that Keras does not have, and the evaluation of a compiled model batch by batch."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from downpour.model.metrics.average_precision import MeanAveragePrecision
    from downpour.model.metrics.evaluation import Evaluation
    from downpour.model.metrics.top_k import TopKAccuracy

__all__ = ["Evaluation", "MeanAveragePrecision", "TopKAccuracy"]

_WHERE = {"MeanAveragePrecision": "average_precision", "Evaluation": "evaluation", "TopKAccuracy": "top_k"}


def __getattr__(name: str) -> Any:
    """Imports Keras on first use only, since recipes are read without it."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
