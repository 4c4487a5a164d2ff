"""`downpour.fit`: whole runs with real roles, and what is refused before one starts."""

from __future__ import annotations

import dataclasses
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import downpour
from downpour.launch.job import recipe
from downpour.launch.job.build import build
from downpour.launch.job.written import imported
from downpour.model.data import Examples, Stream
from downpour.model.data.order import Lease
from downpour.ps.checkpoint import manifest as checkpoint
from downpour.ps.layout import Layout
from downpour.worker.chief import owner
from tests import traces
from tests.launch.fleet import first_of_free
from tests.parity.models import MODELS, data_of

SCRIPT = """
import dataclasses, json, sys, time, urllib.request
import keras, numpy as np
import downpour


@dataclasses.dataclass
class Lines(downpour.Sink):
    path: str

    def on_entry(self, entry):
        with open(self.path, "a") as file:
            file.write(json.dumps(entry) + "\\n")


def scraped(target, seconds=120):
    # The metrics of a process, once it serves some.
    while True:
        try:
            return urllib.request.urlopen(f"http://{target}/metrics", timeout=5).read().decode()
        except OSError:
            seconds -= 0.1
            assert seconds > 0, target
            time.sleep(0.1)


def own_loss(labels, outputs):
    return keras.ops.mean(keras.ops.square(labels - outputs), axis=-1)


def slope(x):
    return keras.ops.where(x > 0, x, 0.1 * x)


class Block(keras.layers.Layer):
    # Keras numbers the layers in it otherwise here than in the processes of the job, which have made no others.
    def __init__(self, **more):
        super().__init__(**more)
        self.first, self.second = keras.layers.Dense(8, activation=slope), keras.layers.Dense(4)

    def build(self, shape):
        self.first.build(shape)
        self.second.build((*shape[:-1], 8))

    def call(self, inputs):
        return 2 * inputs + self.second(self.first(inputs))


def examples(number, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((number, 4)).astype("f"), rng.integers(0, 9, (number, 1))
    return {"a": a, "b": b}, {"sum": a.sum(1, keepdims=True), "kind": b[:, 0] % 3}


if __name__ == "__main__":
    a, b = keras.Input((4,), name="a"), keras.Input((1,), dtype="int32", name="b")
    unused = keras.layers.Dense(3), keras.layers.Dense(4)
    x = keras.layers.Concatenate()([Block()(a), keras.layers.Flatten()(keras.layers.Embedding(9, 4)(b))])
    x = keras.layers.Dense(16, activation=slope)(x)
    outputs = {"sum": keras.layers.Dense(1, name="sum")(x), "kind": keras.layers.Dense(3, name="kind")(x)}
    model = keras.Model({"a": a, "b": b}, outputs, name="two")
    model.compile(
        optimizer=keras.optimizers.Adam(0.02),
        loss={"sum": own_loss, "kind": keras.losses.SparseCategoricalCrossentropy(from_logits=True)},
        metrics={"kind": ["accuracy"]},
    )
    recorded, seen = keras.callbacks.History(), []
    best = keras.callbacks.ModelCheckpoint(sys.argv[1] + "/{epoch}.keras", save_best_only=True)
    own = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append((epoch, logs["loss"])))
    stopping = keras.callbacks.EarlyStopping(patience=50, restore_best_weights=True)
    run = downpour.fit(
        model, examples(800, 0), validation_data=examples(100, 1), validation_sets={"more": examples(60, 2)}, epochs=6,
        batch_size=40, workers=2, shards=2, run_dir=sys.argv[1], callbacks=[recorded, best, own, stopping], trace=2,
        sinks=[Lines(sys.argv[1] + "/lines")], metrics_port=int(sys.argv[2]),
    )
    assert "downpour_job_info" in scraped(f"127.0.0.1:{sys.argv[2]}")
    summary = run.wait(240)
    assert summary["global_steps"] >= 120, summary
    lines = [json.loads(line) for line in open(sys.argv[1] + "/lines")]
    assert {"loss", "score", "event"} <= {line["kind"] for line in lines}, lines  # progress: of runs of 2 s
    targets = json.load(open(sys.argv[1] + "/metrics_targets.json"))
    assert {one["labels"]["role"] for one in targets} == {"chief", "evaluator", "ps", "worker"} and len(targets) == 6
    history = run.history
    assert {len(values) for values in history.values()} == {6}, history  # though an epoch takes a tenth of a second
    assert np.isfinite(list(history.values())).all() and len(set(history["val_loss"])) >= 5, history
    assert history["val_kind_accuracy"][-1] > 0.9 and history["val_more_kind_accuracy"][-1] > 0.8, history
    assert recorded.history == history and seen == list(enumerate(history["loss"])), (recorded.history, history)
    x, y = examples(100, 1)
    scores = run.model.evaluate(x, y, verbose=0, return_dict=True)
    assert abs(scores["loss"] - min(history["val_loss"])) < 1e-4 * abs(scores["loss"]) + 1e-5, (scores, history)
    objects = {"Block": Block, "slope": slope, "own_loss": own_loss}
    saved = keras.saving.load_model(sys.argv[1] + f"/{1 + int(np.argmin(history['val_loss']))}.keras", objects)
    assert all((a == b).all() for a, b in zip(saved.get_weights(), run.model.get_weights(), strict=True))
    try:
        downpour.fit(model, examples(800, 0), epochs=3, run_dir=sys.argv[1])
    except ValueError as error:
        assert "holds another run" in str(error)
    else:
        raise AssertionError("an earlier run is replaced")
    print("all is well")
"""


@pytest.mark.process
def test_a_script_trains_a_model_of_its_own(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(tmp_path / "run"), str(first_of_free(6))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.endswith("all is well\n"), done.stderr[-3000:]
    traces.check(traces.read(tmp_path / "run" / "trace.json"), num_workers=2, num_shards=2, num_steps=2)
    assert re.findall(r"Epoch (\d)/6  20/20 .*- loss: [\d.]+ - .*val_more_loss: [\d.]+", done.stdout) == list("123456")


def dry(tmp_path: Path, model: Any, data: Any = None, **more: Any) -> Any:
    x = np.zeros((80, 6), np.float32)
    return downpour.fit(
        model,
        (x, x[:, :1]) if data is None else data,
        dry_run=True,
        batch_size=8,
        **{"run_dir": tmp_path / "run"} | more,
    )


@pytest.mark.parametrize("name", ["decay_and_schedule", "dict_inputs_two_losses", "average", "text_vectorization"])
def test_the_recipe_says_what_the_compiled_model_says(tmp_path: Path, name: str) -> None:
    model = MODELS[name]()
    run = dry(tmp_path, model, data_of(name), epochs=2)
    job = recipe.load(run.recipe)
    assert (job.num_steps, job.loss, job.exchange.codec) == (20, None, "float32")
    assert not run.running and not (tmp_path / "run" / "logs").exists()
    given: Any = job.data
    assert isinstance(given, Examples) and given.num_records == 80
    loaded = job.model()  # type: ignore[operator]
    assert loaded.compiled and [v.path for v in loaded.variables] == [v.path for v in model.variables]


def adapted() -> keras.Model:
    """Layers that have learned from data before training: vocabularies, a mean."""
    text = keras.layers.TextVectorization(output_sequence_length=3)
    text.adapt(["red green", "green blue", "blue white"])
    colour, number = keras.layers.StringLookup(), keras.layers.IntegerLookup(output_mode="one_hot")
    colour.adapt(["red", "green", "blue"])
    number.adapt(np.array([[7], [70], [700]]))
    scale = keras.layers.Normalization()
    scale.adapt(np.array([[1.0, 10.0], [3.0, 90.0]]))
    inputs = {
        "text": keras.Input((), dtype="string", name="text"),
        "colour": keras.Input((1,), dtype="string", name="colour"),
        "number": keras.Input((1,), dtype="int64", name="number"),
        "scale": keras.Input((2,), name="scale"),
    }
    embed = keras.layers.Embedding(12, 2)
    parts = [embed(text(inputs["text"])), embed(colour(inputs["colour"]))]
    flat = [keras.layers.Flatten()(part) for part in parts]
    x = keras.layers.Concatenate()([*flat, number(inputs["number"]), scale(inputs["scale"])])
    model = keras.Model(inputs, keras.layers.Dense(1)(x), name="adapted")
    model.compile(optimizer="sgd", loss="mse")
    return model


def test_lora_and_what_is_trained_are_as_they_were_given(tmp_path: Path) -> None:
    """Keras loads LoRA's matrices as zeros, with which nothing would be trained."""
    model = MODELS["lora"]()
    model.layers[1].lora_kernel_b.assign(np.ones_like(model.layers[1].lora_kernel_b))
    model.layers[2].kernel.trainable = False
    model.compile(optimizer="sgd", loss="mse")
    loaded, layout = build(recipe.load(dry(tmp_path, model, data_of("lora")).recipe))
    for mine, theirs in zip(loaded.variables, model.variables, strict=True):
        assert (mine.path, mine.trainable) == (theirs.path, theirs.trainable)
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy(), err_msg=mine.path)
    assert [v.name for v in layout.variables if v.is_trained] == [v.path for v in model.trainable_variables]


class Within(keras.metrics.MeanMetricWrapper):
    """The share of outputs within a distance of the targets."""

    def __init__(self, distance: float, name: str = "within", **more: Any) -> None:
        super().__init__(lambda y, outputs: keras.ops.cast(abs(y - outputs) < distance, "float32"), name, **more)
        self.distance = distance

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype, "distance": self.distance}

    @classmethod
    def from_config(cls, config: Any) -> Within:
        return cls(**config)


def test_a_tuple_of_inputs_and_a_metric_class_of_a_file_are_loaded_again(tmp_path: Path) -> None:
    inputs = keras.Input((6,)), keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Concatenate()(inputs)), name="pair")
    model.compile(optimizer="sgd", loss="mse", metrics=[Within(0.5)])
    job = recipe.load(dry(tmp_path, model, ((X, X[:, :2]), X[:, :1])).recipe)
    loaded, _ = build(job)
    data: Any = job.data
    with data.training(batch_size=8, seed=0, leases=iter([Lease(0, 0, 8)])) as batches:
        x, y, _ = next(batches)
    assert type(x) is tuple and [part.shape for part in x] == [(8, 6), (8, 2)]
    scores = loaded.test_on_batch(tuple(map(tf.convert_to_tensor, x)), y, return_dict=True)
    assert scores == {"loss": 0.0, "within": 1.0}


class Widened(keras.layers.Layer):
    """Forgets its width when it is saved."""

    def __init__(self, width: int = 2, **more: Any) -> None:
        super().__init__(**more)
        self.hidden, self.out = keras.layers.Dense(width), keras.layers.Dense(3)
        self.width = 2

    def build(self, shape: Any) -> None:
        self.hidden.build(shape)
        self.out.build((*shape[:-1], self.hidden.units))

    def call(self, inputs: Any) -> Any:
        return self.out(self.hidden(inputs))

    def get_config(self) -> dict[str, Any]:
        return super().get_config()


def build_plain() -> keras.Model:
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2), keras.layers.Dense(1)], name="built")
    model.compile(optimizer=keras.optimizers.AdamW(weight_decay=0.1), loss="mse")
    model.optimizer.exclude_from_weight_decay(var_names=["bias"])
    return model


def test_what_layers_have_learned_before_travels_with_the_model(tmp_path: Path) -> None:
    model = adapted()
    x = {
        "text": np.array(["white red", "blue blue green"] * 8, object),
        "colour": np.array([["green"], ["black"]] * 8, object),
        "number": np.array([[700], [8]] * 8),
        "scale": np.array([[2.0, 50.0], [9.0, 9.0]] * 8, np.float32),
    }
    job = recipe.load(dry(tmp_path, model, (x, np.zeros((16, 1), np.float32))).recipe)
    loaded, layout = build(job)
    tensors = {name: tf.convert_to_tensor(value) for name, value in x.items()}
    np.testing.assert_array_equal(loaded(tensors), model(tensors))
    assert [v.name for v in layout.variables] == [v.path for v in model.trainable_variables], "it is not exchanged"


def test_a_class_that_is_made_again_otherwise_is_noticed(tmp_path: Path) -> None:
    run = dry(tmp_path, compiled(Widened(5)))
    with pytest.raises(
        ValueError, match=r"saved with variables of shapes 6 x 5; 5; .* is loaded with 6 x 2; 2; |could not be loaded"
    ):
        build(recipe.load(run.recipe))


def test_a_function_may_build_the_model_in_every_process(tmp_path: Path) -> None:
    keras.layers.Dense(3)  # makes Keras number layers otherwise than in a new process
    run = dry(tmp_path, build_plain)
    job = recipe.load(run.recipe)
    assert job.model is build_plain and not (tmp_path / "run" / "job" / "model.keras").exists()
    assert [v.name for v in build(job)[1].variables if not v.decoupled_decay] == [
        "built/dense/bias",
        "built/dense_1/bias",
    ]


def compiled(layer: Any = None, **more: Any) -> keras.Model:
    model = keras.Sequential([keras.Input((6,)), *([layer] if layer else []), keras.layers.Dense(1)])
    model.compile(**({"loss": "mse", "optimizer": "sgd"} | more))
    return model


def classes() -> keras.Model:
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, activation="softmax")])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(), optimizer="sgd")
    return model


def trained() -> keras.Model:
    model = compiled()
    model.train_on_batch(np.zeros((2, 6)), np.zeros((2, 1)))
    return model


def local_loss() -> Any:
    return lambda labels, outputs: keras.ops.mean(labels - outputs)


X = np.zeros((80, 6), np.float32)


def batches(worker: int, num_workers: int) -> Iterator[Any]:
    while True:
        yield X[0], X[0, :1]


@pytest.mark.parametrize(
    ("model", "data", "more", "message"),
    [
        (lambda: keras.Sequential([keras.layers.Dense(1)]), None, {}, "is not built; give it a keras.Input"),
        (lambda: keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)]), None, {}, "call model.compile"),
        (trained, None, {}, "optimizer"),
        (lambda: compiled(optimizer="nadam"), None, {}, "Nadam"),
        (lambda: compiled(loss=local_loss()), None, {}, "loss of compile.* is .*a lambda or local function"),
        (lambda: compiled(keras.layers.Lambda(lambda x: x)), None, {}, "function of Lambda 'lambda.*' is .*<lambda>"),
        (lambda: lambda: compiled(), None, {}, "model is .*<lambda>, a lambda or local function"),
        (compiled, None, {"workers": 0}, "workers is 0; give a whole number of at least 1"),
        (compiled, None, {"shards": 1.5}, "shards is 1.5; give a whole number"),
        (compiled, (X, X[:7]), {}, "80"),
        (compiled, (X[:4], X[:4, :1]), {}, "there are only 4 training examples"),
        (compiled, (x for x in range(3)), {}, "generator"),
        (compiled, Examples(lambda: X), {}, "data.train is"),
        (compiled, Examples((X, X)), {"validation_data": (X, X)}, "give validation and class_weight to it"),
        (compiled, None, {"codec": "int8"}, "codec cannot be given"),
        (compiled, None, {"loss": "mse"}, "loss cannot be given"),
        (compiled, None, {"epoch": 3}, "epoch cannot be given; other fields of Job can; did you mean epochs"),
        (compiled, None, {"num_step": 3}, "num_step cannot be given; other fields of Job can; did you mean num_steps"),
        (compiled, None, {"sample_weight": X}, r"sample_weight cannot be given; .* \(x, y, sample_weight\)"),
        (compiled, None, {"validation_split": 0.2}, "validation_split cannot be given; .* as validation_data="),
        (classes, (X, np.arange(80) % 4), {}, "^data, example 3: the label is 3, and the model has 3 classes; give"),
        (classes, (X, np.zeros(80, int)), {"validation_data": (X, np.full(80, -1))}, "^validation_data, ex.* is -1"),
        (compiled, None, {"callbacks": keras.callbacks.TensorBoard("x")}, "TensorBoard is not supported"),
        (compiled, None, {"callbacks": keras.callbacks.EarlyStopping()}, "monitor is 'val_loss', and there is no"),
        (compiled, None, {"verbose": 3}, "verbose is 3; accepted are 'auto', 0"),
        (compiled, None, {"metrics_port": -1}, "metrics_port is -1; give a whole number"),
        (compiled, None, {"metrics_port": 65534}, "^metrics_port=65534: 5 processes need a port each"),
        (compiled, None, {"trace": 1001}, "^trace=1001: a worker traces 1 to 1000 steps"),
        (compiled, None, {"validation_sets": [(X, X)]}, "validation_sets is a list; give a dict of held-out examples"),
        (compiled, None, {"validation_sets": {"b": X[:0]}}, r"validation_sets\['b'\]: "),
        (compiled, None, {"validation_sets": {"a b": (X, X[:, :1])}}, "validation_sets has the name 'a b'; give"),
        (compiled, None, {"resume": True, "run_dir": None}, "there is no .*/runs/sequential.*; give run_"),
        (compiled, Stream(batches), {}, "an epoch of this stream has no length"),
        (compiled, Examples((X, X[:, :1]), map=lambda item: item), {}, "a lambda or local function"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_starts(
    tmp_path: Path, model: Any, data: Any, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        dry(tmp_path, model(), data, **more)
    assert "--" not in str(refused.value), "a flag of the command line"
    assert not (tmp_path / "run").exists()


def test_a_port_for_metrics_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ValueError, match=rf"^metrics_port={port}: chief cannot .*; give another metrics_port, or 0"
        ):
            dry(tmp_path, compiled(), metrics_port=port)
    assert not (tmp_path / "run").exists()


def test_inputs_and_targets_are_one_argument() -> None:
    with pytest.raises(ValueError, match=r"fit gets 3 arguments without a name; .*fit\(model, \(x, y\)\)"):
        downpour.fit(compiled(), X, X[:, :1])


def test_a_folder_that_cannot_be_used_is_refused_in_the_words_of_fit(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / owner.JOURNAL).touch()
    for more, message in (
        ({}, r"continue it by resume=True, remove it by overwrite=True, or give another run_dir$"),
        ({"resume": True, "overwrite": True}, "^overwrite=True removes the run that resume=True continues"),
        ({"resume": True}, "^resume=True, but .* has no complete checkpoint; .* or leave resume=True out"),
    ):
        with pytest.raises(ValueError, match=message):
            dry(tmp_path, compiled(), **more).start()


@pytest.mark.parametrize(("name", "role"), [(owner.LOCK, "chief"), (owner.LAUNCHER_LOCK, "launcher")])
def test_a_run_that_goes_on_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, role: str
) -> None:
    """Its workers map the arrays that another recipe would replace."""
    monkeypatch.setattr(owner, "_WAIT_S", 0.2)
    before = dry(tmp_path, compiled()).recipe.read_text()
    lock = owner.Lock(tmp_path / "run" / name, role)
    try:
        with pytest.raises(ValueError, match=rf"belongs to the {role} .* or give another run_dir"):
            dry(tmp_path, compiled(), epochs=7, overwrite=True)
    finally:
        lock.close()
    assert (tmp_path / "run" / "job" / "recipe.py").read_text() == before


def test_batches_that_are_accumulated_are_one_step_of_an_epoch(tmp_path: Path) -> None:
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=4)
    assert recipe.load(dry(tmp_path, compiled(optimizer=optimizer), epochs=2).recipe).num_steps == 80 * 2 / 8 / 4


def test_a_call_without_data_says_how_data_are_given() -> None:
    with pytest.raises(ValueError, match=r"there is no data; .* fit\(model, \(x, y\)\)"):
        downpour.fit(compiled())
    with pytest.raises(ValueError, match=r"x cannot be given; give inputs and targets as one tuple"):
        downpour.fit(compiled(), x=X, y=X[:, :1])


def test_a_run_that_is_resumed_has_the_new_arguments(tmp_path: Path) -> None:
    dry(tmp_path, compiled(), epochs=1)
    assert recipe.load(dry(tmp_path, compiled(), epochs=3, resume=True).recipe).num_steps == 30


def unnamed(width: int = 3, by_name: bool = False) -> keras.Model:
    """Layers that Keras numbers: within a model, within a layer, wrapped, and with state."""
    within = keras.Sequential([keras.Input((6,)), keras.layers.Dense(6), keras.layers.BatchNormalization()])
    inputs = keras.Input((6,))
    x = keras.layers.Reshape((2, 3))(keras.layers.Dropout(0.1)(Widened()(within(inputs)))[:, :1] * within(inputs))
    x = keras.layers.Bidirectional(keras.layers.GRU(width))(x)
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    model.compile(optimizer="sgd", loss={model.layers[-1].name: "mse"} if by_name else "mse")
    return model


@dataclasses.dataclass
class Earlier:
    """As much of a checkpoint as `fit` looks at."""

    layout: Layout
    step: int = 0


def test_a_run_that_has_more_epochs_than_are_asked_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(recipe.load(dry(tmp_path, compiled(), epochs=4).recipe))[1]
    monkeypatch.setattr(checkpoint, "newest", lambda folder, check: Earlier(first, 41))
    with pytest.raises(ValueError, match=r"epochs is 3, and the run in .* has 4 already; .*overwrite=True"):
        dry(tmp_path, compiled(), epochs=3, resume=True)
    assert recipe.load(dry(tmp_path, compiled(), epochs=4, resume=True).recipe).num_steps == 40


def test_a_model_that_is_made_again_goes_on_under_the_names_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keras numbers layers without a name on in this process."""
    first = build(recipe.load(dry(tmp_path, unnamed()).recipe))[1]
    monkeypatch.setattr(checkpoint, "newest", lambda folder, check: Earlier(first))
    keras.layers.Dense(3)
    model = unnamed()
    given = [layer.name for layer in model.layers]
    assert build(recipe.load(dry(tmp_path, model, resume=True).recipe))[1].canonical == first.canonical
    assert [layer.name for layer in model.layers] == given and given != [layer.name for layer in unnamed().layers]
    for other in (unnamed(width=4), unnamed(by_name=True)):
        names = [layer.name for layer in other.layers]
        loaded: Any = recipe.load(dry(tmp_path, other, resume=True).recipe)
        assert [layer.name for layer in loaded.model().layers] == names, "the chief refuses it"


def test_two_scripts_of_one_name_are_two_modules(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "script.py").write_text(f"def function():\n    return {number}\n")
    assert [imported(str(tmp_path / name / "script.py"), "function")() for name in "12"] == [1, 2]


def test_what_a_recipe_imports_starts_no_other_run(tmp_path: Path) -> None:
    (tmp_path / "careless.py").write_text("import downpour\ndownpour.fit(None, None)\n")
    (tmp_path / "recipe.py").write_text(f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport careless\n")
    with pytest.raises(ValueError, match="call it below if __name__"):
        recipe.load(tmp_path / "recipe.py")
    assert not recipe.is_loading()


@pytest.mark.slow
def test_the_losses_of_one_worker_are_those_of_keras(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 6)).astype("f")
    y = x.sum(1, keepdims=True)
    keras.utils.set_random_seed(0)
    model = compiled(keras.layers.Dense(8, activation="relu"))
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    twin.compile(loss="mse", optimizer="sgd")
    expected = twin.fit(x, y, batch_size=20, epochs=4, shuffle=False, verbose=0).history["loss"]
    data = Examples((x, y), shuffle=False)
    run = downpour.fit(model, data, batch_size=20, epochs=4, workers=1, shards=1, run_dir=tmp_path / "run")
    run.wait(240)
    np.testing.assert_allclose(run.history["loss"], expected, rtol=1e-5)
