"""Checkpoints: the files and their manifest, folders and object stores, restoring on any number of shards."""
