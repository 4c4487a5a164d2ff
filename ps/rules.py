"""Update rules, by the name that recipes use; see `downpour.ps.policy.rules`."""

from downpour.ps.policy.rules import *  # noqa: F403
