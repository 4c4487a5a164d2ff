"""Label trees, by the name that recipes use; see `downpour.model.vision.labels`."""

from downpour.model.vision.labels import *  # noqa: F403
