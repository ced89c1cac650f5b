"""What is measured on masks: the public door to `tcseg.evaluation.metrics`."""

from tcseg.evaluation.metrics import *  # noqa: F403
