"""Quickstart: real pictures through 17 parameter-server shards, in minutes on two cores.

What it is: a small stand-in for the training of Sun et al. 2017 (arXiv 1707.02968, section 4.1) that anybody can run.
It keeps the paper's cluster shape (17 shards, the head cut into 50 slices), loss (per-label logistic, labels filled
in along a tree), update rule (RMSProp with momentum 0.9, weight decay 1e-4) and input treatment (resize, random crop,
random mirror, [-1, 1]).

Data: OpenMoji, about 3,800 pictures with Unicode's names as labels: many labels an image, hierarchical, long-tailed.
It stands in for JFT-300M, which is private. Art by OpenMoji, CC BY-SA 4.0.

    downpour prepare openmoji --out=data/openmoji
    python -m downpour.launch.local --recipe=quickstart

Expected: about a minute of training on two cores; held-out mAP@100 of about 0.70 weighted by popularity and 0.48
unweighted, ten times chance and more. `runs/quickstart/` holds `summary.json` and `learning_curve.png`.

Deviations from the paper: 36-pixel pictures cropped to 32, a narrow ResNet-18, 2 workers, a learning rate that
halves every 300 steps, bfloat16 on the wire.
"""

from downpour.launch.job import Cluster, Exchange, Job
from downpour.model.data import ImageRecords
from downpour.model.losses import per_label_logistic
from downpour.model.resnet import ResNet
from downpour.ps.layout import Slicing
from downpour.ps.rules import RMSProp
from downpour.ps.schedules import StaircaseExponential


def job() -> Job:
    """Returns the job; see the module."""
    return Job(
        name="quickstart",
        model=ResNet(depth=18, width=16, stem="3x3/2", head_bias=-4.0, norm_momentum=0.9),
        data=ImageRecords(folder="data/openmoji", num_labels=130, resize=36, crop=32, mirror=True),
        loss=per_label_logistic,
        rule=RMSProp(rho=0.9, momentum=0.9, epsilon=1e-10),
        schedule=StaircaseExponential(learning_rate=5e-4, factor=0.5, every=300),
        num_steps=700,
        batch_size=128,
        slicing=(Slicing("head/*", num_slices=50),),
        weight_decay=1e-4,
        cluster=Cluster(num_ps=17, num_workers=2, threads_per_worker=1),
        exchange=Exchange(codec="bfloat16"),
        checkpoint_every_steps=100,
    )
