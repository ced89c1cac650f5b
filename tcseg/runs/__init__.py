"""A run as files: its options, figures, checkpoint and weights."""
