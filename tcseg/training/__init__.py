"""From options to a trained network."""
