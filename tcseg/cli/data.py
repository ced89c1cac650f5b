"""The commands below `tcseg data`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from tcseg.cli.options import OF_FOLDERS, FileToWrite, check_root, config_option, examples
from tcseg.errors import RunError
from tcseg.runs.config import DATA_SETS, Config
from tcseg.sheet import plain_console


@click.group()
def data() -> None:
    """Look at a data set before training with it."""


_data_options = (
    click.option(
        "--data",
        type=click.Choice(DATA_SETS),
        default="phantom",
        show_default=True,
        help="Data set.",
    ),
    click.option("--root", help="Folder of the data set (jsrt: else TCSEG_JSRT_ROOT)."),
    *(config_option(Config.__dataclass_fields__[name]) for name in OF_FOLDERS),
)


def _data_option(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_data_options):
        command = option(command)
    return command


@data.command(
    epilog=examples(
        "tcseg data check --data jsrt --root JSRT",
        "tcseg data check --data jsrt --root JSRT --sheet sheet.png",
    )
)
@_data_option
@click.option("--size", default=256, show_default=True, help="Size to read at, in pixels.")
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
    root: str | None,
    group: str | None,
    mask_pattern: str | None,
    window: str | None,
    size: int,
    split_file: Path | None,
    sheet: Path | None,
) -> None:
    """Report what a data set holds, what is missing, and how it would be split.

    The exit status is 1 if there is a problem.
    """
    check_root(data, root)

    from tcseg.cli.check import SHEET_IMAGES, file_formats, tell_problems
    from tcseg.cli.check import check as check_dataset
    from tcseg.data import jsrt_root, load_dataset
    from tcseg.errors import DataError, Problems

    problems = Problems(collect=True)
    folder = jsrt_root(root) if data == "jsrt" else root or ""
    console = plain_console()
    try:
        dataset = load_dataset(
            data,
            root=root,
            size=size,
            problems=problems,
            group=group,
            mask_pattern=mask_pattern,
            window=window,
        )
    except DataError:
        tell_problems(problems, console)
        raise
    formats = file_formats(data, folder, mask_pattern)
    fine = check_dataset(dataset, problems, formats, split_file, console)
    if sheet is not None and len(dataset):
        from tcseg.evaluation.pictures import save_contact_sheet

        shown = list(range(0, len(dataset), max(1, len(dataset) // SHEET_IMAGES)))[:SHEET_IMAGES]
        save_contact_sheet(sheet, dataset, shown, f"{data}: {len(shown)} of {len(dataset)} images")
        console.print(f"Contact sheet: {sheet}")
    if not fine:
        ctx.exit(1)


@data.command(epilog=examples("tcseg data splits --data jsrt --root JSRT --out splits.json"))
@_data_option
@click.option(
    "--out",
    required=True,
    type=FileToWrite(".json"),
    help="JSON file to write, to be used with --split-file, edited or as it is.",
)
def splits(
    data: str,
    root: str | None,
    group: str | None,
    mask_pattern: str | None,
    window: str | None,
    out: Path,
) -> None:
    """Write the five splits, images by their ids.

    The first n training images of a split are the n labelled ones, so that subsets are nested.
    """
    check_root(data, root)

    from tcseg.data import MIN_SIZE, load_dataset, make_split, save_splits
    from tcseg.errors import Problems

    if out.exists():
        raise RunError(f"{out} exists; choose another --out")
    # What is wrong, `tcseg data check` says; the images that are left have their split.
    problems = Problems(collect=True)
    dataset = load_dataset(
        data,
        root=root,
        size=MIN_SIZE,
        problems=problems,
        group=group,
        mask_pattern=mask_pattern,
        window=window,
    )
    save_splits(out, dataset, [make_split(dataset, number) for number in range(5)])
    click.echo(f"Written: {out}")
