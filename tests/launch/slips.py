"""Mistakes in a recipe that everybody makes once, each tried through `downpour local`: how long until which message.

    python -m tests.launch.slips

prints a table and, last, `RESULT {json}`: slip -> seconds, exit code, message.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.launch.jobs import LocalJob

_HEAD = """\
import keras
import numpy as np
from dataclasses import dataclass, replace
from downpour.launch.job import Cluster, Job
from downpour.model.data import GeneratedImages
from downpour.model.vision.losses import per_label_logistic
from downpour.ps.policy.averages import Polyak
from downpour.ps.policy.rules import SGD
from downpour.ps.policy.schedules import Constant


def network(size, labels):
    inputs = keras.Input((size, size, 3))
    return keras.Model(inputs, keras.layers.Dense(labels, name="head")(keras.layers.Flatten()(inputs)))


class Net:
    def __init__(self, make=network):
        self.build = make


def tiny(**changes):
    job = dict(
        name="tiny",
        model=Net(),
        data=GeneratedImages(image_size=8, num_labels=5, num_heldout=4),
        loss=per_label_logistic,
        rule=SGD(),
        schedule=Constant(0.01),
        num_steps=20,
        batch_size=4,
        cluster=Cluster(num_ps=2, num_workers=1, threads_per_worker=1),
    )
    return Job(**(job | changes))


"""


@dataclass(frozen=True)
class Slip:
    """A mistake and the right answer to it.

    Attributes:
        code: What follows the common head of the recipe. The line to be named ends with `# here`.
        message: Part of the one error.
        names_line: Whether the error names that line.
    """

    code: str
    message: str
    names_line: bool = True

    def recipe(self) -> str:
        """The whole file."""
        return _HEAD + self.code

    def line(self) -> int:
        """The number of the line with the mistake, from 1."""
        return next(i for i, line in enumerate(self.recipe().splitlines(), 1) if line.endswith("# here"))


_HERE = "  # here"

_DATA = """
class Data(GeneratedImages):
    def {method}(self, **arguments):
        {body}

def job():
    return tiny(data=Data(image_size=8, num_labels=5, num_heldout=4))
"""


def _loss(body: str, mark: str = "") -> str:
    return f"def loss(labels, outputs):{mark}\n    {body}\n\ndef job():\n    return tiny(loss=loss)\n"


def _net(body: str, mark: str = "") -> str:
    return f"def build(size, labels):{mark}\n    {body}\n\ndef job():\n    return tiny(model=Net(build))\n"


SLIPS = {
    "a loss by name": Slip(
        'def job():\n    return tiny(\n        loss="categorical_crossentropy")\n',
        "loss is 'categorical_crossentropy', a text; give",
        False,
    ),
    "a rule by name": Slip('def job():\n    return tiny(rule="adam")\n', "rule is 'adam', a text; give one of", False),
    "a model instead of a builder": Slip(
        "def job():\n    return tiny(model=network(8, 5))\n", "model is a Functional that is built already", False
    ),
    "a loss that returns a vector": Slip(
        _loss("return keras.ops.mean((labels - outputs) ** 2, axis=1)", _HERE),
        "the loss returns an array of shape (4,)",
    ),
    "a wrong name in the loss": Slip(
        _loss("return keras.ops.meen((labels - outputs) ** 2)  # here"),
        "AttributeError: module 'keras.ops' has no attribute 'meen'",
    ),
    "a wrong name in the model": Slip(
        _net("return keras.Sequential([keras.layers.Dens(labels)])  # here"),
        "AttributeError: module 'keras.layers' has no attribute 'Dens'",
    ),
    "a wrong name in the data": Slip(
        _DATA.format(method="training", body="return self.pictures  # here"),
        "AttributeError: 'Data' object has no attribute 'pictures'",
    ),
    "a wrong type in the loss": Slip(_loss("return keras.ops.mean(labels - outputs) + 'x'  # here"), "TypeError: "),
    "a model of another size": Slip(
        _net("return network(size, labels + 1)"), "the model gives (4, 6) and the data labels (4, 5)", False
    ),
    "a model for other images": Slip(
        _net("return network(size + 1, labels)"),
        "the data give images of shape (8, 8, 3), the model takes (9, 9, 3)",
        False,
    ),
    "ValueError in the recipe": Slip(
        "def job():\n    raise ValueError('no such year')  # here\n", "ValueError: no such year"
    ),
    "a syntax error": Slip("def job()  # here\n    return tiny()\n", "SyntaxError: expected ':'"),
    "a missing import": Slip(
        "import nonsuch  # here\n\ndef job():\n    return tiny()\n", "ModuleNotFoundError: No module named 'nonsuch'"
    ),
    "a regression": Slip(
        _DATA.format(
            method="heldout",
            body="return __import__('contextlib').nullcontext([(np.zeros((4, 8, 8, 3), 'f'), np.full((4, 5), 0.25))])",
        ),
        "labels hold 0.25, but scores (mAP@100) are of labels that are 0 or 1",
        False,
    ),
    "training batches of one's own kind": Slip(
        _DATA.format(method="training", body="yield np.zeros((4, 8, 8, 3)), np.zeros((4, 5))"),
        "data source Data: training() returns a generator; return downpour.model.data.Batches",
        False,
    ),
    "arrays that are filled again": Slip(
        _DATA.format(
            method="training",
            body="given = super().training(**arguments); images = np.empty((4, 8, 8, 3), 'f')\n"
            "        from downpour.model.data import Batches\n"
            "        def again():\n"
            "            for some, labels in given:\n"
            "                images[:] = some\n"
            "                yield (images, labels), given.position\n"
            "        return Batches(again(), given.counts)",
        ),
        "two batches share an array",
        False,
    ),
    "leases ignored": Slip(
        _DATA.format(
            method="training",
            body="from downpour.model.data.order import forever; "
            "arguments['leases'] = forever(100, 4); return super().training(**arguments)",
        ),
        "data source Data is at position 4 and has taken leases of 0 positions",
        False,
    ),
    "two outputs": Slip(
        _net(
            "i = keras.Input((size, size, 3)); x = keras.layers.Flatten()(i); d = keras.layers.Dense\n"
            "    return keras.Model(i, [d(labels)(x), d(1)(x)])"
        ),
        "the model gives 2 outputs, and data of labelled images give one array [B, labels]; for several inputs",
        False,
    ),
    "two inputs": Slip(
        _net(
            "i = [keras.Input((size, size, 3)), keras.Input((2,))]\n"
            "    return keras.Model(i, keras.layers.Dense(labels)(i[1]))"
        ),
        "the model has 2 inputs, and data of labelled images give one array; for several inputs or outputs",
        False,
    ),
    "sample weights": Slip(
        _DATA.format(
            method="heldout",
            body="return __import__('contextlib').nullcontext([(np.zeros((4, 8, 8, 3), 'f'), np.zeros((4, 5)), 1)])",
        ),
        "data source Data gives 3 values a batch; give a pair",
        False,
    ),
    "a compiled model": Slip(
        _net("model = network(size, labels); model.compile('sgd', 'mse', metrics=['mae']); return model", _HERE),
        "Net.build returned a compiled model, whose optimizer, loss and metrics would not be used",
    ),
    "a schedule of one's own": Slip(
        "@dataclass(frozen=True)\nclass Mine:\n    def rate(self, version):\n        return 0.1\n\n"
        "def job():\n    return tiny(schedule=Mine())\n",
        "schedule is a Mine, a class of your own; shards run compiled schedules",
        False,
    ),
    "a batch larger than the data": Slip(
        "def job():\n    return tiny(batch_size=64, data=GeneratedImages(8, 5, num_records=32))\n",
        "batch_size is 64, but there are only 32 training records",
        False,
    ),
}


# What the first users met; the others are tried in one process by the tests, and here.
THROUGH_THE_LAUNCHER = (
    "a loss by name",
    "a rule by name",
    "a model instead of a builder",
    "a loss that returns a vector",
    "two outputs",
    "a wrong name in the loss",
    "a wrong name in the model",
    "a wrong name in the data",
    "ValueError in the recipe",
    "a missing import",
)


def run(slip: Slip, folder: Path) -> tuple[LocalJob, float]:
    """The job, ended, and the seconds it took."""
    path = folder / "mine.py"
    path.write_text(slip.recipe())
    begin = time.monotonic()
    job = LocalJob(path, folder)
    try:
        job.end()
    except subprocess.TimeoutExpired:
        job.kill()
        raise
    return job, time.monotonic() - begin


def main() -> None:
    """Tries every slip, or those whose names are arguments."""
    results = {}
    for name in sys.argv[1:] or SLIPS:
        with tempfile.TemporaryDirectory() as folder:
            job, seconds = run(SLIPS[name], Path(folder))
            message = job.stderr.splitlines()[-1].replace(folder + "/", "")
            results[name] = {"seconds": round(seconds, 1), "exit_code": job.process.returncode, "message": message}
            print(f"| {name} | {seconds:.1f} | {message} |", flush=True)
    print(f"RESULT {json.dumps(results)}")


if __name__ == "__main__":
    main()
