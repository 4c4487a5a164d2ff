"""Residual networks, by the name that recipes use; see `downpour.model.vision.resnet`."""

from downpour.model.vision.resnet import *  # noqa: F403
