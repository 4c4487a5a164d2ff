from __future__ import annotations

import math

import numpy as np
import pytest

from downpour.model.vision.resnet import ResNet

SMALL = ResNet(depth=18, width=4, stem="3x3/2", head_bias=-4.0)


def size(variables) -> int:
    return sum(math.prod(variable.shape) for variable in variables)


def test_two_builds_agree_on_paths_shapes_and_kinds():
    first, second = SMALL.build(32, 10), SMALL.build(32, 10)
    described = [[(v.path, tuple(v.shape), v.trainable) for v in model.variables] for model in (first, second)]
    assert described[0] == described[1]
    paths = [path for path, *_ in described[0]]
    assert len(paths) == len(set(paths))
    assert {"head/kernel", "head/bias", "stem_conv/kernel", "stage4_block2_2_norm/moving_mean"} <= set(paths)


def test_resnet_101_has_the_size_the_paper_trained():
    model = ResNet(depth=101).build(299, 18291)
    assert size(model.trainable_variables) == pytest.approx(80.0e6, rel=0.01)
    assert model.input_shape == (None, 299, 299, 3)
    assert model.output_shape == (None, 18291)
    assert tuple(model.get_layer("head").kernel.shape) == (2048, 18291)
    assert model.get_layer("stage4_block3_relu").output.shape == (None, 10, 10, 2048)


@pytest.mark.parametrize(("depth", "millions"), [(18, 11.69), (50, 25.56), (152, 60.19)], ids=["18", "50", "152"])
def test_sizes_are_those_of_the_literature(depth, millions):
    """Trained parameters with 1,000 classes, as torchvision counts them."""
    model = ResNet(depth=depth).build(224, 1000)
    assert size(model.trainable_variables) / 1e6 == pytest.approx(millions, abs=0.01)


def test_every_convolution_is_followed_by_batch_norm_and_has_no_bias():
    model = SMALL.build(32, 5)
    convolutions = [layer for layer in model.layers if layer.name.endswith("_conv")]
    assert len(convolutions) == 20
    for layer in convolutions:
        assert not layer.use_bias
        assert model.get_layer(layer.name.removesuffix("conv") + "norm").input is layer.output


@pytest.mark.parametrize(("stem", "side"), [("7x7", 16), ("3x3", 64), ("3x3/2", 32)])
def test_stems_reduce_the_picture_as_told(stem, side):
    model = ResNet(depth=18, width=2, stem=stem).build(64, 5)
    assert model.get_layer("stage1_block2_relu").output.shape == (None, side, side, 2)
    assert model.get_layer("stage4_block2_relu").output.shape == (None, side // 8, side // 8, 16)


def test_an_untrained_head_says_its_bias_about_a_blank_picture():
    logits = SMALL.build(32, 10)(np.zeros((2, 32, 32, 3), np.float32)).numpy()
    assert logits.shape == (2, 10)
    assert logits.dtype == np.float32
    assert logits == pytest.approx(-4.0)


def test_any_side_of_picture_is_accepted():
    model = SMALL.build(7, 3)
    assert model(np.zeros((1, 7, 7, 3), np.float32)).shape == (1, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 34}, "depth is 34; accepted are 18, 50, 101, 152"),
        ({"stem": "5x5"}, "stem is '5x5'; accepted are '7x7', '3x3', '3x3/2'"),
        ({"width": 0}, "width is 0"),
        ({"norm_momentum": 1.0}, "norm_momentum is 1.0"),
    ],
)
def test_unknown_networks_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**arguments)


def test_empty_pictures_and_label_sets_are_refused():
    with pytest.raises(ValueError, match="num_labels 0"):
        SMALL.build(32, 0)


def test_frozen_layers_are_not_trained_and_batch_norm_in_them_computes_as_in_inference():
    model = ResNet(depth=18, width=2, stem="3x3/2", frozen=("stem_*", "stage*")).build(16, 5)
    assert [variable.path for variable in model.trainable_variables] == ["head/kernel", "head/bias"]
    images = np.random.default_rng(0).uniform(-1, 1, (4, 16, 16, 3)).astype(np.float32)
    before = [variable.numpy() for variable in model.variables]
    np.testing.assert_array_equal(model(images, training=True), model(images, training=False))
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_patterns_that_freeze_nothing_or_everything_are_refused():
    with pytest.raises(ValueError, match=r"model.frozen: pattern 'steam_\*' matches no layer; .* stem_conv"):
        ResNet(depth=18, width=2, frozen=("steam_*",)).build(16, 5)
    with pytest.raises(ValueError, match=r"model.frozen: \* match every layer; leave something to train"):
        ResNet(depth=18, width=2, frozen=("*",)).build(16, 5)
    with pytest.raises(ValueError, match=r"frozen is 'stem_\*', a text; give a tuple of patterns"):
        ResNet(frozen="stem_*")
