"""Clipping, by the name that recipes use; see `downpour.worker.step.clip`."""

from downpour.worker.step.clip import *  # noqa: F403
