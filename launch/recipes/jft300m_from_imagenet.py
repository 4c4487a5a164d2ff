"""JFT-300M from an ImageNet checkpoint: the schedule of `jft300m`, another start. For reference: its data is private.

Paper: Sun et al. 2017, arXiv 1707.02968, section 4.2: two starts, random and from an ImageNet checkpoint, with the same
schedule (figure 3). The start is a flag, `--init_from`; the head, of 18,291 labels in place of 1,000, begins anew.

The numbers are those of `jft300m`, all of them.

Data: as for `jft300m`, and a run of `imagenet`.

    downpour local --recipe=jft300m_from_imagenet --init_from=runs/imagenet --init_only='stem_*,stage*' \
        --set=data.folder=data/openmoji --set=data.num_labels=130 --set=cluster.num_workers=2 --steps=100 (a rehearsal)

On a fleet, `--init_from` and `--init_only` are flags of the chief alone.

Hours: as `jft300m`, 1,441 on 50 K80s.

Expected: better mAP@100 than `jft300m` for the first 15 M steps; then the two are on par, says section 4.2.

Deviations from the paper: those of `jft300m`. It says nothing of the optimizer's state, which begins anew here.
"""

from dataclasses import replace

from downpour.launch.job import Job
from downpour.launch.recipes import jft300m


def job() -> Job:
    """Returns the job; see the module."""
    return replace(jft300m.job(), name="jft300m_from_imagenet")
