"""The model that `downpour.fit` was given, and how the processes of the job get it: a file, or its function."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from downpour.launch.job.written import UNSAVED, Writer, saved_model
from downpour.model import keras_private, unsaved

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class GivenModel:
    """A model, built in this process.

    Attributes:
        model: The model.
        builder: The function that returned it, which every process calls; None for a model that is saved and loaded.
    """

    model: keras.Model
    builder: Callable[[], keras.Model] | None = None

    @classmethod
    def of(cls, given: Any) -> GivenModel:
        """Calls a function; layers without a name get the names that they get in every process of the job."""
        if not isinstance(given, types.FunctionType):
            return cls(given)
        keras_private.restart_numbering()
        return cls(given(), given)

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
            self.model.save(path)
            unsaved.write(self.model, path.with_suffix(UNSAVED))

    def copy(self, path: Path) -> Callable[[], keras.Model]:
        """Returns a function that makes another model like it, from the file that was saved."""
        if self.builder is not None:
            return self.builder
        from downpour.model.own_objects import own_objects

        return saved_model(path, {one.name: one.value for one in own_objects(self.model)})
