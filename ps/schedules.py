"""Learning-rate schedules, by the name that recipes use; see `downpour.ps.policy.schedules`."""

from downpour.ps.policy.schedules import *  # noqa: F403
