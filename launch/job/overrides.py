"""Typed overrides of a job: `cluster.num_ps=11` on a command line becomes a field of a frozen dataclass.

A key is the dotted path to a field; an entry of a tuple of dataclasses is named by its position
(`slicing.0.num_slices`). The field's annotation gives the type of the value. Where the annotation is a protocol (a
model, a rule), the fields are those of the present dataclass; fields in the job's `CHOICES` accept another dataclass,
`pace=Bounded(lead=4)`. Callables and other objects cannot be overridden and are not listed. Pure.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union

_TRUE, _FALSE = ("true", "yes", "1"), ("false", "no", "0")
_SCALARS = (bool, int, float, str, Path)

T = TypeVar("T")


def apply(job: T, overrides: Sequence[str], more: Sequence[Leaf] = ()) -> T:
    """Returns the job with the overrides applied in order, in one pass, and checked by its `__post_init__`.

    Args:
        job: A frozen dataclass, which may hold others.
        overrides: Each `key=value`.
        more: Keys that the caller has taken out of the overrides, for messages.

    Raises:
        ValueError: An override is not `key=value`, its key is unknown (the message names the nearest ones), its
            value is not of the field's type, or a dataclass refuses the value.
    """
    known = {leaf.key: leaf for leaf in (*_choices(job), *leaves(job))}
    values: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        if not equals:
            raise ValueError(f"override {override!r} is not of the form key=value, for example cluster.num_ps=11")
        if key not in known:
            raise ValueError(_unknown(key, [*known.values(), *more]))
        values[key] = known[key].parse(text.strip())
        if isinstance(known[key].annotation, Choice):
            known |= {leaf.key: leaf for leaf in leaves(values[key], f"{key}.")}
    return typing.cast(T, _rebuild(job, "", values)) if values else job


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several dataclasses, chosen by name; or `many` of them, a tuple.

    `known` also has those that its fields may hold.
    """

    names: tuple[str, ...]
    known: dict[str, type]
    many: bool = False

    def parse(self, text: str) -> Any:
        """Parses `Name(field=value, ...)`, or only the name, into a dataclass.

        Raises:
            ValueError: Another form, another name, or a field or value that the dataclass refuses.
        """
        try:
            tree = ast.parse(text, mode="eval").body
        except SyntaxError:
            raise ValueError(f"{text!r} is not of the form Name(field=value)") from None
        value = self._construct(tree)
        given = value if self.many and isinstance(value, tuple) else (value,)
        if any(type(one).__name__ not in self.names for one in given):
            raise ValueError(f"{text!r} is not one of {', '.join(self.names)}")
        return given if self.many else value

    def _construct(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            return self._named(node.id, {})
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
            return self._named(node.func.id, {str(k.arg): self._construct(k.value) for k in node.keywords})
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in self.known:
            raise ValueError(f"{ast.unparse(node)!r} does not name its fields; give {self._example(node)}")
        if isinstance(node, ast.Tuple | ast.List):
            return tuple(self._construct(entry) for entry in node.elts)
        try:
            return ast.literal_eval(node)
        except ValueError:
            raise ValueError(f"{ast.unparse(node)!r} is not of the form Name(field=value)") from None

    def _example(self, node: ast.Call) -> str:
        """Rewrites positional arguments of a call as keywords: `Polyak(decay=0.9)`."""
        name = ast.unparse(node.func)
        fields = [field.name for field in dataclasses.fields(self.known[name]) if field.init]
        given = [f"{field}={ast.unparse(value)}" for field, value in zip(fields, node.args, strict=False)]
        return f"{name}({', '.join([*given, *map(ast.unparse, node.keywords)])})"

    def _named(self, name: str, fields: dict[str, Any]) -> Any:
        if name not in self.known:
            raise ValueError(f"{name!r} is not one of {', '.join(self.names)}{did_you_mean(name, self.names)}")
        kind = self.known[name]
        given = [field for field in dataclasses.fields(kind) if field.init]
        needed = [f.name for f in given if f.default is dataclasses.MISSING is f.default_factory]
        if unknown := sorted(fields.keys() - {field.name for field in given}):
            names = [field.name for field in given]
            has = ", ".join(names) or "no fields"
            raise ValueError(f"{name} has no field {unknown[0]!r}; it has {has}{did_you_mean(unknown[0], names)}")
        if missing := [field for field in needed if field not in fields]:
            raise ValueError(f"{name} needs {', '.join(f'{field}=' for field in missing)}")
        return kind(**fields)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A field that can be overridden: its dotted key, its type and its present value."""

    key: str
    annotation: Any
    value: Any

    def parse(self, text: str) -> Any:
        """Parses the text as the field's type; a `ValueError` names key, text and type."""
        if isinstance(self.annotation, Choice):
            try:
                return self.annotation.parse(text)
            except ValueError as error:
                raise ValueError(f"override {self.key}={text}: {error}") from None
        try:
            return _parse(text, self.annotation)
        except ValueError:
            expected = type_name(self.annotation)
            raise ValueError(
                f"override {self.key}={text}: {text!r} is not {expected}; it is now {self.key}={_show(self.value)}"
            ) from None

    def __str__(self) -> str:
        return f"{self.key}={_show(self.value)} ({type_name(self.annotation)})"


def leaves(value: Any, prefix: str = "") -> Iterator[Leaf]:
    """Every field below a dataclass that can be overridden, in the order of definition."""
    for key, annotation, child in _children(value, prefix):
        if _is_composite(child):
            yield from leaves(child, f"{key}.")
        elif _parsable(annotation):
            yield Leaf(key, annotation, child)


def type_name(annotation: Any) -> str:
    """The type as a message shows it: `int`, `tuple of str`, `float or none`."""
    if isinstance(annotation, Choice):
        form = "(Name(field=value), ...), each" if annotation.many else "Name(field=value),"
        return f"{form} one of {', '.join(annotation.names)}"
    options = _options(annotation)
    if len(options) > 1:
        return " or ".join("none" if option is types.NoneType else type_name(option) for option in options)
    if typing.get_origin(annotation) is tuple:
        return "comma-separated " + ", ".join(type_name(a) for a in typing.get_args(annotation) if a is not ...)
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(annotation))
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    return names.get(annotation, str(annotation))


def _choices(job: Any) -> Iterator[Leaf]:
    """The fields that accept another dataclass, from `CHOICES` of the job's class (field -> name -> class)."""
    choices: dict[str, dict[str, type]] = getattr(type(job), "CHOICES", {})
    known = {name: kind for kinds in choices.values() for name, kind in kinds.items()}
    for field, kinds in choices.items():
        value = getattr(job, field)
        yield Leaf(field, Choice(tuple(kinds), known, isinstance(value, tuple)), value)


def _children(value: Any, prefix: str) -> Iterator[tuple[str, Any, Any]]:
    """Key, annotation and value of each field of a dataclass, or of each entry of a tuple of dataclasses."""
    if isinstance(value, tuple):
        for i, child in enumerate(value):
            yield f"{prefix}{i}", type(child), child
        return
    for field in dataclasses.fields(value):
        if field.init:
            yield prefix + field.name, _annotation(type(value), field.name), getattr(value, field.name)


def _annotation(owner: type, name: str) -> Any:
    """The field's annotation, evaluated; `object` when it names something that only type checkers import."""
    definer = next(base for base in owner.__mro__ if name in inspect.get_annotations(base))
    field = types.SimpleNamespace(__annotations__={name: inspect.get_annotations(definer)[name]})
    try:
        return typing.get_type_hints(field, vars(sys.modules[definer.__module__]), dict(vars(definer)))[name]
    except NameError:
        return object


def _is_composite(value: Any) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(_is_composite(child) for child in value)
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _options(annotation: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(annotation) in (Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def _parsable(annotation: Any) -> bool:
    options = [option for option in _options(annotation) if option is not types.NoneType]
    if len(options) > 1:
        return all(map(_parsable, options))
    origin = typing.get_origin(options[0])
    if origin is tuple:
        return all(a is ... or a in _SCALARS for a in typing.get_args(options[0]))
    return origin is typing.Literal or options[0] in _SCALARS


def _parse(text: str, annotation: Any) -> Any:
    options = _options(annotation)
    if len(options) > 1:
        return _parse_union(text, options)
    if typing.get_origin(annotation) is tuple:
        return _parse_tuple(text, typing.get_args(annotation))
    if typing.get_origin(annotation) is typing.Literal:
        return _parse_choice(text, typing.get_args(annotation))
    if annotation is bool:
        return _parse_bool(text)
    return annotation(text)


def _parse_union(text: str, options: tuple[Any, ...]) -> Any:
    if types.NoneType in options and text.lower() == "none":
        return None
    for option in sorted((o for o in options if o is not types.NoneType), key=lambda o: o is str):
        try:
            return _parse(text, option)
        except ValueError:
            continue
    raise ValueError(text)


def _parse_tuple(text: str, of: tuple[Any, ...]) -> tuple[Any, ...]:
    parts = [part.strip() for part in text.split(",")] if text else []
    if of[-1] is ...:
        return tuple(_parse(part, of[0]) for part in parts)
    return tuple(_parse(part, kind) for part, kind in zip(parts, of, strict=True))


def _parse_choice(text: str, choices: tuple[Any, ...]) -> Any:
    for choice in choices:
        if text == str(choice):
            return choice
    raise ValueError(text)


def _parse_bool(text: str) -> bool:
    if text.lower() in _TRUE + _FALSE:
        return text.lower() in _TRUE
    raise ValueError(text)


def _rebuild(value: Any, prefix: str, values: dict[str, Any]) -> Any:
    """The value with everything below it replaced, innermost first, so that each dataclass is built once."""
    changes = {}
    for key, _, child in _children(value, prefix):
        name = key.removeprefix(prefix)
        if key in values:
            changes[name] = child = values[key]
        if any(changed.startswith(f"{key}.") for changed in values):
            changes[name] = _rebuild(child, f"{key}.", values)
    if isinstance(value, tuple):
        return tuple(changes.get(str(i), child) for i, child in enumerate(value))
    return dataclasses.replace(value, **changes)


def _unknown(key: str, known: list[Leaf]) -> str:
    by_key = {leaf.key: leaf for leaf in known}
    near = [str(by_key[name]) for name in _nearest(key, list(by_key))]
    hint = f"did you mean {', or '.join(near)}? " if near else ""
    return f"unknown key {key!r}; {hint}`--set=help` lists all {len(by_key)} keys with their types and values"


def listing(job: Any, more: Sequence[Leaf] = ()) -> str:
    """Every key that can be overridden, one a line, with its present value and type, and `more`."""
    return "\n".join(map(str, {leaf.key: leaf for leaf in (*_choices(job), *leaves(job), *more)}.values()))


def did_you_mean(given: str, known: Sequence[str]) -> str:
    """`; did you mean Bounded?`, or nothing if no known name is like the given one."""
    near = difflib.get_close_matches(given, known, 1) or [name for name in known if name.lower() == given.lower()]
    return f"; did you mean {near[0]}?" if near else ""


def _nearest(key: str, known: list[str]) -> list[str]:
    """Up to three keys most like the one given, whole or by their last part, the best first."""
    tail = key.rpartition(".")[2]
    same_tail = [candidate for candidate in known if candidate.rpartition(".")[2] == tail]
    whole = difflib.get_close_matches(key, known, n=3)
    tails: dict[str, list[str]] = {}
    for candidate in known:
        tails.setdefault(candidate.rpartition(".")[2], []).append(candidate)
    by_tail = [name for near in difflib.get_close_matches(tail, tails, n=3) for name in tails[near]]
    return list(dict.fromkeys([*same_tail, *whole, *by_tail]))[:3]


def _show(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
