"""Initial values from Keras files and checkpoints, for the variables that are named."""

from __future__ import annotations

import re
from pathlib import Path

import keras
import numpy as np
import pytest

from downpour.launch.roles import initial
from downpour.launch.roles.initial import Source
from downpour.model import weights
from downpour.model.vision.resnet import ResNet
from downpour.ps.layout import FROZEN, STATISTIC, Layout, Variable, lay_out
from downpour.worker.step.variables import initial_values, variables_of
from tests.ps.checkpoint.saving import save

SMALL = ResNet(depth=18, width=2, stem="3x3/2")
BACKBONE = ("stem_*", "stage*")


def network(num_labels: int, seed: int) -> tuple[keras.Model, Layout]:
    keras.utils.set_random_seed(seed)
    model = SMALL.build(8, num_labels)
    return model, lay_out(variables_of(model), 2)


def write_checkpoint(folder: str, model: keras.Model, step: int) -> None:
    """As two shards and a chief write one."""
    layout = lay_out(variables_of(model), 2)
    save(folder, layout, [{"parameters": vector} for vector in layout.scatter(initial_values(model))], step=step)


@pytest.fixture(scope="module")
def trained() -> keras.Model:
    """Stands for a network that has been trained to tell seven labels."""
    model, _ = network(num_labels=7, seed=1)
    for variable in model.variables:
        variable.assign_add(np.full(variable.shape, 0.25))
    return model


@pytest.fixture(scope="module")
def sources(trained: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the trained network in every form."""
    folder = tmp_path_factory.mktemp("sources")
    for ending in (weights.KERAS, weights.WEIGHTS, weights.LEGACY):
        weights.save(trained, folder / f"model{ending}", ending)
    write_checkpoint(f"{folder}/run/checkpoints/step-0000000020", trained, 20)
    (folder / "run" / "checkpoints" / "step-0000000030").mkdir()  # not complete
    return folder


FORMS = ("model.keras", "model.weights.h5", "model.h5", "run", "run/checkpoints/step-0000000020")


@pytest.mark.parametrize("form", FORMS)
def test_the_backbone_comes_from_the_source_and_the_new_head_stays_fresh(
    sources: Path, trained: keras.Model, form: str
) -> None:
    model, layout = network(num_labels=5, seed=2)
    fresh = initial_values(model)
    there = {variable.path: variable.numpy() for variable in trained.variables}
    source = Source(str(sources / form), BACKBONE)
    initial.check(source)
    got = initial.values(model, layout, source)
    for variable, value, before in zip(layout.variables, got, fresh, strict=True):
        expected = before if variable.name.startswith("head/") else there[variable.name]
        np.testing.assert_array_equal(value, expected, variable.name)
        assert value.dtype == np.float32
    assert sum(not variable.name.startswith("head/") for variable in layout.variables) == len(layout.variables) - 2


def test_without_patterns_everything_comes_from_the_source(sources: Path, trained: keras.Model) -> None:
    model, layout = network(num_labels=7, seed=2)
    got = initial.values(model, layout, Source(str(sources / "model.weights.h5")))
    for value, expected in zip(got, initial_values(trained), strict=True):
        np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize("form", ["model.keras", "model.weights.h5"])
def test_the_base_of_a_layer_with_lora_comes_from_a_file(sources: Path, trained: keras.Model, form: str) -> None:
    model, _ = network(num_labels=7, seed=2)
    model.get_layer("head").enable_lora(2)
    layout, fresh = lay_out(variables_of(model), 2), {v.path: v.numpy() for v in model.variables}
    got = initial.values(model, layout, Source(str(sources / form), ("head/kernel", "head/bias")))
    there = {variable.path: variable.numpy() for variable in trained.variables}
    for variable, value in zip(layout.variables, got, strict=True):
        expected = there if variable.name in ("head/kernel", "head/bias") else fresh
        np.testing.assert_array_equal(value, expected[variable.name], variable.name)


def test_without_a_source_values_are_fresh() -> None:
    model, layout = network(num_labels=5, seed=2)
    for value, expected in zip(initial.values(model, layout, None), initial_values(model), strict=True):
        np.testing.assert_array_equal(value, expected)


def test_the_newest_checkpoint_of_a_run_is_taken_from_an_object_store_too(trained: keras.Model) -> None:
    for step in (20, 9, 100):
        write_checkpoint(f"memory://initial/checkpoints/step-{step:010d}", trained, step)
    model, layout = network(num_labels=7, seed=2)
    initial.check(Source("memory://initial"))
    assert initial.load_checkpoint("memory://initial").step == 100
    got = initial.values(model, layout, Source("memory://initial/checkpoints/step-0000000009"))
    for value, expected in zip(got, initial_values(trained), strict=True):
        np.testing.assert_array_equal(value, expected)


def test_a_damaged_checkpoint_of_a_run_is_passed_over_with_one_warning(
    trained: keras.Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_checkpoint(f"{tmp_path}/checkpoints/step-0000000020", trained, 20)
    model, layout = network(num_labels=7, seed=2)
    write_checkpoint(f"{tmp_path}/checkpoints/step-0000000030", model, 30)
    path = tmp_path / "checkpoints" / "step-0000000030" / "shard-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    source = Source(str(tmp_path))
    initial.check(source)
    for value, variable in zip(initial.values(model, layout, source), initial_values(trained), strict=True):
        np.testing.assert_array_equal(value, variable)
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "step-0000000030/shard-00001-of-00002.safetensors is damaged" in said


def test_variables_of_another_shape_are_named_with_both(sources: Path) -> None:
    model, layout = network(num_labels=5, seed=2)
    form = "model.weights.h5"
    with pytest.raises(ValueError) as refused:
        initial.values(model, layout, Source(str(sources / form), ("head/*", "stem_conv/*")))
    assert str(refused.value) == (
        f"--init_from={sources / form}: 2 of the 3 variables of --init_only=head/*,stem_conv/* are missing there or "
        "have another shape: head/kernel is [16, 5] here, [16, 7] there; head/bias is [5] here, [7] there; "
        "give --init_only patterns without them, or another source"
    )


def test_the_first_three_missing_variables_are_named(sources: Path) -> None:
    deeper = ResNet(depth=50, width=2, stem="3x3/2").build(8, 5)
    with pytest.raises(ValueError) as refused:
        initial.values(deeper, lay_out(variables_of(deeper), 1), Source(str(sources / "model.h5"), ("stage3_block6*",)))
    message = str(refused.value)
    assert "15 of the 15 variables" in message
    assert message.count("missing there;") == 3
    assert "stage3_block6_1_conv/kernel is [1, 1, 32, 8] here, missing there; " in message


@pytest.mark.parametrize("form", FORMS[:-1])
def test_a_source_of_another_architecture_is_refused_with_the_first_difference(sources: Path, form: str) -> None:
    """Its own layers are named where the model's are missing."""
    keras.utils.set_random_seed(2)
    images = keras.Input((8, 8, 3))
    layers = keras.layers
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Conv2D(2, 3, use_bias=False, name="conv1")(images))
    model = keras.Model(images, layers.Dense(7, name="head")(x))
    with pytest.raises(ValueError) as refused:
        initial.values(model, lay_out(variables_of(model), 1), Source(str(sources / form)))
    assert "2 of the 3 variables of --init_only=* are missing there or have another shape: " in str(refused.value)
    assert "shape: conv1/kernel is [3, 3, 3, 2] here, missing there; head/kernel is [2, 7] here, [16, 7] there" in str(
        refused.value
    )
    # Files of Keras 3 have their layers in another order.
    assert re.search(r"layers that only the source has: (stem|stage)\w+, (stem|stage)\w+, \w+; ", str(refused.value))


def test_a_pattern_that_matches_nothing_is_refused(sources: Path) -> None:
    model, layout = network(num_labels=5, seed=2)
    with pytest.raises(ValueError, match=r"--init_only: pattern 'stemm_\*' matches no variable; .* stem_"):
        initial.values(model, layout, Source(str(sources / "model.h5"), ("stage*", "stemm_*")))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.keras", "nothing.keras is missing; give a .keras, .weights.h5 or .h5 file, a checkpoint's folder"),
        ("weights.npz", "weights.npz is of no known kind; give a .keras, .weights.h5"),
        (
            "memory://nowhere",
            "memory://nowhere is not a complete checkpoint and holds none; give a checkpoint's folder",
        ),
        ("empty", "empty is not a complete checkpoint and holds none; give a checkpoint's folder"),
    ],
)
def test_what_is_no_source_is_refused_before_tensorflow(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "weights.npz").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        initial.check(Source(name if "://" in name else str(tmp_path / name)))


def test_a_source_of_a_path_and_patterns(tmp_path: Path) -> None:
    assert initial.source_of(None, (), tmp_path) is None
    assert initial.source_of("a.keras", (), tmp_path) == Source("a.keras", ("*",))
    source = initial.source_of(str(tmp_path / "a.keras"), ["stem_*", "stage*"], tmp_path)
    assert source is not None
    assert source.flags() == {"init_from": str(tmp_path / "a.keras"), "init_only": "stem_*,stage*"}


def test_patterns_without_a_source_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--init_only=head/\* without --init_from; give a .keras"):
        initial.source_of(None, ["head/*"], tmp_path)


def test_a_source_of_a_run_that_resumes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--init_from with --resume: the checkpoint has all values"):
        initial.source_of("a.keras", (), tmp_path, "yes")
    assert initial.source_of("a.keras", (), tmp_path, "if_any") == Source("a.keras")


@pytest.mark.parametrize("place", [".", "checkpoints", "checkpoints/step-0000000020"])
def test_what_a_new_run_would_remove_is_refused(tmp_path: Path, place: str) -> None:
    with pytest.raises(ValueError, match=r"a new run in .* removes what is there; give another --run_dir"):
        initial.source_of(str(tmp_path / place), (), tmp_path)


@pytest.mark.parametrize(
    ("value", "wire", "message"),
    [
        (7e4, "float32", None),
        (7e4, "bfloat16", None),
        (7e4, "float16", "1 initial values of net/w are not finite in float16; give --set=exchange.codec=bfloat16"),
        (np.nan, "float32", "1 initial values of net/w are not finite in float32$"),
    ],
)
def test_values_that_the_wire_cannot_carry_are_refused(value: float, wire: str, message: str | None) -> None:
    layout = lay_out([Variable("net/w", (3,), FROZEN), Variable("net/m", (3,), STATISTIC)], 1)
    values = [np.array([0, value, 1], np.float32), np.full(3, 7e4, np.float32)]
    if message is None:
        initial._check_finite(layout, values, wire)
    else:
        with pytest.raises(ValueError, match=message):
            initial._check_finite(layout, values, wire)
