"""Data sets: batches of the records that leases name, and the order of an epoch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from downpour.model.data.images import Batches, Dataset, GeneratedImages, ImageRecords

__all__ = ["Batches", "Dataset", "GeneratedImages", "ImageRecords"]


def __getattr__(name: str) -> Any:
    """Loads data sets when they are first asked for: shards and the chief use `order` of this package, and no data."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from downpour.model.data import images

    return getattr(images, name)
