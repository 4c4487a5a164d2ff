"""What a shard computes, as values and formulas: rules, schedules, paces, staleness treatments, constraints."""
