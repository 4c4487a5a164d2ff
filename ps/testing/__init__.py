"""Named points in a shard's code where tests interrupt it."""
