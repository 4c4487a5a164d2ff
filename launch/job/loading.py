"""Loads TensorFlow faster than a plain import does; a process may also import it in any other way."""

from __future__ import annotations

import gc


def load_tensorflow() -> None:
    """Imports TensorFlow, if that has not happened yet, without the search for garbage while its modules are made.

    The search takes a fifth of the import's time and finds next to nothing. What is there afterwards stays, and no
    later search walks through it. TensorFlow imports Keras, so Keras' settings must have been checked.
    """
    searches = gc.isenabled()
    gc.disable()
    try:
        import tensorflow  # noqa: F401
    finally:
        if searches:
            gc.enable()
    gc.freeze()
