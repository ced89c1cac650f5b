"""The commands below `tcseg data`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tcseg.cli.options import (
    OF_FOLDERS,
    FileToWrite,
    check_root,
    config_options,
    examples,
    out_option,
)
from tcseg.errors import RunError
from tcseg.io.sizes import pixels
from tcseg.sheet import plain_console


@click.group()
def data() -> None:
    """Look at a data set before training with it."""


_data_options = config_options("data", "root", *OF_FOLDERS, "dimensions", "spacing")


@data.command(
    epilog=examples(
        "tcseg data check --data jsrt --root JSRT",
        "tcseg data check --data jsrt --root JSRT --sheet sheet.png",
    )
)
@_data_options
@click.option(
    "--size",
    type=pixels,
    show_default="256; volumes of a folder: original",
    help="To read at, in pixels.",
)
@click.option("--split-file", type=click.Path(path_type=Path), help="File of splits to check, too.")
@click.option(
    "--sheet",
    type=FileToWrite(".png"),
    help="PNG to draw a contact sheet to: images with the outlines of their masks.",
)
@click.pass_context
def check(
    ctx: click.Context,
    data: str,
    size: int | str | None,
    split_file: Path | None,
    sheet: Path | None,
    **reading: Any,
) -> None:
    """Report what a data set holds, what is missing, and how it would be split.

    The exit status is 1 if there is a problem.
    """
    root = reading["root"]
    check_root(data, root)

    from tcseg.cli.check import SHEET_IMAGES, tell_problems
    from tcseg.cli.check import check as check_dataset
    from tcseg.data import folder, jsrt, jsrt_root, load_dataset
    from tcseg.errors import DataError, Problems

    problems = Problems(collect=True)
    console = plain_console()
    if size is None and reading["dimensions"] == 2:
        size = 256
    try:
        dataset = load_dataset(data, size=size, problems=problems, **reading)
    except DataError:
        tell_problems(problems, console)
        raise
    formats = {}
    if data == "jsrt":
        formats = jsrt.formats(jsrt_root(root))
    elif data == "folder":
        formats = folder.formats(root, reading["mask_pattern"])
    fine = check_dataset(dataset, problems, formats, split_file, console)
    if sheet is not None and len(dataset):
        from tcseg.evaluation.pictures import save_contact_sheet, spread

        shown = spread(range(len(dataset)), SHEET_IMAGES)
        title = f"{data}: {len(shown)} of {len(dataset)} {dataset.noun}s"
        save_contact_sheet(sheet, dataset, shown, title)
        console.print(f"Contact sheet: {sheet}")
    if not fine:
        ctx.exit(1)


@data.command(epilog=examples("tcseg data splits --data jsrt --root JSRT --out splits.json"))
@_data_options
@out_option(
    "JSON file to write, to be used with --split-file, edited or as it is.", FileToWrite(".json")
)
def splits(data: str, out: Path, **reading: Any) -> None:
    """Write the five splits, images by their ids.

    The first n training images of a split are the n labelled ones, so that subsets are nested.
    """
    check_root(data, reading["root"])

    from tcseg.data import MIN_SIZE, load_dataset, make_split, save_splits
    from tcseg.errors import Problems

    if out.exists():
        raise RunError(f"{out} exists; choose another --out")
    # What is wrong, `tcseg data check` says; the images that are left have their split.
    problems = Problems(collect=True)
    dataset = load_dataset(data, size=MIN_SIZE, problems=problems, **reading)
    save_splits(out, dataset, [make_split(dataset, number) for number in range(5)])
    click.echo(f"Written: {out}")


@data.command(
    epilog=examples(
        "tcseg data convert --root mine --out plain",
        "tcseg data convert --root mine --out Dataset001_Mine --layout nnunet",
    )
)
@click.option("--root", required=True, type=click.Path(path_type=Path), help="Folder to read.")
@config_options(*OF_FOLDERS)
@out_option("Folder to make, or an empty one.", click.Path(path_type=Path))
@click.option(
    "--layout",
    type=click.Choice(("plain", "nnunet")),
    default="plain",
    show_default=True,
    help="images/ and masks/, or imagesTr/, labelsTr/ and dataset.json.",
)
def convert(root: Path, out: Path, layout: str, **reading: Any) -> None:
    """Convert a folder of images to the plain layout, or to that of nnU-Net."""
    from tcseg.data.convert import convert

    convert(root, out, nnunet=layout == "nnunet", **reading)
    click.echo(f"Written: {out}")
