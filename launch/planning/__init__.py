"""What a cluster will do before there is one: a queueing model and its costs."""
