"""Treatments of staleness, by the name that recipes use; see `downpour.ps.policy.staleness`."""

from downpour.ps.policy.staleness import *  # noqa: F403
