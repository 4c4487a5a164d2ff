"""Predicts a cluster's performance: a queueing model and its costs."""
