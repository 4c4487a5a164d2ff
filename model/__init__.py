"""What is learned: data, labels, networks, losses and metrics."""
