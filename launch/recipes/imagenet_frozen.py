"""ImageNet on frozen features of a JFT-300M checkpoint: a linear head, and nothing else, is trained.

Paper: Sun et al. 2017, arXiv 1707.02968, section 4.3: a representation is judged frozen, as a feature extractor, or as
the start for fine-tuning. It gives no settings of a linear head on ImageNet, so those of `imagenet_finetune` stand in.
The numbers are those of `imagenet_finetune`, and:

| here | where | the paper's statement, paraphrased |
|---|---|---|
| `model.frozen=stem_*,stage*` | 4.3 | the network up to its head is a frozen feature extractor |

Frozen layers compute as in inference, batch norm with its moving averages; workers push the head alone, 2.0 M of
44.5 M parameters.

Data: as for `imagenet_finetune`, whose start this has; JFT-300M is private.

    downpour local --recipe=imagenet_frozen --init_from=runs/jft300m --init_only='stem_*,stage*' \
        --set=data.folder=data/mine --set=data.num_labels=10 --set=cluster.num_workers=2 --steps=100  (a rehearsal)

Where images need no augmentation, `downpour features` and `downpour probe` compute them once: docs/transfer.md.

Hours: fewer than the 160 of `imagenet_finetune`, as no gradient passes the frozen layers; not measured.

Expected: less than `imagenet_finetune`; the paper reports no number.

Deviations from the paper: those of `imagenet_finetune`, and its schedule, which the paper does not give for this.
"""

from dataclasses import replace

from downpour.launch.job import Job
from downpour.launch.recipes import imagenet_finetune
from downpour.model.resnet import ResNet


def job() -> Job:
    """Returns the job; see the module."""
    return replace(
        imagenet_finetune.job(), name="imagenet_frozen", model=ResNet(depth=101, frozen=("stem_*", "stage*"))
    )
