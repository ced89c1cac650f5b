"""Named distributions of transforms: what the option `recipe` chooses from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tcseg.method.transforms import Affine, Compose, Elastic, Transform

# What `recipe` names: deformations ten times as large as those of the paper, and the
# distribution T of the paper. On JSRT, 5 labels, rotation and scale beside them gain nothing,
# changes of intensity cost 3 points of mIOU: benchmarks/results/jsrt.md.
RECIPES: dict[str, Transform] = {
    "strong": Elastic(displacement_std=16.0, sigma=100.0, identity_probability=0.5),
    "paper": Elastic(magnitude=1000.0, sigma=100.0, identity_probability=0.5),
}


def recipe(
    name: str, displacement_std: float | None = None, spacing: Sequence[float] | None = None
) -> Transform:
    """Return the transforms that `recipe` names, elastic fields of another strength on demand.

    Parameters
    ----------
    name : str
        A key of `RECIPES`.
    displacement_std : float, optional
        Root mean square displacement in pixels at 512 x 512, in place of the recipe's.
    spacing : sequence of float, optional
        How long a pixel is along each axis, in any unit; the same along all if not given.
    """

    def changed(transform: Transform) -> Transform:
        if isinstance(transform, Compose):
            return replace(transform, transforms=[changed(t) for t in transform.transforms])
        if isinstance(transform, Elastic) and displacement_std is not None:
            transform = replace(transform, displacement_std=displacement_std)
        if isinstance(transform, Elastic | Affine):
            return replace(transform, spacing=spacing)
        return transform

    return changed(RECIPES[name])
