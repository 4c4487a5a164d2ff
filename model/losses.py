"""Losses, by the name that recipes use; see `downpour.model.vision.losses`."""

from downpour.model.vision.losses import *  # noqa: F403
