"""Data sets: batches of the records that leases name, and the order of an epoch."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from downpour.model.data.batches import Batches, Dataset
    from downpour.model.data.examples import Examples
    from downpour.model.data.generated import GeneratedImages
    from downpour.model.data.images import ImageRecords
    from downpour.model.data.streams import Stream

__all__ = ["Batches", "Dataset", "Examples", "GeneratedImages", "ImageRecords", "Stream"]

_WHERE = {
    "Batches": "batches",
    "Dataset": "batches",
    "Examples": "examples",
    "GeneratedImages": "generated",
    "ImageRecords": "images",
    "Stream": "streams",
}


def __getattr__(name: str) -> Any:
    """Imports data sets on first use, since shards and the chief use only `order` of this package."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
