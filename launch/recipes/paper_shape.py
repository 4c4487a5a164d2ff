"""Paper shape: the true model and cluster of Sun et al. 2017 (arXiv 1707.02968, section 4.1) on generated images.

Purpose: to measure what one step costs. ResNet-101 at 299 x 299 with 18,291 labels, 80.0 M parameters on 17 shards,
the head of 2048 x 18291 weights in 50 slices. The images are made up, so the score says nothing; everything that
moves and is stored has the paper's size.

    python -m downpour.launch.local --recipe=paper_shape --batch_size=8 --steps=5

Expected: ends in minutes on two cores. Prints the layout (imbalance under 1 %), then seconds a step split into pull,
compute and push, bytes a step, and memory by role; every shard's proportional memory is at most its state + 150 MB.
The loss is finite and falls.

Deviations from the paper: generated images instead of JFT-300M (private), batches of 8 instead of 32, 5 steps instead
of 36 M, 2 workers instead of 50, bfloat16 on the wire, a rate small enough for the loss to fall from the first step.
"""

from downpour.launch.job import Cluster, Exchange, Job
from downpour.model.data import GeneratedImages
from downpour.model.losses import per_label_logistic
from downpour.model.resnet import ResNet
from downpour.ps.layout import Slicing
from downpour.ps.rules import RMSProp
from downpour.ps.schedules import Constant


def job() -> Job:
    """Returns the job; see the module."""
    return Job(
        name="paper_shape",
        model=ResNet(depth=101),
        data=GeneratedImages(image_size=299, num_labels=18_291, num_heldout=16),
        loss=per_label_logistic,
        rule=RMSProp(rho=0.9, momentum=0.9),
        schedule=Constant(learning_rate=1e-4),
        num_steps=5,
        batch_size=8,
        slicing=(Slicing("head/*", num_slices=50),),
        weight_decay=1e-4,
        cluster=Cluster(num_ps=17, num_workers=2),
        exchange=Exchange(codec="bfloat16", give_up_after_s=300.0),
        checkpoint_every_steps=1000,
    )
