"""Paces, by the name that recipes use; see `downpour.ps.policy.pace`."""

from downpour.ps.policy.pace import *  # noqa: F403
