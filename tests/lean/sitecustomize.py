"""Python imports this module at start if it is on its path."""

import keras_alone  # noqa: F401
