"""Semi-supervised segmentation by transformation consistency."""
