"""JFT-300M: the training of ResNet-101 as published, in full. For reference: its data is private.

Paper: Sun, Shrivastava, Singh, Gupta, "Revisiting Unreasonable Effectiveness of Data in Deep Learning Era", ICCV 2017,
arXiv 1707.02968, section 4.1 ("Training on JFT-300M Data"). Every number below and what the section says of it:

| here | the paper's statement, paraphrased |
|---|---|
| `depth=101` | a standard residual network with 101 layers, for ease of comparison |
| `num_labels=18_291` | a fully connected layer with 18,291 outputs ends the network |
| `per_label_logistic` | labels are not exclusive: logistic loss per label, absent labels are negatives |
| ancestors filled in (`labels.json` is a tree) | missing labels are filled in by a hierarchy: apple is also fruit |
| `resize=340, crop=299` | images are resized to 340 x 340, then randomly cropped to 299 x 299 |
| values in [-1, 1] (`ImageRecords`) | pixels are normalised to [-1, 1], each channel by itself |
| `mirror=True` | random reflection augments the data |
| `weight_decay=1e-4` | weight decay is 1e-4 |
| `ResNet`: batch norm after each convolution | batch normalisation follows all convolutional layers |
| `RMSProp(momentum=0.9)` | the optimizer is RMSProp with momentum 0.9 |
| `batch_size=32` | the batch size is 32 |
| `learning_rate=1e-3, factor=0.9, every=3_000_000` | 1e-3 at first, times 0.9 every 3 M steps |
| `num_workers=50` | asynchronous gradient descent on 50 GPUs (K80) |
| `num_ps=17` | Downpour SGD, with 17 parameter servers that store and update the weights |
| `Slicing("head/*", num_slices=50)` | the last layer, with over 36 M weights, is split vertically into 50 |
| `num_steps=36_000_000` | the reported model stopped at 36 M (4 epochs, 2 months) of 90 M |

Data: a folder of `train-*.tfrecord` and `heldout-*.tfrecord` (each record an image and its labels) with `labels.json`
(names and parents), as `downpour.model.data.ImageRecords` describes. JFT-300M itself is Google's. The public stand-in
is OpenMoji through the recipe `quickstart`; any folder of that form works here.

    downpour chief --recipe=jft300m --set=data.folder=/data/jft --ps=... --port=2222   (and so on, or a TFJob)
    python -m downpour.launch.local --recipe=jft300m --set=data.folder=data/openmoji --set=data.num_labels=130 \
        --set=cluster.num_workers=2 --steps=100                                        (a rehearsal)

Expected: about two months on 50 K80s (6.9 global steps a second); the paper scores mAP@100 on a held-out set of
14,000 images during training (section 4.2) and reports the transfer to other tasks, not a number for this score alone.

What section 4.1 leaves open, and what we took: RMSProp's decay (0.9, TensorFlow's default) and epsilon (TensorFlow's
1e-10); no weight decay on biases and batch norm; float32 on the wire; one checkpoint every 50,000 steps.
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
