"""The network of a run together with the data that it is measured on."""

from __future__ import annotations

from pathlib import Path

from tcseg.data import Dataset, Split, load_dataset, read_splits
from tcseg.runs.folder import RunFolder
from tcseg.use.segmenter import Segmenter, load


def load_with_data(
    run: Path,
    device: str,
    root: str | None = None,
    network: str | None = None,
    cache: str | None = None,
    whole: bool = False,
) -> tuple[Segmenter, Dataset, Split]:
    """Load the network of a run with its data, on one device, and the split it was trained on.

    The split is that of the run, not one of the data as they are now: masks added later would turn
    training images into test images.

    Parameters
    ----------
    run, device, network
        As for `load`.
    root, cache
        Folders of the data and of decoded images, where they are not those trained with.
    whole
        Whether the split is not that of the run, and all images with masks are for the test.

    Raises
    ------
    RunError, ValueError
        As `load`; also if the data are of another kind than the run's.
    DataError
        If the data cannot be read, or lack an image of the split.
    """
    folder = RunFolder(run)
    config = folder.config()
    segmenter = load(run, device, network=network)
    model = segmenter.model
    reading = config.reading | {
        "root": root or config.root,
        "cache": cache or config.cache,
        "window": model.window,
        "dimensions": model.dimensions,
    }
    dataset = load_dataset(config.data, **reading, scale=model.scale)
    if dataset.resampled != model.voxel:  # the median is another by now
        reading["spacing"] = model.resampled_to
        dataset = load_dataset(config.data, **reading, scale=model.scale)
    segmenter.check(dataset, run)
    split = Split([], [], list(dataset.with_masks), [])
    if not whole:
        folder.split_record()  # or a clear error
        (split,) = read_splits(run / "split.json", dataset, option="")
    return segmenter, dataset.to(segmenter.device), split
