"""A recipe for studies of data size: Fashion-MNIST with a two-level tree of its ten classes, as Sun et al. 2017 train.

A picture carries its class and what contains that: 14 labels, 2 a picture, one logistic regression each (section 4.1:
missing labels are filled in along the hierarchy). The score is mAP@100, which with 14 labels keeps every prediction:
the paper's measure on FastEval14k (4.2), and one that ranks pictures, so that it shows gains that accuracy hides.

RMSProp with momentum 0.9, as the paper; its rate falls to zero over all steps. Small batch norm network, no
augmentation. Data: Debian's dataset-fashion-mnist.

    PYTHONPATH=. downpour study data-size --recipe=tests/benchmarks/fashion_tree_job.py --sizes=600,6000,60000
"""

from typing import Any

import numpy as np

from downpour.launch.job import Cluster, Exchange, Job
from downpour.model.data import Examples
from downpour.model.labels import LabelTree
from downpour.model.losses import per_label_logistic
from downpour.ps.rules import KerasRMSProp
from downpour.ps.schedules import KerasCosine

STEPS, BATCH, RATE = 2_000, 64, 1e-3
_CLASSES = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_GROUPS = {
    "tops": ("T-shirt", "pullover", "coat", "shirt"),
    "trousers and dresses": ("trousers", "dress"),
    "shoes": ("sandal", "sneaker", "ankle boot"),
    "bags": ("bag",),
}


def tree() -> LabelTree:
    """The ten classes, in Fashion-MNIST's order, then what contains them."""
    names = (*_CLASSES, *_GROUPS)
    of_class = [next(group for group, members in _GROUPS.items() if name in members) for name in _CLASSES]
    return LabelTree(names, (*map(names.index, of_class), *([-1] * len(_GROUPS))))


def _part(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures [n, 28, 28, 1] float32 in [-1, 1], and their labels [n, 14] float32 of 0 and 1, ancestors included."""
    from tests.benchmarks.fashion_mnist import FashionMnist

    data, labels = FashionMnist.load(), tree()
    images, classes = getattr(data, f"{name}_images"), getattr(data, f"{name}_labels").argmax(1)
    rows = np.zeros((len(_CLASSES), len(labels)), np.float32)
    for number, row in enumerate(rows):
        row[list(labels.with_ancestors([number]))] = 1
    return images, rows[classes]


def training() -> tuple[np.ndarray, np.ndarray]:
    """60,000 pictures."""
    return _part("train")


def heldout() -> tuple[np.ndarray, np.ndarray]:
    """10,000 others."""
    return _part("test")


def model() -> Any:
    """The compiled model."""
    import keras

    from downpour.model.metrics import MeanAveragePrecision
    from tests.benchmarks.fashion_job import network

    built = network(len(tree()), "fashion_tree")
    schedule = keras.optimizers.schedules.CosineDecay(RATE, STEPS)
    optimizer = keras.optimizers.RMSprop(schedule, momentum=0.9)
    built.compile(optimizer, per_label_logistic, metrics=[MeanAveragePrecision()])
    return built


def job() -> Job:
    """The job; see the module."""
    return Job(
        name="fashion_tree",
        model=model,
        data=Examples(training, heldout),
        loss=None,  # the compiled model's
        rule=KerasRMSProp(momentum=0.9),
        schedule=KerasCosine(RATE, STEPS),
        num_steps=STEPS,
        batch_size=BATCH,
        cluster=Cluster(num_ps=2, num_workers=2, threads_per_worker=1),
        exchange=Exchange(codec="bfloat16"),
        checkpoint_every_steps=STEPS,
    )
