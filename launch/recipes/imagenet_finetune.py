"""ImageNet from a JFT-300M checkpoint: all layers of ResNet-101 fine-tuned.

Paper: Sun et al. 2017, arXiv 1707.02968, section 5.1 ("Image Classification"), which judges the representation as the
start for fine-tuning (section 4.3). The numbers are those of `imagenet`, but for these, as `--set` names them:

| here | where | the paper's statement, paraphrased |
|---|---|---|
| `schedule.learning_rate=1e-3` | 5.1 | the initial rate is 1e-3 |
| `num_steps=4_000_000` | 5.1 | 4 M steps |

Data: as for `imagenet`, and a checkpoint of `jft300m`, the paper's that of 36 M steps. JFT-300M is private; a run of
`open_images` or of any ResNet-101 of ours stands in. The head, of other labels, begins anew.

    downpour local --recipe=imagenet_finetune --init_from=runs/jft300m --init_only='stem_*,stage*' \
        --set=data.folder=data/mine --set=data.num_labels=10 --set=cluster.num_workers=2 --steps=100  (a rehearsal)

Hours: 160 on 50 K80s, at 6.94 global steps a second; not measured.

Expected: single crop, top-1 79.2 % and top-5 94.7 % (table 1), beside 77.5 % and 93.9 % of `imagenet`.

Deviations from the paper: those of `imagenet`. It says nothing of the optimizer's state, which begins anew here.
"""

from dataclasses import replace

from downpour.launch.job import Job
from downpour.launch.recipes import imagenet
from downpour.ps.schedules import StaircaseExponential


def job() -> Job:
    """Returns the job; see the module."""
    return replace(
        imagenet.job(),
        name="imagenet_finetune",
        schedule=StaircaseExponential(learning_rate=1e-3, factor=0.1, every=1_200_000),
        num_steps=4_000_000,
    )
