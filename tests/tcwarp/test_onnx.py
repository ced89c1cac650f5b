"""Warps in ONNX: what the runtime makes of them is what the operator does."""

import numpy as np
import pytest
import torch
from assertions import assert_close
from strategies import PADDING_MODES, displacement_values, image_values

import tcwarp

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Module(torch.nn.Module):
    """A warp amid other things, by a field of another size than the image."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.layer = tcwarp.Warp(**options)

    def forward(self, image, field):
        """Warp."""
        return self.layer(image, field) + 0


def run(module, *arguments, dynamic=None, others=()):
    import tcwarp.onnx

    program = torch.onnx.export(
        module,
        arguments,
        dynamo=True,
        opset_version=20,
        dynamic_shapes=dynamic,
        custom_translation_table=tcwarp.onnx.translations(),
        verbose=False,
    )
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    names = [node.name for node in session.get_inputs()]
    given = others or arguments
    (output,) = session.run(None, dict(zip(names, (x.numpy() for x in given), strict=True)))
    return torch.from_numpy(output)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(
    "size, grid, fields",
    [
        ((9, 12), (7, 15), 1),
        pytest.param((9, 12), (9, 12), 2, marks=pytest.mark.slow),
        pytest.param((5, 6, 7), (4, 8, 5), 2, marks=pytest.mark.slow),
    ],
)
def test_the_runtime_warps_alike(mode, padding_mode, size, grid, fields):
    image = image_values(torch.float32, (2, 3, *size), 0)
    field = displacement_values("halves", (fields, len(size), *grid), 1).float() / 3
    module = Module(mode=mode, padding_mode=padding_mode)
    assert_close(run(module, image, field), module(image, field), "onnx", atol=2e-5)


@pytest.mark.filterwarnings("ignore")
def test_labels_and_ties():
    labels = image_values(torch.uint8, (1, 1, 6, 9), 0)
    field = displacement_values("halves", (1, 2, 6, 9), 1).float()
    module = Module(mode="nearest", padding_mode="border")
    output = run(module, labels, field)
    assert output.dtype == torch.uint8
    np.testing.assert_array_equal(output.numpy(), module(labels, field).numpy())


@pytest.mark.filterwarnings("ignore")
def test_sizes_may_vary():
    dim = torch.export.Dim
    height, width, rows, columns = (dim(name, min=2, max=512) for name in "hwrc")
    dynamic = ({2: height, 3: width}, {2: rows, 3: columns})
    arguments = [
        (
            image_values(torch.float32, (1, 1, *size), 0),
            displacement_values("smooth", (1, 2, *grid), 1).float(),
        )
        for size, grid in (((6, 9), (5, 8)), ((11, 7), (4, 12)))
    ]
    module = Module(mode="linear")
    output = run(module, *arguments[0], dynamic=dynamic, others=arguments[1])
    assert_close(output, module(*arguments[1]), "onnx", atol=2e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_spline_cannot_be_exported():
    with pytest.raises(Exception, match="'cubic' cannot be exported to ONNX") as caught:
        run(Module(mode="cubic"), torch.rand(1, 1, 4, 4), torch.zeros(1, 2, 4, 4))
    assert caught
