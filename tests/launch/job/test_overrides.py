from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import pytest

from downpour.launch.job import overrides


class Shape(Protocol):
    pass


@dataclass(frozen=True)
class Square:
    side: int = 2

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ValueError(f"side is {self.side}; give at least 1")


@dataclass(frozen=True)
class Window:
    low: int = 0
    high: int = 10

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")


@dataclass(frozen=True)
class Config:
    shape: Shape = field(default_factory=Square)
    window: Window = field(default_factory=Window)
    parts: tuple[Square, ...] = (Square(1), Square(3))
    function: Callable[[int], int] = abs
    rate: float = 0.5
    flag: bool = False
    text: str = "a"
    path: Path = Path("x")
    where: Path | str = "y"
    names: tuple[str, ...] = ("a", "b")
    pair: tuple[int, float] = (1, 2.0)
    limit: float | None = None
    codec: Literal["float32", "bfloat16"] = "float32"


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("shape.side=7", lambda c: c.shape, Square(7)),
        ("parts.1.side=9", lambda c: c.parts, (Square(1), Square(9))),
        ("rate=1e-3", lambda c: c.rate, 1e-3),
        ("rate=inf", lambda c: c.rate, float("inf")),
        ("rate = 2", lambda c: c.rate, 2.0),
        ("flag=true", lambda c: c.flag, True),
        ("flag=No", lambda c: c.flag, False),
        ("text=", lambda c: c.text, ""),
        ("text=a=b", lambda c: c.text, "a=b"),
        ("path=/data", lambda c: c.path, Path("/data")),
        ("where=/data", lambda c: c.where, Path("/data")),
        ("names=x, y", lambda c: c.names, ("x", "y")),
        ("names=", lambda c: c.names, ()),
        ("pair=3,4", lambda c: c.pair, (3, 4.0)),
        ("limit=3", lambda c: c.limit, 3.0),
        ("limit=none", lambda c: c.limit, None),
        ("codec=bfloat16", lambda c: c.codec, "bfloat16"),
        ("window.low=1_000", None, "low 1000 is not below high 10"),
    ],
)
def test_value_has_the_type_of_its_field(override, read, expected):
    if read is None:
        with pytest.raises(ValueError, match=expected):
            overrides.apply(Config(), [override])
    else:
        value = read(overrides.apply(Config(), [override]))
        assert value == expected
        assert type(value) is type(expected)


def test_overrides_apply_together_and_the_last_one_wins():
    config = overrides.apply(Config(), ["window.low=50", "window.high=60", "rate=1", "rate=2"])
    assert (config.window, config.rate) == (Window(50, 60), 2.0)


def test_none_changes_nothing():
    config = Config()
    assert overrides.apply(config, []) is config


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("shape.side=x", ["shape.side", "'x'", "whole number", "now shape.side=2"]),
        ("shape.side=1.5", ["shape.side", "'1.5'", "whole number"]),
        ("flag=maybe", ["flag", "'maybe'", "true or false"]),
        ("pair=1", ["pair", "'1'", "comma-separated"]),
        ("limit=x", ["limit", "'x'", "number or none"]),
        ("codec=int4", ["codec", "'int4'", "'float32' or 'bfloat16'"]),
        ("shape.side=0", ["side is 0; give at least 1"]),
        ("rate", ["'rate'", "key=value"]),
    ],
)
def test_refusal_names_key_value_and_type(override, parts):
    with pytest.raises(ValueError) as refused:
        overrides.apply(Config(), [override])
    assert all(part in str(refused.value) for part in parts), refused.value


@pytest.mark.parametrize(
    ("key", "suggestion"), [("shape.sid", "shape.side"), ("side", "shape.side"), ("hihg", "window.high"), ("zzzzz", "")]
)
def test_an_unknown_key_is_refused_with_the_nearest_ones(key, suggestion):
    with pytest.raises(ValueError) as refused:
        overrides.apply(Config(), [f"{key}=1"])
    message = str(refused.value)
    assert ("did you mean" in message) == bool(suggestion)
    assert suggestion in message
    assert "`--set=help` lists all" in message
    assert len(message) < 300


def test_the_listing_has_every_key_with_value_and_type():
    listing = overrides.listing(Config()).splitlines()
    assert "shape.side=2 (a whole number)" in listing
    assert len(listing) == len(list(overrides.leaves(Config())))


def test_callables_are_not_listed():
    keys = [leaf.key for leaf in overrides.leaves(Config())]
    assert keys[:5] == ["shape.side", "window.low", "window.high", "parts.0.side", "parts.1.side"]
    assert "function" not in keys
    with pytest.raises(ValueError, match="unknown key 'function'"):
        overrides.apply(Config(), ["function=len"])


@dataclass(frozen=True)
class Circle:
    radius: float
    hole: Shape | None = None


@dataclass(frozen=True)
class WithChoice:
    shape: Shape = field(default_factory=Square)
    number: int = 1
    CHOICES: ClassVar = {"shape": {"Square": Square, "Circle": Circle}}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["shape=Circle(radius=2.5)"], Circle(2.5)),
        (["shape=Square"], Square()),
        (["shape=Circle(radius=-1e-3, hole=Square(side=3))"], Circle(-1e-3, Square(3))),
        (["number=2", "shape=Circle(radius=1)", "shape.radius=4"], Circle(4.0)),
    ],
)
def test_another_dataclass_may_take_a_place(given: list[str], expected: Shape) -> None:
    assert overrides.apply(WithChoice(), given).shape == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("shape=Triangle()", "'Triangle' is not one of Square, Circle"),
        ("shape=Circle()", "Circle needs radius="),
        ("shape=Circle(radius=1, side=2)", "Circle has no field 'side'; it has radius, hole"),
        ("shape=Square(side=0)", "side is 0; give at least 1"),
        ("shape=Square(", "not of the form Name"),
        ("shape=open('x')", "not of the form Name"),
        ("shape=3", "not one of Square, Circle"),
        ("shape=Circle(radius=__import__('os'))", "not of the form Name"),
    ],
)
def test_what_cannot_take_a_place_is_refused(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"override shape=.*{re.escape(message)}"):
        overrides.apply(WithChoice(), [override])


@dataclass(frozen=True)
class WithTuple:
    shapes: tuple[Shape, ...] = ()
    CHOICES: ClassVar = {"shapes": {"Square": Square, "Circle": Circle}}


def test_several_dataclasses_may_take_the_place_of_a_tuple() -> None:
    given = ["shapes=(Circle(radius=2), Square())", "shapes.0.radius=3"]
    assert overrides.apply(WithTuple(), given).shapes == (Circle(3.0), Square())
    assert overrides.apply(WithTuple(), ["shapes=Square"]).shapes == (Square(),)
    assert overrides.apply(WithTuple((Square(),)), ["shapes=()"]).shapes == ()
    with pytest.raises(ValueError, match="'Triangle' is not one of Square, Circle"):
        overrides.apply(WithTuple(), ["shapes=(Square(), Triangle())"])
    with pytest.raises(ValueError, match=r"'\(3,\)' is not one of Square, Circle"):
        overrides.apply(WithTuple(), ["shapes=(3,)"])
    assert "shapes= ((Name(field=value), ...), each one of Square, Circle)" in overrides.listing(WithTuple())
