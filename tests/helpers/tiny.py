"""The one tiny configuration of trainings in tests, and the same of volumes."""

import dataclasses

from tcseg.runs.config import Config

TINY = Config(
    data="phantom",
    size=32,
    batch_size=4,
    labelled=5,
    pretrain_steps=6,
    steps=6,
    validate_every=3,
    checkpoint_every=2,
    device="cpu",
)
TINY_VOLUMES = dataclasses.replace(TINY, dimensions=3, patch="16x32x32", batch_size=2)
