"""Which values of a CT are black and which white: windows by name, or by centre and width."""

from __future__ import annotations

import re

# Centre and width in Hounsfield units: https://radiopaedia.org/articles/windowing-ct (bone: of the
# spine; abdomen: soft tissues).
WINDOWS = {
    "lung": (-600.0, 1500.0),
    "mediastinum": (50.0, 350.0),
    "abdomen": (50.0, 400.0),
    "liver": (30.0, 150.0),
    "brain": (40.0, 80.0),
    "bone": (400.0, 1800.0),
}

Limits = tuple[float, float]
"""Values that are shown as black and white."""


def window_limits(window: str) -> Limits:
    """Return the ends of a window: one of `WINDOWS`, or centre and width as "-600,1500".

    Raises
    ------
    ValueError
        If it is neither.
    """
    try:
        centre, width = WINDOWS.get(window) or map(float, re.split(r"[\s,]+", window.strip()))
    except ValueError:
        centre = width = 0.0
    if not (0 < width < float("inf") and abs(centre) < float("inf")):
        raise ValueError(
            f"`window` must be centre and width, such as -600,1500, or one of {', '.join(WINDOWS)}"
            f"; got {window!r}"
        )
    return centre - width / 2, centre + width / 2
