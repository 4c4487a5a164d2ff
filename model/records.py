"""Files of records, by the name that recipes use; see `downpour.model.vision.records`."""

from downpour.model.vision.records import *  # noqa: F403
