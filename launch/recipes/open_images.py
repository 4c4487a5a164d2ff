"""Open Images: the public stand-in for JFT-300M, 9 million noisily labelled images and a hierarchy of labels.

Paper: Sun et al. 2017, arXiv 1707.02968, section 4.1. Network, loss, optimizer and cluster are those of `jft300m`; the
schedule has as many epochs. The numbers are those of `jft300m`, but for these, as `--set` names them:

| here | where | why |
|---|---|---|
| `data.num_labels=19_969` | ours | image-level labels of version 5, by the data set's page of facts and figures |
| `num_steps=1_125_000` | ours | 4 epochs, as 36 M steps are of JFT-300M: 4 x 9 M images in batches of 32 |
| `schedule.every=93_750` | ours | the rate falls twelve times, as in 36 M steps at every 3 M |
| `checkpoint_every_steps=5_000` | ours | an hour's fifth on the paper's fleet |

Data: Open Images (storage.googleapis.com/openimages), not private: 9,011,219 training images, labelled by machine with
confidences and in part by hand, long-tailed; its hierarchy covers the 600 classes that have boxes, all other labels are
roots. `downpour prepare open-images FOLDER --out=data/open_images` writes it. Another version, or a selection of
labels, has another number of them: `--set=data.num_labels=`, as the error that names both says.

    downpour chief --recipe=open_images --set=data.folder=/data/open_images --ps=... --port=2222   (and so on)
    downpour local --recipe=open_images --set=data.folder=data/openmoji --set=data.num_labels=130 \
        --set=model.width=8 --set=cluster.num_workers=2 --steps=100                                (a rehearsal)

Hours: 45 on 50 K80s, at the 6.94 global steps a second of the training on JFT-300M; not measured.

Expected: mAP@100 on the held-out images far above chance, which the evaluator reports beside it. Not measured: there is
no published number of this network and score.

Deviations from the paper: the data; all numbers above.
"""

from dataclasses import replace

from downpour.launch.job import Job
from downpour.launch.recipes import jft300m
from downpour.model.data import ImageRecords
from downpour.ps.schedules import StaircaseExponential


def job() -> Job:
    """Returns the job; see the module."""
    return replace(
        jft300m.job(),
        name="open_images",
        data=ImageRecords(folder="data/open_images", num_labels=19_969, resize=340, crop=299, mirror=True),
        schedule=StaircaseExponential(learning_rate=1e-3, factor=0.9, every=93_750),
        num_steps=1_125_000,
        checkpoint_every_steps=5_000,
    )
