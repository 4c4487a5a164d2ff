"""What is done: the pure training step, the exchange with the shards, the chief and the evaluator."""

import sys

from downpour.worker.step import clip

sys.modules[f"{__name__}.clip"] = clip  # recipes may go on writing `from downpour.worker.clip import Clip`
