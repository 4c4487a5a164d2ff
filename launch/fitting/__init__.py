"""What a caller of `downpour.fit` holds and sees: the run, its history, its callbacks, its progress."""
