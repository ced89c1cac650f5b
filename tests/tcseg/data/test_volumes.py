"""Folders of volumes: planes joined, resampled, and every muddle named."""

import nibabel
import numpy as np
import pytest
import torch

from tcseg.data import load_dataset
from tcseg.errors import DataError

SHAPE = (6, 20, 24)  # depth, height, width


def blob(number, shape=SHAPE):
    """A ball of 2 with a box of 5 in it, on noise: image and labels, (D, H, W)."""
    rng = np.random.default_rng(number)
    z, y, x = np.indices(shape) / np.reshape(shape, (3, 1, 1, 1)) - 0.5
    labels = np.where(z**2 + y**2 + x**2 < 0.14, 2, 0).astype("u1")
    labels[:, 8:12, 9:14] = 5
    return (rng.integers(0, 40, shape) + 40 * labels).astype("u1"), labels


def as_nifti(planes, spacing=(1, 1, 1), corner=(0, 0, 0)):
    """Planes as viewers show them, in the axes of a file; corner and spacing are by its axes."""
    affine = np.diag([*spacing[::-1], 1.0])
    affine[:3, 3] = corner
    return nibabel.Nifti1Image(planes[:, ::-1].swapaxes(0, 2), affine)


def write(root, name, image, labels=None, spacing=(1, 1, 1)):
    for part, planes in (("images", image), ("masks", labels)):
        (root / part).mkdir(exist_ok=True)
        if planes is not None:
            nibabel.save(as_nifti(planes, spacing), root / part / f"{name}.nii.gz")


def load(root, **options):
    return load_dataset("folder", root=root, dimensions=3, **options)


def refused(root, *words, **options):
    with pytest.raises(DataError) as error:
        load(root, **options)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def truth(data, index):
    """Masks of an image, in its own extent."""
    own = tuple(map(slice, data.extent_of(index)))
    packed = data.masks[index].numpy()[:, *own]
    return packed[0] == np.arange(1, len(data.classes) + 1).reshape(-1, 1, 1, 1)


@pytest.fixture
def volumes(tmp_path):
    """Three volumes of different sizes with labels, and one without."""
    for number, shape in enumerate([SHAPE, (4, 20, 24), (6, 16, 30), (5, 10, 10)]):
        image, labels = blob(number, shape)
        write(tmp_path, f"v{number}", image, labels if number < 3 else None, spacing=(3, 1, 1))
    return tmp_path


def test_planes_of_a_file_are_one_volume(volumes):
    data = load(volumes)
    assert data.ids == ["v0", "v1", "v2", "v3"]
    assert data.images.shape == (4, 1, 6, 20, 30)
    assert data.extents.tolist() == [[6, 20, 24], [4, 20, 24], [6, 16, 30], [5, 10, 10]]
    assert data.spacings == [(3, 1, 1)] * 4
    assert data.annotated == [0, 1, 2]
    assert data.values == (2, 5)
    assert data.volumes == [None] * 4  # none is a plane
    for number in range(3):
        image, labels = blob(number, tuple(data.extents[number].tolist()))
        own = tuple(map(slice, image.shape))
        assert np.array_equal(data.images[number, 0].numpy()[own], image)
        assert data.images[number].sum() == image.sum()  # 0 beyond it
        assert np.array_equal(truth(data, number), [labels == 2, labels == 5])
        whole, spacing = data.original(number)
        assert np.array_equal(whole, [labels == 2, labels == 5])
        assert spacing == (3, 1, 1)
    assert not data.masks[3].any()


def test_planes_as_in_two_dimensions(volumes):
    """The same levels and masks as plane by plane, in the same order."""
    flat, data = load_dataset("folder", root=volumes, size="original"), load(volumes)
    for index, name in enumerate(data.ids):
        planes = [k for k, volume in enumerate(flat.volumes) if volume == name]
        stacked = flat.images[planes].movedim(0, 1)
        depth = stacked.shape[1]
        assert torch.equal(stacked, data.images[index][:, :depth])
        assert torch.equal(flat.masks[planes].movedim(0, 1), data.masks[index][:, :depth])
