"""What a user of a trained network touches."""
