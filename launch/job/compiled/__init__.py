"""What a compiled `keras.Model` says of its training, as fields of a job: taken over, or refused by name.

`from_compiled(model)` reads the optimizer. Loss, loss weights and metrics stay on the model: workers call its
`compute_loss`, the evaluator its `test_step`. The other arguments of `compile`:

| argument | |
|---|---|
| `auto_scale_loss` | taken over: it has wrapped the optimizer in `LossScaleOptimizer`, or not |
| `run_eagerly=True` | refused: a worker's step is always compiled |
| `steps_per_execution` | has no effect: it groups steps between callbacks, a worker exchanges after each step |
| `jit_compile` | has no effect on a worker, whose step TensorFlow compiles: XLA changes speed and rounding only |

Keras with the TensorFlow backend is imported; importing a job or a recipe does not import this package.
"""

from downpour.launch.job.compiled.model import Compiled, from_compiled
from downpour.launch.job.compiled.optimizer import LossScaling

__all__ = ["Compiled", "LossScaling", "from_compiled"]
