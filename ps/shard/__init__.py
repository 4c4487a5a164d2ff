"""The shard itself: its vector, pushes, pulls and publications."""
