"""Data sets: batches of the records that leases name, and the order of an epoch."""

from downpour.model.data.images import Batches, Dataset, GeneratedImages, ImageRecords

__all__ = ["Batches", "Dataset", "GeneratedImages", "ImageRecords"]
