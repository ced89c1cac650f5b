"""What recipes and losses are called: without torch, whose import takes `--help` two seconds."""

RECIPES = ("strong", "paper")
LOSSES = ("soft-iou", "jaccard-metric", "dice", "cross-entropy", "squared-error")
