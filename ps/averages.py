"""Averages of the parameters, by the name that recipes use; see `downpour.ps.policy.averages`."""

from downpour.ps.policy.averages import *  # noqa: F403
