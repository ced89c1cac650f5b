"""What changes from step to step: the learning rate, and the weight of the consistency term."""

from __future__ import annotations

from tcseg.runs.config import Config


def learning_rate(config: Config, step: int) -> float:
    """Return the rate after `step` steps: it falls to 0 over the steps after pre-training."""
    done = max(0, step - config.pretrain_steps) / max(1, config.steps)
    return config.learning_rate * (1 - done)


def consistency_weight(config: Config, step: int) -> float:
    """Return lambda after `step` steps: it may rise linearly over the first of the method."""
    done = step - config.pretrain_steps + 1
    return config.consistency_weight * min(1.0, done / max(1, config.consistency_rampup))
