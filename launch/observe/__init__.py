"""What a user looks at: pictures of a run."""
