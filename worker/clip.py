"""Re-exports `downpour.worker.step.clip` under the name that recipes use."""

from downpour.worker.step.clip import *  # noqa: F403
