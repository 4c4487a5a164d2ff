"""The training step: forward pass, gradients, factors, clipping, loss scale. All TensorFlow of a worker is here."""
