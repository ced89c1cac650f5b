"""Figures that were published on JSRT: the two tables of Bortsova et al., MICCAI 2019."""

from typing import NamedTuple

# Table 1: mIOU in percent over five splits, mean and standard deviation, by method and number of
# labelled images.
TABLE1: dict[str, dict[int, tuple[float, float]]] = {
    "baseline": {
        5: (74.2, 3.8),
        10: (82.8, 1.3),
        25: (87.5, 0.4),
        50: (89.0, 0.3),
        100: (90.6, 0.2),
    },
    "suptc": {5: (76.4, 3.8), 10: (83.6, 1.4), 25: (87.8, 0.4), 50: (89.5, 0.2), 100: (90.9, 0.3)},
    "semitc": {5: (85.4, 1.0), 10: (86.9, 1.4), 25: (88.7, 1.0), 50: (89.7, 0.2)},
    "semitc+": {
        5: (85.0, 2.8),
        10: (87.9, 0.8),
        25: (89.7, 0.4),
        50: (90.5, 0.3),
        100: (91.1, 0.1),
    },
}

STRUCTURES = ("lungs", "heart", "clavicles")


class Published(NamedTuple):
    """A row of table 2: mean and standard deviation by structure, None where not reported."""

    name: str
    labelled: str  # images with labels, training and validation together
    iou: tuple[tuple[float, float | None] | None, ...]
    macd_mm: tuple[tuple[float, float | None] | None, ...]


_NONE = (None, None, None)

# Table 2: post-processed; IOU in percent, mean absolute contour distance in mm.
TABLE2_OTHERS = (
    Published(
        "human (van Ginneken et al. 2006)",
        "",
        ((94.6, 1.8), (87.8, 5.4), (89.6, 3.7)),
        ((1.64, 0.69), (3.78, 1.82), (0.68, 0.26)),
    ),
    Published("Dai et al. 2018", "209", ((94.7, 0.4), (86.6, 1.2), None), _NONE),
    Published("Novikov et al. 2018", "165", ((94.8, None), (87.8, None), (85.9, None)), _NONE),
    Published(
        "Frid-Adar et al. 2018",
        "124 (123)",
        ((96.1, 1.4), (90.6, 3.8), (85.5, 4.5)),
        ((1.02, 0.56), (2.54, 1.13), (0.85, 0.32)),
    ),
)
# By method and number of labelled training images.
TABLE2: dict[tuple[str, int], Published] = {
    ("baseline", 10): Published(
        "baseline, paper",
        "20",
        ((93.3, 3.4), (81.7, 13.1), (75.7, 12.4)),
        ((1.67, 0.99), (5.56, 4.41), (1.93, 2.42)),
    ),
    ("semitc+", 10): Published(
        "semitc+, paper",
        "20",
        ((94.5, 2.1), (85.2, 9.4), (83.3, 6.6)),
        ((1.35, 0.58), (4.51, 3.20), (1.16, 0.57)),
    ),
    ("baseline", 100): Published(
        "baseline, paper",
        "124 (123)",
        ((95.3, 2.3), (88.8, 5.2), (87.3, 4.6)),
        ((1.17, 0.70), (3.36, 1.61), (0.87, 0.39)),
    ),
    ("semitc+", 100): Published(
        "semitc+, paper",
        "124 (123)",
        ((95.5, 1.9), (88.8, 4.9), (88.1, 4.4)),
        ((1.10, 0.57), (3.37, 1.58), (0.81, 0.32)),
    ),
}
