"""Other systems, measured as we measure ours."""
