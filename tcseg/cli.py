"""The command `tcseg`.

Imports of torch and all that builds on it stand inside the commands, so that help is instant.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from tcseg.config import DATA_SETS, METHODS, Config
from tcseg.files import write_json
from tcseg.runs import RunError, RunFinished, RunFolder


class _Commands(click.Group):
    """Commands whose expected errors are one line on stderr instead of a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        # Click's own: wrong usage, the end of --help, and `tcseg ... | head`.
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except RunFinished as error:
            click.echo(error)
        except KeyboardInterrupt:
            click.echo("Stopped.", err=True)
            ctx.exit(130)
        except Exception as error:
            message, status = _explain(error)
            if not message or os.environ.get("TCSEG_DEBUG"):
                raise
            for line in message.splitlines():
                click.echo(f"Error: {line}", err=True)
            ctx.exit(status)


def _explain(error: Exception) -> tuple[str, int]:
    """Give the message and exit status of an expected error; no message for a bug."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}", 1
    if isinstance(error, RunError | OSError):
        return str(error), 1
    if isinstance(error, ValueError):
        return str(error), 2
    if isinstance(error, ImportError):
        return f"{error}; `tcseg doctor` says what is missing", 1
    # Only now: the import takes seconds, unless the error is of this kind.
    from tcseg.data import DataError

    return (str(error), 1) if isinstance(error, DataError) else ("", 1)


def _config_options(
    command: Callable[..., None], without: tuple[str, ...] = ()
) -> Callable[..., None]:
    """Add an option for each field of `Config`, but for some."""
    for field in reversed(dataclasses.fields(Config)):
        if field.name in without:
            continue
        choices, kind = field.metadata["choices"], field.metadata["kind"]
        name = field.name.replace("_", "-")
        command = click.option(
            f"--{name}/--no-{name}" if kind is bool else f"--{name}",
            type=click.Choice(choices) if choices else kind,
            default=field.default,
            show_default=field.default is not None,
            help=field.metadata["help"],
        )(command)
    return command


def _config(
    ctx: click.Context, file: Path | None, options: dict[str, Any], default: Config | None = None
) -> Config:
    """Options of a file, if one is given, overridden by those of the command line; checked."""
    given = {
        name: value
        for name, value in options.items()
        if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    # Absolute, so that the run can be continued from another folder.
    for name in ("root", "pretrained", "split_file"):
        if name in given:
            given[name] = str(Path(given[name]).absolute())
    default = Config() if default is None else default
    config = dataclasses.replace(default if file is None else Config.load(file), **given)
    config.validate()
    return config


def _grid_options(command: Callable[..., None]) -> Callable[..., None]:
    varied = ("data", "method", "labelled", "validation_images", "split", "pretrained")
    return _config_options(command, without=varied)


def _preview_options(command: Callable[..., None]) -> Callable[..., None]:
    used = ("data", "root", "size", "split", "split_file", "seed", "recipe", "displacement_std")
    others = [f.name for f in dataclasses.fields(Config) if f.name not in used]
    return _config_options(command, without=tuple(others))


_config_file = click.option(
    "--config",
    "config_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML file of options, such as the config.toml of a run; options given here override it.",
)


class _List(click.ParamType[list[Any]]):
    """Values with commas between, each once."""

    name = "list"

    def __init__(self, kind: type, choices: tuple[str, ...] = ()) -> None:
        self.kind, self.choices = kind, choices

    def convert(self, value: Any, param: Any, ctx: Any) -> list[Any]:
        """Split and check."""
        if isinstance(value, list):
            return value
        kind = click.Choice(self.choices) if self.choices else self.kind
        convert = click.types.convert_type(kind).convert
        return list(dict.fromkeys(convert(part.strip(), param, ctx) for part in value.split(",")))


def _examples(*lines: str) -> str:
    """Set examples below a help text; the control character keeps click from wrapping them."""
    return "\n  ".join(("\b\nExamples:", *lines))


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_examples(
        "tcseg doctor",
        "tcseg train --method semitc --labelled 5 --size 128 --out first",
        "tcseg evaluate first",
    ),
)
@click.version_option(package_name="tcwarp", prog_name="tcseg")
def main() -> None:
    """Learn to segment from few labelled and many unlabelled images.

    TCSEG_DEBUG=1 in the environment shows where an error comes from.
    """


@main.command(
    epilog=_examples(
        "tcseg train --method baseline --size 128 --out baseline",
        "tcseg train --method semitc --size 128 --pretrained baseline --out semitc",
        "tcseg train --data jsrt --root JSRT --labelled 5 --out jsrt",
        "tcseg train --out jsrt --resume",
        "tcseg train --config jsrt/config.toml --seed 1 --out jsrt-1",
    )
)
@_config_options
@_config_file
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the run, made if it is missing.",
)
@click.option("--resume", is_flag=True, help="Continue the run in --out, with its own options.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and how long it takes.")
@click.pass_context
def train(
    ctx: click.Context,
    config_file: Path | None,
    out: Path,
    resume: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Train a network; write weights, figures and pictures to a folder."""
    if config_file is None and resume and (out / "config.toml").exists():
        config_file = out / "config.toml"
    config = _config(ctx, config_file, options)
    if dry_run:
        from tcseg.train import rehearse

        rehearse(config, out, resume)
        return
    try:
        from tcseg.train import train as run_training

        run_training(config, out, resume)
    except KeyboardInterrupt:
        if (out / "config.toml").exists() and not RunFolder(out).finished:
            command = f"tcseg train --out {shlex.quote(str(out))} --resume"
            click.echo(f"\nStopped. To go on from the last checkpoint: {command}", err=True)
            ctx.exit(130)
        raise


@main.command(
    epilog=_examples("tcseg evaluate first", "tcseg evaluate first --on validation --postprocess")
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--on",
    type=click.Choice(["test", "validation"]),
    default="test",
    show_default=True,
    help="Part of the data set.",
)
@click.option(
    "--postprocess",
    is_flag=True,
    help="Keep the largest component of each structure only, and fill its holes.",
)
@click.option("--root", help="Folder of the data set, where it is not the one trained with.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def evaluate(run: Path, on: str, postprocess: bool, root: str | None, device: str) -> None:
    """Measure the network of the folder RUN; print a table, write RUN/evaluation-....json."""
    folder = RunFolder(run)
    config = folder.config()
    config = dataclasses.replace(config, device=device, root=root or config.root)
    config.validate()
    folder.load_weights()  # or an error, before the slow imports

    from rich.console import Console

    from tcseg import evaluation
    from tcseg.data import load_dataset, make_split, validation_subset
    from tcseg.segmenter import load

    segmenter = load(run, config.device)
    dataset = load_dataset(config.data, root=config.root, size=config.size).to(segmenter.device)
    if dataset.classes != segmenter.classes:
        raise RunError(
            f"{run} was trained for {', '.join(segmenter.classes)}; the data now have "
            f"{', '.join(dataset.classes)}"
        )
    split = make_split(dataset, config.split, config.split_file)
    validation = validation_subset(split, config.validation_images)
    indices = split.test if on == "test" else validation
    results = evaluation.evaluate(segmenter.network, dataset, indices, postprocess=postprocess)

    name = f"evaluation-{on}{'-postprocessed' if postprocess else ''}.json"
    write_json(run / name, {"on": on, "postprocess": postprocess, **results})
    console = Console(highlight=False, markup=False, soft_wrap=True)  # paths stay as they are
    processed = ", post-processed" if postprocess else ""
    console.print(f"{run}: {len(indices)} {on} images{processed}")
    console.print(evaluation.results_table({config.method: results}))
    console.print(f"Details by image: {run / name}")


@main.command(
    epilog=_examples(
        "tcseg reproduce table1 --root JSRT --size 128 --labelled 5,10 --splits 0,1 --out grid",
        "tcseg reproduce table1 --root JSRT --out full --workers 4 --minutes 30",
        "tcseg reproduce table2 --root JSRT --out full",
        "tcseg reproduce table1 --root JSRT --out full --merge other/full --minutes 0",
    )
)
@click.argument("table", type=click.Choice(["table1", "table2"]))
@click.option(
    "--labelled",
    type=_List(int),
    help="Numbers of labelled images, commas between; those of the paper if not given.",
)
@click.option(
    "--methods",
    type=_List(str, METHODS),
    help="Methods, commas between; those of the paper if not given.",
)
@click.option("--splits", type=_List(int), default="0,1,2,3,4", show_default=True, help="Splits.")
@click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, help="Runs at one time."
)
@click.option(
    "--minutes", type=float, default=math.inf, help="Stop after so long; 0 only makes the table."
)
@click.option(
    "--merge",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Another such folder, whose results are taken over; may be given more than once.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the runs and tables, made if it is missing; what it has is not done again.",
)
@_config_file
@_grid_options
@click.option(
    "--data",
    type=click.Choice(["jsrt", "phantom"]),
    default="jsrt",
    show_default=True,
    help="Data set.",
)
@click.pass_context
def reproduce(
    ctx: click.Context,
    table: str,
    config_file: Path | None,
    out: Path,
    labelled: list[int] | None,
    methods: list[str] | None,
    splits: list[int],
    workers: int,
    minutes: float,
    merge: tuple[Path, ...],
    **options: Any,
) -> None:
    """Train the grid behind TABLE of the paper; print it, and write it, beside the paper's.

    The same command goes on where it was stopped. Each finished run leaves a small file in
    OUT/results; folders of several machines are joined by --merge.
    """
    from tcseg.reproduce import reproduce as run_reproduce

    complete = run_reproduce(
        table,
        _config(ctx, config_file, options, Config(data="jsrt")),
        out,
        labelled=labelled,
        methods=methods,
        splits=splits,
        workers=workers,
        minutes=minutes,
        merge=merge,
    )
    if not complete:
        ctx.exit(1)


@main.command(
    epilog=_examples(
        "tcseg preview --out preview.png",
        "tcseg preview --data folder --root mine --recipe paper --out preview.png",
    )
)
@_preview_options
@click.option("--images", default=4, show_default=True, type=click.IntRange(1, 20), help="Rows.")
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="PNG file to write.",
)
@_config_file
@click.pass_context
def preview(
    ctx: click.Context, config_file: Path | None, images: int, out: Path, **options: Any
) -> None:
    """Draw what the network is shown: deformations, deformed images, aligned labels."""
    config = _config(ctx, config_file, options)

    from tcseg.data import load_dataset, make_split
    from tcseg.preview import preview as draw
    from tcseg.transforms import recipe

    dataset = load_dataset(config.data, root=config.root, size=config.size)
    shown = make_split(dataset, config.split, config.split_file).train[:images]
    transform = recipe(config.recipe, config.displacement_std)
    title = f"{config.data}, recipe {config.recipe}"
    agreement = draw(out, dataset, shown, transform, config.seed, title)
    click.echo(f"{out}: labels aligned from one view to the other agree to IOU {agreement:.3f}")


@main.command(
    epilog=_examples(
        "tcseg predict runs/semitc image.png --out found",
        "tcseg predict runs/semitc scans/ more/scan.dcm --out found --postprocess",
    )
)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write to, made if it is missing.",
)
@click.option(
    "--postprocess",
    is_flag=True,
    help="Keep the largest component of each structure only, and fill its holes.",
)
@click.option(
    "--consistency/--no-consistency",
    default=True,
    show_default=True,
    help="Measure how much predictions disagree when the image is deformed.",
)
@click.option("--overlays/--no-overlays", default=True, show_default=True, help="Draw pictures.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.pass_context
def predict(
    ctx: click.Context,
    run: Path,
    inputs: tuple[Path, ...],
    out: Path,
    postprocess: bool,
    consistency: bool,
    overlays: bool,
    device: str,
) -> None:
    """Segment INPUTS, files or folders, with the network of the folder RUN.

    Writes a mask for each structure at the size of the image (PNG; NIfTI for NIfTI; DICOM-SEG for
    DICOM), an overlay, and measurements.csv: areas (in mm2 where the file says how large a pixel
    is), cardiothoracic ratio of chests, and consistency: how well predictions for deformed views
    agree, from 0 to 1. Images with a low one are those to check, or to label next.

    A file that cannot be read is named and skipped; the exit status is then 1.
    """
    RunFolder(run).load_weights()  # or an error, before the slow imports

    from rich.console import Console

    from tcseg.predict import predict as predict_files
    from tcseg.segmenter import load

    console = Console(highlight=False, soft_wrap=True)
    problems = predict_files(
        load(run, device),
        inputs,
        out,
        postprocess=postprocess,
        consistency=consistency,
        overlays=overlays,
        console=console,
    )
    console.print(f"Masks, overlays and measurements.csv: {out}", markup=False)
    for problem in problems:
        click.echo(f"Error: {problem}", err=True)
    if problems:
        ctx.exit(1)


@main.command(
    epilog=_examples(
        "tcseg export runs/semitc --format onnx --out semitc.onnx",
        "tcseg export runs/semitc --format torchscript --out semitc.pt",
    )
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["onnx", "torchscript"]),
    default="onnx",
    show_default=True,
    help="Form of the file.",
)
@click.option(
    "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="File to write."
)
def export(run: Path, form: Any, out: Path) -> None:
    """Write the network of the folder RUN for other programs; run it there and compare.

    ONNX needs the packages onnx, onnxscript and onnxruntime: pip install tcwarp[export].
    """
    RunFolder(run).load_weights()  # or an error, before the slow imports

    from tcseg.export import export as write
    from tcseg.segmenter import load

    segmenter = load(run, "cpu")
    difference = write(segmenter, out, form)
    size, channels = segmenter.model.size, segmenter.model.channels
    click.echo(
        f"{out}: images (b, {channels}, {size}, {size}) in [0, 1] to probabilities of "
        f"{', '.join(segmenter.classes)}, background; run and compared: equal to {difference:.1e}"
    )


@main.command(
    epilog=_examples(
        "tcseg report runs/semitc --out semitc.html",
        "tcseg report runs/baseline runs/semitc --out comparison.html",
    )
)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="HTML file."
)
@click.option("--root", help="Folder of the data set, where it is not the one trained with.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def report(runs: tuple[Path, ...], out: Path, root: str | None, device: str) -> None:
    """Write finished RUNS as one HTML page: curves, tables, best and worst cases."""
    for run in runs:
        RunFolder(run).summary()  # or an error, before the slow imports

    from tcseg.report import report as write

    write(runs, out, root=root, device=device)
    click.echo(f"Written: {out}")


@main.group()
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
)


def _data_option(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_data_options):
        command = option(command)
    return command


@data.command(
    epilog=_examples(
        "tcseg data check --data jsrt --root JSRT",
        "tcseg data check --data jsrt --root JSRT --sheet sheet.png",
    )
)
@_data_option
@click.option("--size", default=256, show_default=True, help="Size to read at, in pixels.")
@click.option("--split-file", type=click.Path(path_type=Path), help="File of splits to check, too.")
@click.option(
    "--sheet",
    type=click.Path(dir_okay=False, path_type=Path),
    help="PNG to draw a contact sheet to: images with the outlines of their masks.",
)
@click.pass_context
def check(
    ctx: click.Context,
    data: str,
    root: str | None,
    size: int,
    split_file: Path | None,
    sheet: Path | None,
) -> None:
    """Say what a data set holds, what is missing, and how it would be divided.

    The exit status is 1 if there is a problem.
    """
    from rich.console import Console

    from tcseg.data import Problems, jsrt_root, load_dataset
    from tcseg.data.check import SHEET_IMAGES, file_formats
    from tcseg.data.check import check as check_dataset

    problems = Problems(collect=True)
    folder = jsrt_root(root) if data == "jsrt" else root or ""
    dataset = load_dataset(data, root=root, size=size, problems=problems)
    console = Console(highlight=False, soft_wrap=True)
    fine = check_dataset(dataset, problems, file_formats(data, folder), split_file, console)
    if sheet is not None and len(dataset):
        from tcseg.pictures import save_contact_sheet

        shown = list(range(0, len(dataset), max(1, len(dataset) // SHEET_IMAGES)))[:SHEET_IMAGES]
        save_contact_sheet(sheet, dataset, shown, f"{data}: {len(shown)} of {len(dataset)} images")
        console.print(f"Contact sheet: {sheet}", markup=False)
    if not fine:
        ctx.exit(1)


@data.command(epilog=_examples("tcseg data splits --data jsrt --root JSRT --out splits.json"))
@_data_option
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="JSON file to write; to be used, changed or not, with --split-file.",
)
def splits(data: str, root: str | None, out: Path) -> None:
    """Write the five splits, images by their ids.

    The first n training images of a split are the n labelled ones, so that subsets are nested.
    """
    from tcseg.data import MIN_SIZE, load_dataset, make_split, save_splits

    if out.exists():
        raise RunError(f"{out} exists; choose another --out")
    dataset = load_dataset(data, root=root, size=MIN_SIZE)
    save_splits(out, dataset, [make_split(dataset, number) for number in range(5)])
    click.echo(f"Written: {out}")


@main.command(epilog=_examples("tcseg demo --out demo"))
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the runs, made if it is missing; finished ones in it are shown again.",
)
@click.option("--size", default=64, show_default=True, help="Height and width of the phantoms.")
@click.option("--pretrain-steps", default=300, show_default=True, help="Steps of pre-training.")
@click.option("--steps", default=400, show_default=True, help="Steps of each method.")
def demo(out: Path, size: int, pretrain_steps: int, steps: int) -> None:
    """Show in minutes, without data, what unlabelled images add to 5 labelled ones."""
    from tcseg.demo import demo as run_demo

    run_demo(out, size=size, pretrain_steps=pretrain_steps, steps=steps)


@main.command()
@click.pass_context
def doctor(ctx: click.Context) -> None:
    """Say what is installed and what works: versions, devices, build, a test of the operator.

    The exit status is 1 if something that training needs does not work.
    """
    from tcseg.doctor import examine

    if not examine():
        ctx.exit(1)
