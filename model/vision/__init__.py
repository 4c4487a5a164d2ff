"""Images: records, decoding, label trees, residual networks, losses and scores."""
