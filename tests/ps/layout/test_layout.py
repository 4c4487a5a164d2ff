from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from downpour.model.vision.resnet import ResNet
from downpour.proto.errors import LayoutMismatch
from downpour.ps.layout import (
    FROZEN,
    STATISTIC,
    TRAINED,
    Layout,
    Rate,
    Slicing,
    Variable,
    check_same,
    from_canonical,
    lay_out,
)
from downpour.ps.layout.patterns import matching

SHAPES = st.lists(st.lists(st.integers(1, 7), max_size=3).map(tuple), min_size=1, max_size=12)


def some_variables(shapes: list[tuple[int, ...]]) -> list[Variable]:
    kinds = [TRAINED, TRAINED, STATISTIC, TRAINED, FROZEN]
    return [
        Variable(f"v{i}", shape, kinds[i % 5], 0.1 * (i % 2), 0.2 * (i % 7 == 3), 1.0 + (i % 4 == 1))
        for i, shape in enumerate(shapes)
    ]


def values_of(variables: list[Variable]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=v.shape).astype(np.float32).reshape(v.shape) for v in variables]


@given(shapes=SHAPES, num_shards=st.integers(1, 6), axis=st.integers(0, 2), num_slices=st.integers(1, 7))
def test_any_variable_along_any_axis_scatters_and_gathers(
    shapes: list[tuple[int, ...]], num_shards: int, axis: int, num_slices: int
) -> None:
    variables = some_variables([*shapes, (7, 7, 7)])
    layout = lay_out(variables, num_shards, [Slicing(variables[-1].name, num_slices, axis)])
    values = values_of(variables)
    for value, back in zip(values, layout.gather(layout.scatter(values)), strict=True):
        np.testing.assert_array_equal(value, back)
    assert sum(layout.size(shard) for shard in range(num_shards)) == sum(v.size for v in variables)


@given(shapes=SHAPES, num_shards=st.integers(1, 6))
def test_offsets_spans_and_canonical_form(shapes: list[tuple[int, ...]], num_shards: int) -> None:
    layout = lay_out(some_variables(shapes), num_shards)
    assert from_canonical(layout.canonical) == layout
    for shard in range(num_shards):
        ends = [0, *(r.offset + r.size for r in layout.by_shard[shard])]
        assert [r.offset for r in layout.by_shard[shard]] == ends[:-1]
        spans = layout.spans(shard)
        assert sum(s.stop - s.start for s in spans) == layout.size(shard)
        kinds = [s.kind for s in spans]
        assert kinds == sorted(kinds, key=[TRAINED, STATISTIC, FROZEN].index), "trained, statistics, frozen"
        assert len({s.treatment for s in spans}) == len(spans), "one span a treatment"
        sizes = [sum(s.stop - s.start for s in spans if s.kind in kinds) for kinds in ([TRAINED], [TRAINED, STATISTIC])]
        assert sizes == [layout.num_trained(shard), layout.num_pushed(shard)]


def test_the_paper_shape_is_balanced() -> None:
    """Sun et al. 2017, section 4.1: the head in 50 slices over 17 shards."""
    layout = paper_layout()
    kernel = [r for r in layout.ranges if layout.variables[r.variable].name == "head/kernel"]
    assert sorted(r.stop - r.begin for r in kernel) == [365] * 9 + [366] * 41
    bias = {r.begin: r.shard for r in layout.ranges if layout.variables[r.variable].name == "head/bias"}
    assert bias == {r.begin: r.shard for r in kernel}, "slices of the same classes meet on one shard"
    assert layout.imbalance < 0.01


def paper_layout() -> Layout:
    from downpour.worker.step.variables import variables_of

    model = ResNet(depth=101).build(64, 18291)
    return lay_out(variables_of(model, 1e-4, ("*/bias", "*/gamma", "*/beta")), 17, [Slicing("head/*", 50)])


def test_the_fingerprint_sees_every_part() -> None:
    variables = [Variable("a", (4, 4)), Variable("b", (4,))]
    base = lay_out(variables, 2)
    others = [
        lay_out(variables, 3),
        lay_out([replace(variables[0], name="c"), variables[1]], 2),
        lay_out([replace(variables[0], shape=(2, 8)), variables[1]], 2),
        lay_out([replace(variables[0], weight_decay=0.1), variables[1]], 2),
        lay_out([replace(variables[0], kind=STATISTIC), variables[1]], 2),
        lay_out([replace(variables[0], kind=FROZEN), variables[1]], 2),
        lay_out([replace(variables[0], decoupled_decay=0.1), variables[1]], 2),
        lay_out([replace(variables[0], rate=0.1), variables[1]], 2),
        lay_out(variables, 2, [Slicing("a", 2)]),
        lay_out(variables, 2, [Slicing("a", 2, axis=0)]),
    ]
    assert len({layout.fingerprint for layout in [base, *others]}) == 1 + len(others)
    assert lay_out(list(variables), 2).fingerprint == base.fingerprint


def test_a_mismatch_names_fingerprints_and_the_first_difference() -> None:
    mine = lay_out([Variable("a", (4, 4)), Variable("head/kernel", (4, 9))], 2)
    theirs = lay_out([Variable("a", (4, 4)), Variable("head/kernel", (4, 8))], 2)
    with pytest.raises(LayoutMismatch) as caught:
        check_same(mine, theirs.canonical, "shard 1")
    for part in (mine.fingerprint.hex()[:16], theirs.fingerprint.hex()[:16], "[4, 9]", "[4, 8]", "shard 1"):
        assert part in str(caught.value)


def test_a_mismatch_in_a_treatment_is_told() -> None:
    mine = lay_out([Variable("a", (4,), rate=0.1)], 1)
    theirs = lay_out([Variable("a", (4,), decoupled_decay=0.01)], 1)
    with pytest.raises(LayoutMismatch, match=r"rate times 0.1, there a .* decoupled decay 0.01, rate times 1"):
        check_same(mine, theirs.canonical, "the chief")


def test_the_canonical_form_and_the_table_of_a_plain_layout_have_no_treatments() -> None:
    plain = lay_out([Variable("a", (4,), weight_decay=0.5)], 1)
    assert '["a",[4],"trained",0.5]' in plain.canonical
    assert "rate" not in plain.table() and "frozen" not in plain.table()
    special = lay_out([Variable("a", (4,), rate=0.1), Variable("b", (3,), FROZEN), Variable("c", (2,), FROZEN)], 1)
    assert '["a",[4],"trained",0.0,0.0,0.1]' in special.canonical
    assert "frozen with weight decay 0: 2 variables, 5 parameters" in special.table()
    assert "decoupled decay 0, rate times 0.1: 1 variables, 4 parameters" in special.table()


def test_a_pattern_that_matches_nothing_names_itself_its_field_and_names() -> None:
    assert matching("frozen", "a*", ["ab", "b"]) == {"ab"}
    with pytest.raises(ValueError, match=r"frozen: pattern 'haed/\*' matches no variable; .*near: head/kernel"):
        matching("frozen", "haed/*", ["head/kernel", "stem/kernel"])
    with pytest.raises(ValueError, match=r"rates: multiplier of 'a' is 0; give a number above 0, .*frozen"):
        Rate("a", 0)


@pytest.mark.parametrize(
    ("num_shards", "slicing", "message"),
    [
        (0, [], "0 shards"),
        (2, [Slicing("a", 5)], "5 slices of a, whose axis 1 has 4 columns; give 1 to 4"),
        (2, [Slicing("a", 0)], "0 slices"),
        (2, [Slicing("a", 2, axis=2)], "a has 2 axes"),
        (2, [Slicing("head/*", 2)], "matches no variable"),
    ],
)
def test_refusals(num_shards: int, slicing: list[Slicing], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lay_out([Variable("a", (3, 4))], num_shards, slicing)


def test_names_must_differ() -> None:
    with pytest.raises(ValueError, match="names repeat: a"):
        lay_out([Variable("a", (1,)), Variable("a", (2,))], 1)


def test_broken_canonical_forms_are_refused() -> None:
    for text in ("{}", '{"num_shards": 1, "variables": [[1]], "ranges": []}'):
        with pytest.raises(ValueError, match="not the canonical form"):
            from_canonical(text)
