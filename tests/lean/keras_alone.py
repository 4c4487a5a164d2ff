"""Hides from Keras what it imports only if it is there, in the process that imports this module.

`tests.conftest` puts this folder on PYTHONPATH, so that processes which tests start load Keras as a worker's image
does, which has no more than `.[worker]` installs. Here scikit-learn, Matplotlib and pandas take a third of the time in
which TensorFlow is imported, in each of hundreds of processes. Whoever else imports them gets them.
"""

import sys
from types import FrameType

_HIDDEN = ("matplotlib", "pandas", "sklearn")


class _Finder:
    """Finds nothing; raises for what is hidden."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name in _HIDDEN and _importer(sys._getframe(1)).startswith("keras."):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _importer(frame: FrameType | None) -> str:
    """The module whose `import` has led to a frame."""
    while frame is not None and "importlib" in frame.f_globals.get("__name__", ""):
        frame = frame.f_back
    return frame.f_globals.get("__name__", "") if frame is not None else ""


sys.meta_path.insert(0, _Finder)
