"""What recipes, losses and networks are called, without torch: its import takes two seconds."""

RECIPES = ("strong", "paper")
LOSSES = ("soft-iou", "jaccard-metric", "dice", "cross-entropy", "squared-error")
# Any other name is the dotted path of code of somebody else's.
OWN_NETWORKS = ("unet",)
