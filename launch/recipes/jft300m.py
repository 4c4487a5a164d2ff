"""JFT-300M: the training of ResNet-101 as published, in full. For reference: its data is private.

Paper: Sun, Shrivastava, Singh, Gupta, "Revisiting Unreasonable Effectiveness of Data in Deep Learning Era", ICCV 2017,
arXiv 1707.02968, section 4.1 ("Training on JFT-300M Data"). Every number, as `--set` names it, and what the section
says of it; docs/recipes.md has all of them in one table:

| here | where | the paper's statement, paraphrased |
|---|---|---|
| `model.depth=101` | 4.1 | a standard residual network with 101 layers, for ease of comparison |
| `data.num_labels=18_291` | 4.1 | a fully connected layer with 18,291 outputs ends the network |
| `loss=per_label_logistic` | 4.1 | labels are not exclusive: logistic loss per label, absent labels are negatives |
| ancestors filled in (`labels.json` is a tree) | 4.1 | missing labels are filled in: an apple is also fruit |
| `data.resize=340, data.crop=299` | 4.1 | images are resized to 340 x 340, then randomly cropped to 299 x 299 |
| values in [-1, 1] (`ImageRecords`) | 4.1 | pixels are normalised to [-1, 1], each channel by itself |
| `data.mirror=True` | 4.1 | random reflection augments the data |
| `weight_decay=1e-4` | 4.1 | weight decay is 1e-4 |
| `ResNet`: batch norm after each convolution | 4.1 | batch normalisation follows all convolutional layers |
| `rule.momentum=0.9` | 4.1 | the optimizer is RMSProp with momentum 0.9 |
| `batch_size=32` | 4.1 | the batch size is 32 |
| `schedule.learning_rate=1e-3, schedule.factor=0.9, schedule.every=3_000_000` | 4.1 | 1e-3, times 0.9 every 3 M steps |
| `cluster.num_workers=50` | 4.1 | asynchronous gradient descent on 50 GPUs (K80) |
| `cluster.num_ps=17` | 4.1 | Downpour SGD, with 17 parameter servers that store and update the weights |
| `slicing.0.num_slices=50` | 4.1 | the last layer, with over 36 M weights, is split vertically into 50 |
| `num_steps=36_000_000` | 4.2 | the reported model stopped at 36 M (4 epochs, 2 months) of 90 M |
| `rule.rho=0.9, rule.epsilon=1e-10` | ours | left open; TensorFlow's defaults |
| `checkpoint_every_steps=50_000, exchange.give_up_after_s=600` | ours | left open |

Also left open: no weight decay on biases and batch norm; float32 on the wire. The paper applies the gradients of all
workers as they come; the default here lets workers in one after another, looks ahead, and makes one update of the mean
of six pushes: `--set=staleness=Keep --set='pace=Async(ramp=0)'` is the paper's way.

Data: a folder of `train-*.tfrecord` and `heldout-*.tfrecord` (each record an image and its labels) with `labels.json`
(names and parents), as `downpour.model.data.ImageRecords` describes. JFT-300M itself is Google's. The public stand-in
of its kind and nearly its size is the recipe `open_images`, the small one `quickstart`; any folder of that form works.

    downpour chief --recipe=jft300m --set=data.folder=/data/jft --ps=... --port=2222   (and so on, or a TFJob)
    downpour local --recipe=jft300m --set=data.folder=data/openmoji --set=data.num_labels=130 \
        --set=cluster.num_workers=2 --steps=100                                        (a rehearsal)

Hours: 1,441 on 50 K80s, two months (6.94 global steps a second).

Expected: the paper scores mAP@100 on a held-out set of 14,000 images during training (section 4.2) and reports the
transfer to other tasks, not a number for this score alone.
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
        name="jft300m",
        model=ResNet(depth=101),
        data=ImageRecords(folder="data/jft300m", num_labels=18_291, resize=340, crop=299, mirror=True),
        loss=per_label_logistic,
        rule=RMSProp(rho=0.9, momentum=0.9, epsilon=1e-10),
        schedule=StaircaseExponential(learning_rate=1e-3, factor=0.9, every=3_000_000),
        num_steps=36_000_000,
        batch_size=32,
        slicing=(Slicing("head/*", num_slices=50),),
        weight_decay=1e-4,
        cluster=Cluster(num_ps=17, num_workers=50),
        exchange=Exchange(codec="float32", give_up_after_s=600.0),
        checkpoint_every_steps=50_000,
    )
