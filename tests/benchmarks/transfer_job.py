"""A recipe for transfer: a narrow ResNet-18 on pictures of ten exclusive classes, as the quickstart trains.

Fashion-MNIST to begin with, then scikit-learn's digits; `tests.benchmarks.transfer` writes both as prepared folders.
Pictures are not mirrored, since a digit's mirror image is no digit.
"""

from dataclasses import replace

from downpour.launch.job import Cluster, Job
from downpour.launch.recipes import quickstart
from downpour.model.data import ImageRecords
from downpour.model.losses import softmax_cross_entropy
from downpour.model.resnet import ResNet
from downpour.ps.schedules import Cosine


def job() -> Job:
    """The job; see the module."""
    return replace(
        quickstart.job(),
        name="transfer",
        model=ResNet(depth=18, width=8, stem="3x3/2", norm_momentum=0.9),
        data=ImageRecords(folder="runs/transfer/data/fashion", num_labels=10, resize=32, crop=28, mirror=False),
        loss=softmax_cross_entropy,
        schedule=Cosine(learning_rate=1e-3, steps=1000),
        num_steps=1000,
        batch_size=64,
        slicing=(),
        cluster=Cluster(num_ps=2, num_workers=2, threads_per_worker=1),
        checkpoint_every_steps=10_000,  # the last step alone
    )
