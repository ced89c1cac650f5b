"""The command `tcseg export`: a trained network in a form that other programs run."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram

from tcseg.errors import RunError
from tcseg.extras import needs
from tcseg.io.sizes import shape_of
from tcseg.method.network import Segmentation
from tcseg.use.segmenter import Segmenter

# Of probabilities, between the network and what was exported; kernels add in another order.
TOLERANCE = 1e-4


def export(
    segmenter: Segmenter, path: str | os.PathLike[str], form: Literal["onnx", "pt2"]
) -> float:
    """Write a network, then run what was written and compare.

    It maps float32 images (b, C, height, width) in [0, 1], of the size trained at, to probabilities
    (b, classes + 1, height, width), background last, for any b. Where patches were trained on, that
    is the size of a patch, and whoever runs the file has to slide over larger images. Classes and
    size (256, or 256x512) stand in its metadata.

    Parameters
    ----------
    segmenter : Segmenter
        The trained network, which stays as it is.
    path
        The file to write.
    form : {"onnx", "pt2"}
        Its form: ONNX, or that of `torch.export`.

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
    shape = (model.channels, *shape_of(model.seen, model.dimensions))
    axes = "depth, " if model.dimensions == 3 else ""
    metadata = {
        "classes": json.dumps([*model.classes, "background"]),
        "size": str(model.seen),
        "values": json.dumps(model.values),
        "spacing_mm": json.dumps(model.spacing),
        "input": f"float32 (b, channels, {axes}height, width) in [0, 1]",
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    write, run = _FORMS[form]
    try:
        with _quiet():
            batch = {0: torch.export.Dim("batch")}
            program = torch.export.export(
                network, (torch.zeros(2, *shape),), dynamic_shapes=(batch,)
            )
            write(program, temporary, metadata)
        difference = _difference(network, lambda images: run(temporary, images), shape)
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


def _difference(
    network: nn.Module, exported: Callable[[torch.Tensor], np.ndarray], shape: tuple[int, ...]
) -> float:
    """Return the largest difference of probabilities, on random images."""
    largest = 0.0
    generator = torch.Generator().manual_seed(0)
    for count in (1, 3):
        images = torch.rand(count, *shape, generator=generator)
        with torch.inference_mode():
            expected, results = network(images).numpy(), exported(images)
        if results.shape != expected.shape:
            raise RunError(f"exported, the network gives {results.shape}, not {expected.shape}")
        largest = max(largest, float(np.abs(results - expected).max()))
    return largest


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what exporters say of torch and MONAI in general: the result is compared."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _in_single_precision(network: nn.Module) -> nn.Module:
    """Return a copy on the CPU: autocast is for training; elsewhere all is float32."""
    network = copy.deepcopy(network).cpu().eval()
    if isinstance(network, Segmentation):
        network.precision = torch.float32
    return network


def _write_onnx(program: ExportedProgram, path: Path, metadata: dict[str, str]) -> None:
    import onnx

    written = torch.onnx.export(
        program, input_names=["images"], output_names=["probabilities"], verbose=False
    )
    assert written is not None
    proto = written.model_proto
    onnx.helper.set_model_props(proto, metadata)
    path.write_bytes(proto.SerializeToString())


def _run_onnx(path: Path, images: torch.Tensor) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"images": images.numpy()})[0])


def _write_pt2(program: ExportedProgram, path: Path, metadata: dict[str, str]) -> None:
    content = io.BytesIO()  # a path would have to end on .pt2
    torch.export.save(program, content, extra_files=metadata)
    path.write_bytes(content.getbuffer())


def _run_pt2(path: Path, images: torch.Tensor) -> np.ndarray:
    program = torch.export.load(io.BytesIO(path.read_bytes()))
    return np.asarray(program.module()(images))


_FORMS = {"onnx": (_write_onnx, _run_onnx), "pt2": (_write_pt2, _run_pt2)}
