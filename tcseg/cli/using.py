"""Commands that look at data and runs, and use what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tcseg.cli.options import (
    OF_FOLDERS,
    FileToWrite,
    check_root,
    config_file_option,
    config_options,
    device_option,
    examples,
    moved_root_option,
    network_option,
    out_option,
    postprocess_option,
    read_config,
    with_options,
)
from tcseg.io.sizes import shape_of
from tcseg.runs.folder import RunFolder
from tcseg.sheet import plain_console

# Options that say what the network is shown.
SHOWN = (
    *("data", "root", "dimensions", "size", "spacing", "patch", "split", "split_file"),
    *(*OF_FOLDERS, "cache", "seed", "recipe", "displacement_std"),
)


@click.command(
    epilog=examples(
        "tcseg preview --out preview.png",
        "tcseg preview --data folder --root mine --recipe paper --out preview.png",
    )
)
@config_options(*SHOWN)
@click.option("--images", default=4, show_default=True, type=click.IntRange(1, 20), help="Rows.")
@out_option("PNG file to write.", FileToWrite(".png"))
@config_file_option
@click.pass_context
def preview(
    ctx: click.Context, config_file: Path | None, images: int, out: Path, **options: Any
) -> None:
    """Draw what the network is shown: deformations, deformed images, aligned labels."""
    config = read_config(ctx, config_file, options)

    from tcseg.data import load_dataset, make_split
    from tcseg.method.recipes import recipe
    from tcseg.training.preview import preview as draw

    dataset = load_dataset(config.data, **config.reading)
    shown = make_split(dataset, config.split, config.split_file).train[:images]
    spacing = None if config.dimensions == 2 else dataset.pixel
    transform = recipe(config.recipe, config.displacement_std, spacing)
    title = f"{config.data}, recipe {config.recipe}"
    agreement = draw(out, dataset, shown, transform, config.seed, title, config.patch)
    click.echo(f"{out}: labels carried from one view to the other agree, IOU {agreement:.3f}")


@click.command(
    epilog=examples(
        "tcseg predict runs/semitc image.png --out found",
        "tcseg predict runs/semitc scans/ more/scan.dcm --out found --postprocess",
    )
)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@out_option("Folder to write to, made if it is missing.")
@postprocess_option
@click.option(
    "--consistency/--no-consistency",
    default=True,
    show_default=True,
    help="Measure how much predictions disagree when the image is deformed.",
)
@click.option("--overlays/--no-overlays", default=True, show_default=True, help="Draw pictures.")
@click.option(
    "--spacing",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MM",
    help="Height and width of a pixel in mm, of images whose files do not say.",
)
@device_option
@network_option
@click.pass_context
def predict(
    ctx: click.Context,
    run: Path,
    inputs: tuple[Path, ...],
    out: Path,
    device: str,
    network: str | None,
    **options: Any,
) -> None:
    """Segment INPUTS, files or folders, with the network of the folder RUN.

    Subfolders are searched too. Writes masks at the size of the image, in the form of the masks
    trained with: label maps of the same values, or a folder for each structure (PNG; TIFF for
    several pages; NIfTI for NIfTI; DICOM-SEG for DICOM); an overlay; and measurements.csv: areas
    (in mm2 where the file says how large a pixel is), cardiothoracic ratio of chests, and
    consistency: how well predictions for deformed views agree, from 0 to 1, empty where nothing was
    found. Images with a low value, or none, are the ones to check, or to label next.

    A file that cannot be read is named and skipped; the exit status is then 1. The same command
    again goes on where it was stopped, and at the same time, here or on other machines (torchrun, a
    Slurm array), shares the files: the table has all of them.
    """
    from tcseg.use.predict import predict as predict_files
    from tcseg.use.segmenter import load

    console = plain_console()
    segmenter = load(run, device, network=network)
    problems = predict_files(segmenter, inputs, out, console=console, **options)
    console.print(f"Masks, overlays and measurements.csv: {out}")
    for problem in problems:
        click.echo(f"Error: {with_options(problem)}", err=True)
    if problems:
        ctx.exit(1)


@click.command(
    epilog=examples(
        "tcseg export runs/semitc --format onnx --out semitc.onnx",
        "tcseg export runs/semitc --format pt2 --out semitc.pt2",
    )
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["onnx", "pt2"]),
    default="onnx",
    show_default=True,
    help="Form of the file: ONNX, or that of torch.export.",
)
@out_option("File to write.", FileToWrite(".onnx", ".pt2"))
@network_option
def export(run: Path, form: Any, out: Path, network: str | None) -> None:
    """Write the network of the folder RUN for other programs; run it there and compare.

    ONNX needs the packages onnx, onnxscript and onnxruntime: pip install "tcwarp[export]".
    """
    if out.suffix.lower() != f".{form}":
        raise click.UsageError(f"--out {out} does not end in .{form}, the --format")

    from tcseg.use.export import export as write
    from tcseg.use.segmenter import load

    segmenter = load(run, "cpu", network=network)
    difference = write(segmenter, out, form)
    model = segmenter.model
    sides = shape_of(model.seen, model.dimensions)
    shape = ", ".join(map(str, (model.channels, *sides)))
    click.echo(
        f"{out}: images (b, {shape}) in [0, 1] to probabilities of "
        f"{', '.join(segmenter.classes)}, background; "
        f"{'patches of larger images; ' if model.patch is not None else ''}"
        f"run and compared: largest difference {difference:.1e}"
    )


@click.command(
    epilog=examples(
        "tcseg report runs/semitc --out semitc.html",
        "tcseg report runs/baseline runs/semitc --out comparison.html",
    )
)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@out_option("HTML file.", FileToWrite(".html", ".htm"))
@moved_root_option
@device_option
@network_option
def report(
    runs: tuple[Path, ...], out: Path, root: str | None, device: str, network: str | None
) -> None:
    """Write finished RUNS as one HTML page: curves, tables, best and worst cases."""
    for run in map(RunFolder, runs):
        run.summary()  # or an error, before the slow imports
    if all(RunFolder(run).config().data == "phantom" for run in runs):
        check_root("phantom", root, way="")

    from tcseg.use.report import report as write

    notes = write(runs, out, root=root, device=device, network=network)
    click.echo(f"Written: {out}")
    for note in notes:
        click.echo(f"Note: {with_options(note)}", err=True)
