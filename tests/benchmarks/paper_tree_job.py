"""The recipe of `tests.benchmarks.paper_chain`: paper_shape on a prepared folder of small pictures, with a label tree.

    python -m tests.benchmarks.paper_chain

Everything but the pictures' size has the paper's: ResNet-101, 18,291 labels, 17 shards, the head in 50 slices.
"""

from dataclasses import replace

from downpour.launch.job import Job
from downpour.launch.recipes import paper_shape
from downpour.model.data import ImageRecords


def job() -> Job:
    """The job; see the module."""
    data = ImageRecords(folder="runs/paper_chain/data", num_labels=18_291, resize=64, crop=64, mirror=True)
    return replace(paper_shape.job(), name="paper_chain", data=data)
