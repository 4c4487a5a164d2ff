"""ImageNet from scratch: ResNet-101 on the 1,000 exclusive classes of ILSVRC 2012, the paper's baseline.

Paper: Sun et al. 2017, arXiv 1707.02968, section 4.1: the settings for JFT-300M do worse on ImageNet, so the optimizer
and its schedule are others. Every number, as `--set` names it, and what the section says of it:

| here | where | the paper's statement, paraphrased |
|---|---|---|
| `model.depth=101` | 4.1 | the network is again ResNet-101 |
| `data.num_labels=1_000, data.exclusive=True` | 5.1 | ILSVRC 2012, whose images have one of 1,000 classes each |
| `loss=softmax_cross_entropy` | ours | the classes exclude each other; the paper does not name the loss |
| `data.resize=340, data.crop=299, data.mirror=True` | 4.1 | images are treated as those of JFT-300M |
| `weight_decay=1e-4` | 4.1 | as for JFT-300M |
| `rule.momentum=0.9` | 4.1 | momentum optimizer, 0.9 |
| `batch_size=32` | 4.1 | batches of 32 |
| `schedule.learning_rate=5e-2, schedule.factor=0.1, schedule.every=1_200_000` | 4.1 | 5e-2, 10x down each 1.2 M steps |
| `num_steps=5_000_000` | 4.1 | 5 M steps in all |
| `cluster.num_workers=50, cluster.num_ps=17` | 4.1 | again 50 GPUs and 17 parameter servers |
| `checkpoint_every_steps=50_000, exchange.give_up_after_s=600` | ours | left open |

The paper calls 1.2 M steps 30 epochs, which is 1,281,167 images in batches of 32.

Data: ILSVRC 2012, on request from image-net.org, and not private as JFT-300M is. Without a WordNet file and `--tree`
`downpour prepare imagenet FOLDER --out=data/imagenet` writes 1,000 labels without parents, as this loss needs them.

    downpour chief --recipe=imagenet --set=data.folder=/data/imagenet --ps=... --port=2222   (and so on, or a TFJob)
    downpour local --recipe=imagenet --set=data.folder=data/mine --set=data.num_labels=10 --set=model.width=8 \
        --set=cluster.num_workers=2 --steps=100                                              (a rehearsal)

Hours: 200 on 50 K80s, at the 6.94 global steps a second of the training on JFT-300M; not measured.

Expected: single crop, top-1 77.5 % and top-5 93.9 % (table 1), 1 % better than the authors' published checkpoint.

Deviations from the paper: no weight decay on biases and batch norm; float32 on the wire; the head, 2 M weights, is not
cut into slices, of which the paper speaks for JFT-300M's.
"""

from dataclasses import replace

from downpour.launch.job import Job
from downpour.launch.recipes import jft300m
from downpour.model.data import ImageRecords
from downpour.model.losses import softmax_cross_entropy
from downpour.ps.rules import Momentum
from downpour.ps.schedules import StaircaseExponential


def job() -> Job:
    """Returns the job; see the module."""
    return replace(
        jft300m.job(),
        name="imagenet",
        data=ImageRecords("data/imagenet", num_labels=1_000, resize=340, crop=299, mirror=True, exclusive=True),
        loss=softmax_cross_entropy,
        rule=Momentum(momentum=0.9),
        schedule=StaircaseExponential(learning_rate=5e-2, factor=0.1, every=1_200_000),
        num_steps=5_000_000,
        slicing=(),
    )
