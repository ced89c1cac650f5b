"""Semi-supervised segmentation by transformation consistency.

`tcseg.load(run)` gives a trained network to use, `tcseg.metrics` what is measured on masks; the
command `tcseg` does the rest.
"""

import importlib
from typing import TYPE_CHECKING, Any

from tcseg.extras import needs

if TYPE_CHECKING:
    from tcseg import metrics
    from tcseg.use.segmenter import Segmenter, load

__all__ = ["Segmenter", "load", "metrics"]


def __getattr__(name: str) -> Any:
    # Late: torch and what builds on it take seconds, and `tcseg --help` needs none of them.
    if name in __all__:
        with needs("tcseg"):
            if name == "metrics":
                return importlib.import_module("tcseg.metrics")
            return getattr(importlib.import_module("tcseg.use.segmenter"), name)
    raise AttributeError(f"module 'tcseg' has no attribute {name!r}")
