"""The model that `downpour.fit` was given, and how the processes of the job get it: a file, or its function."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from downpour.launch.job.written import UNSAVED, Writer, saved_model
from downpour.model import keras_private, unsaved
from downpour.model.weights import ASSIGNED
from downpour.ps.layout import Layout

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class GivenModel:
    """A model, built in this process.

    Attributes:
        model: The model.
        builder: The function that returned it, which every process calls; None for a model that is saved and loaded.
        names: Names that its layers have in the job, by those that they have here; without those that have the same.
    """

    model: keras.Model
    builder: Callable[[], keras.Model] | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Any) -> GivenModel:
        """Calls a function; layers without a name get the names that they get in every process of the job."""
        if not isinstance(given, types.FunctionType):
            return cls(given)
        keras_private.restart_numbering()
        return cls(given(), given)

    def resuming(self, layout: Layout) -> GivenModel:
        """Returns it with the names of an earlier run, if it is that run's model but for the numbers of layers.

        Keras numbers layers without a name on, so a model that is made again in one process has others.

        Args:
            layout: Layout of the run's variables.
        """
        return self if self.builder is not None else replace(self, names=_earlier_names(self.model, layout))

    def source(self, writer: Writer, file: str) -> str:
        """Returns the source of the job's `model`.

        Args:
            writer: Writes the recipe.
            file: Name of the saved model, beside it.

        Raises:
            ValueError: Other processes could not make the model: it, or something that it uses, is at the top level of
                no file.
        """
        if self.builder is not None:
            return writer.reference(self.builder, "model")
        from downpour.model.own_objects import own_objects

        own = ", ".join(f"{one.name!r}: {writer.reference(one.value, one.place)}" for one in own_objects(self.model))
        writer.imports.add("from downpour.launch.job.written import saved_model")
        return f"saved_model(HERE / {file!r}, {{{own}}})"

    def save(self, path: Path) -> None:
        """Writes the model, unless a function builds it."""
        if self.builder is None:
            with keras_private.renamed(self.model, self.names):
                self.model.save(path)
            unsaved.write(self.model, path.with_suffix(UNSAVED))

    def copy(self, path: Path) -> Callable[[], keras.Model]:
        """Returns a function that makes another model like it, from the file that was saved."""
        if self.builder is not None:
            return self.builder
        from downpour.model.own_objects import own_objects

        return saved_model(path, {one.name: one.value for one in own_objects(self.model)})


def _earlier_names(model: keras.Model, layout: Layout) -> dict[str, str]:
    """Names of layers in a run by their names in a model, where Keras numbers them otherwise.

    Empty if they are the same, or if more than such numbers differs; then the chief refuses the model.
    """
    from downpour.worker.step.variables import variables_in

    try:
        here = variables_in(model, layout)
    except ValueError:
        return {}
    there = [variable for variable in layout.variables if not variable.name.endswith(ASSIGNED)]
    automatic = {layer.name for layer in keras_private.layers_of(model) if keras_private.has_automatic_name(layer)}
    names: dict[str, str] = {}
    for mine, theirs in zip(here, there, strict=True):
        if tuple(mine.shape) != theirs.shape:
            return {}
        # From the end: the first parts may be left out, as a loaded model leaves out its own name.
        for now, earlier in zip(reversed(mine.path.split("/")), reversed(theirs.name.split("/")), strict=False):
            if now in automatic and _unnumbered(now) != _unnumbered(earlier):
                return {}
            if now in automatic and names.setdefault(now, earlier) != earlier:
                return {}
    others = {now: earlier for now, earlier in names.items() if now != earlier}
    kept = {layer.name for layer in keras_private.layers_of(model)} - others.keys()
    if {*names} == {*names.values()} or kept & {*others.values()} or _by_name(model) & others.keys():
        return {}
    return others


def _unnumbered(name: str) -> str:
    return re.sub(r"_\d+$", "", name)


def _by_name(model: keras.Model) -> set[str]:
    """The names of outputs by which a model's losses and metrics are given."""
    given = keras_private.compile_arguments(model).values()
    return {name for one in given if isinstance(one, Mapping) for name in one}
