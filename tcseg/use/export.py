"""The command `tcseg export`: a trained network in a form that other programs run."""

from __future__ import annotations

import importlib
import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from tcseg.errors import RunError
from tcseg.extras import needs
from tcseg.method.network import Segmentation
from tcseg.use.segmenter import Segmenter

__all__ = ["export"]

# Of probabilities, between the network and what was exported; kernels add in another order.
TOLERANCE = 1e-4


def export(
    segmenter: Segmenter, path: str | os.PathLike[str], form: Literal["onnx", "torchscript"]
) -> float:
    """Write a network, then run what was written and compare.

    It maps float32 images (b, C, size, size) in [0, 1] to probabilities (b, classes + 1, size,
    size), background last, for any b; classes and size stand in its metadata.

    Parameters
    ----------
    segmenter : Segmenter
        The trained network, on the CPU.
    path
        The file to write.
    form : {"onnx", "torchscript"}
        Its form.

    Returns
    -------
    float
        The largest difference from the network on random images.

    Raises
    ------
    RunError
        If the network cannot be exported, or the export does something else; no file is left then.
    MissingPackageError
        If a package for ONNX is not installed.
    """
    path = Path(path)
    if path.exists():
        raise RunError(f"{path} exists; choose another `out`")
    if form == "onnx":
        with needs("export"):
            for name in ("onnx", "onnxscript", "onnxruntime"):
                importlib.import_module(name)
    model = segmenter.model
    network = _in_single_precision(segmenter.network)
    shape = (model.channels, model.size, model.size)
    generator = torch.Generator().manual_seed(0)
    example = torch.rand(2, *shape, generator=generator)
    metadata = {
        "classes": json.dumps([*model.classes, "background"]),
        "size": str(model.size),
        "values": json.dumps(model.values),
        "spacing_mm": json.dumps(model.spacing),
        "input": "float32 (b, channels, size, size) in [0, 1]",
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    write, run = _FORMS[form]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # of operators that are not used
    try:
        with warnings.catch_warnings():
            # Of what the tracers of torch and the networks of MONAI do in general: what comes out
            # is compared below.
            warnings.simplefilter("ignore")
            write(network, example, temporary, metadata)
        difference = 0.0
        for batch in (1, 3):
            images = torch.rand(batch, *shape, generator=generator)
            with torch.inference_mode():
                expected = network(images).numpy()
            found = run(temporary, images)
            if found.shape != expected.shape:
                raise RunError(f"{path}: exported, it gives {found.shape}, not {expected.shape}")
            difference = max(difference, float(np.abs(found - expected).max()))
        if not difference <= TOLERANCE:
            raise RunError(
                f"{path}: exported, the network differs by {difference:.2g} from itself; "
                "try another `format`"
            )
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    except (ImportError, RunError):
        raise
    except Exception as error:  # exporters raise their own kinds
        raise RunError(
            f"the network cannot be exported as {form}: {error or type(error).__name__}"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return difference


def _in_single_precision(network: nn.Module) -> nn.Module:
    # Autocast is of training; elsewhere weights are float32, and so are sums.
    network = network.cpu().eval()
    if isinstance(network, Segmentation):
        network.precision = torch.float32
    return network


def _write_onnx(
    network: nn.Module, example: torch.Tensor, path: Path, metadata: dict[str, str]
) -> None:
    import onnx

    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        network,
        (example,),
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes=({0: batch},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(proto, metadata)
    path.write_bytes(proto.SerializeToString())


def _run_onnx(path: Path, images: torch.Tensor) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"images": images.numpy()})[0])


def _write_torchscript(
    network: nn.Module, example: torch.Tensor, path: Path, metadata: dict[str, str]
) -> None:
    traced = torch.jit.trace(network, example)
    torch.jit.save(traced, str(path), _extra_files={k: v.encode() for k, v in metadata.items()})


def _run_torchscript(path: Path, images: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        found: Any = torch.jit.load(str(path))(images)
    return np.asarray(found)


_FORMS = {
    "onnx": (_write_onnx, _run_onnx),
    "torchscript": (_write_torchscript, _run_torchscript),
}
