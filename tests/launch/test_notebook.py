"""`downpour.fit` in a notebook: trains, shows progress and history, stops, resumes, predicts; leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import wait_until
from tests.launch.jobs import START_S

nbclient = pytest.importorskip("nbclient", reason="the extra `dev` installs it, with ipykernel")
nbformat = pytest.importorskip("nbformat")

pytestmark = pytest.mark.process

OWN = """
import keras


@keras.saving.register_keras_serializable("own")
class Doubled(keras.layers.Layer):
    def call(self, inputs):
        return 2 * inputs
"""

PREPARE = """
import keras, numpy as np
import downpour
from own import Doubled

x = np.random.default_rng(0).standard_normal((800, 4)).astype("float32")
y = x.sum(1, keepdims=True)

def build(layer):
    model = keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(8, "relu"), keras.layers.Dense(1)], name="m")
    model.compile(optimizer=keras.optimizers.Adam(0.01), loss="mse", metrics=["mae"])
    return model
"""

TRAIN = """
model = build(Doubled())
run = downpour.fit(model, (x[:600], y[:600]), validation_data=(x[600:], y[600:]), epochs=3, batch_size=20)
run.wait();
"""

PLOT = """
%matplotlib inline
import matplotlib.pyplot as plt
plt.plot(run.history["loss"], label="loss")
plt.plot(run.history["val_loss"], label="val_loss")
assert len(run.history["val_loss"]) == 3
plt.legend(); plt.show()
"""

PREDICT = 'print("error", float(np.abs(run.model.predict(x[:50], verbose=0) - y[:50]).mean()))'

OF_THE_NOTEBOOK = """
class Tripled(keras.layers.Layer):
    def call(self, inputs):
        return 3 * inputs

try:
    downpour.fit(build(Tripled()), (x, y), run_dir="refused")
except ValueError as error:
    print(error)
"""

SLOWLY = """
import time
model = build(Doubled())
arguments = dict(validation_data=(x[600:], y[600:]), batch_size=20, run_dir="stopped")
run = downpour.fit(model, (x[:600], y[:600]), epochs=1000, **arguments)
while len(run.history["loss"]) < 2:
    time.sleep(0.05)
"""

STOP = """
run.stop()
num_epochs = len(run.history["loss"])
print("stopped after", num_epochs, "epochs; running:", run.running)
summary = run.wait()
assert summary == run.summary and summary["ended_by"] == "stop" and summary["global_steps"] >= 30 * num_epochs, summary
"""

RESUME = """
run = downpour.fit(build(Doubled()), (x[:600], y[:600]), epochs=num_epochs + 3, resume=True, **arguments)
summary = run.wait(verbose=0)
assert summary["resumed_from"] >= 30 * num_epochs, summary
assert run.epoch == list(range(num_epochs + 3)), run.history
assert all(np.isfinite(values).all() and len(values) == num_epochs + 3 for values in run.history.values()), run.history
"""


class Notebook:
    """A notebook that runs in a folder, cell by cell."""

    def __init__(self, folder: Path) -> None:
        (folder / "own.py").write_text(OWN)
        self.node = nbformat.v4.new_notebook()
        resources = {"metadata": {"path": str(folder)}}
        self.client = nbclient.NotebookClient(self.node, timeout=240, kernel_name="python3", resources=resources)

    def run(self, source: str) -> list[Any]:
        """Runs a cell; returns its outputs."""
        cell = nbformat.v4.new_code_cell(source)
        self.node.cells.append(cell)
        self.client.execute_cell(cell, len(self.node.cells) - 1)
        return list(cell.outputs)

    def text(self, source: str) -> str:
        """Runs a cell; returns what it printed."""
        return "".join(output["text"] for output in self.run(source) if output["output_type"] == "stream")

    @property
    def pid(self) -> int:
        """Process id of the kernel."""
        assert self.client.km is not None
        return int(self.client.km.provisioner.pid)  # type: ignore[union-attr]


@pytest.fixture
def notebook(tmp_path: Path) -> Iterator[Notebook]:
    made = Notebook(tmp_path)
    with made.client.setup_kernel():
        yield made


@pytest.fixture
def left_behind(tmp_path: Path) -> Callable[[], list[psutil.Process]]:
    """Returns processes that mention the test's folder in their command line."""
    return lambda: [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])]


@pytest.mark.slow
def test_a_notebook_trains_plots_and_predicts(notebook: Notebook, left_behind: Any) -> None:
    notebook.run(PREPARE)
    refused = notebook.text(OF_THE_NOTEBOOK)
    assert (
        "Tripled" in refused and "defined in a notebook or at a prompt" in refused and "top level of a file" in refused
    )
    shown = notebook.text(TRAIN)
    for epoch in (1, 2, 3):
        assert f"Epoch {epoch}/3  30/30 ━━━━━━━━━━━━━━━━━━━━ " in shown, shown
    assert "val_mae: " in shown and "[worker" not in shown
    assert any("image/png" in output.get("data", {}) for output in notebook.run(PLOT))
    assert float(notebook.text(PREDICT).split()[-1]) < 1.0
    assert not left_behind()


@pytest.mark.slow
def test_a_notebook_stops_in_the_middle_and_resumes(notebook: Notebook, left_behind: Any) -> None:
    notebook.run(PREPARE)
    notebook.run(SLOWLY)
    assert "running: False" in notebook.text(STOP) and not left_behind()
    notebook.run(RESUME)
    assert float(notebook.text(PREDICT).split()[-1]) < 1.0 and not left_behind()


@pytest.mark.slow
def test_an_interrupt_stops_the_run_and_a_dead_kernel_leaves_none(
    tmp_path: Path, notebook: Notebook, left_behind: Any
) -> None:
    notebook.run(PREPARE)
    notebook.run(SLOWLY)
    notebook.run("import signal, threading; threading.Timer(1, signal.raise_signal, [signal.SIGINT]).start()")
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="KeyboardInterrupt"):
        notebook.run("run.wait()")
    assert notebook.text("print(run.running, run.history['loss'][:1] != [])") == "False True\n" and not left_behind()
    notebook.run(SLOWLY.replace('"stopped"', '"killed"'))
    assert left_behind()
    os.kill(notebook.pid, signal.SIGKILL)
    wait_until(lambda: not left_behind(), "the end of all processes", START_S)
    with contextlib.suppress(nbclient.exceptions.DeadKernelError, nbclient.exceptions.CellExecutionError):
        notebook.run("1")
