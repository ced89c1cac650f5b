"""Commands that train and measure."""

from __future__ import annotations

import dataclasses
import math
import shlex
import shutil
from pathlib import Path
from typing import Any

import click

from tcseg.cli.options import (
    OF_FOLDERS,
    ListOf,
    check_root,
    config_file_option,
    config_options,
    device_option,
    examples,
    moved_cache_option,
    moved_root_option,
    network_option,
    out_option,
    postprocess_option,
    read_config,
    resume_command,
)
from tcseg.errors import RunStopped, counted
from tcseg.io.files import write_json
from tcseg.method.variants import METHODS
from tcseg.runs.folder import RunFolder
from tcseg.sheet import plain_console

# What a grid varies, or takes as numbers of its own.
VARIED = ("method", "labelled", "validation_images", "split", "pretrained", *OF_FOLDERS)


@click.command(
    epilog=examples(
        "tcseg train --method baseline --size 128 --out baseline",
        "tcseg train --method semitc --size 128 --pretrained baseline --out semitc",
        "tcseg train --data jsrt --root JSRT --labelled 5 --out jsrt",
        "tcseg train --out jsrt --resume",
        "tcseg train --config jsrt/config.toml --seed 1 --out jsrt-1",
    )
)
@config_options()
@config_file_option
@out_option("Folder of the run, made if it is missing.")
@click.option("--resume", is_flag=True, help="Continue the run in --out, with its own options.")
@click.option(
    "--dry-run", is_flag=True, help="Report what would be done, and how long it would take."
)
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
    config = read_config(ctx, config_file, options)
    if dry_run:
        from tcseg.training.session import rehearse

        rehearse(config, out, resume)
        return
    try:
        from tcseg.training.interrupts import stop_requests
        from tcseg.training.session import train as run_training

        with stop_requests() as stopped:
            run_training(config, out, resume, stop=stopped)
    # OSError: the disk is full, perhaps.
    except (KeyboardInterrupt, RunStopped, OSError) as error:
        if (out / "config.toml").exists() and not RunFolder(out).finished:
            where = "" if isinstance(error, RunStopped) else " from the last checkpoint"
            click.echo(f"\nStopped. To continue{where}: {resume_command(out)}", err=True)
            if isinstance(error, KeyboardInterrupt):
                ctx.exit(130)
        raise


@click.command(
    epilog=examples(
        "tcseg evaluate first",
        "tcseg evaluate first --on validation --postprocess --original-size",
        "tcseg evaluate first --on all --root elsewhere",
    )
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--on",
    type=click.Choice(["test", "validation", "all"]),
    default="test",
    show_default=True,
    help="Part of the data set; all: every image with masks, such as of another hospital (--root).",
)
@postprocess_option
@click.option(
    "--original-size",
    is_flag=True,
    help="Bring predictions back to the size of each image, and compare them there with the masks "
    "as they are in their files.",
)
@moved_root_option
@moved_cache_option
@device_option
@network_option
def evaluate(
    run: Path,
    on: str,
    postprocess: bool,
    original_size: bool,
    root: str | None,
    cache: str | None,
    device: str,
    network: str | None,
) -> None:
    """Measure the network of the folder RUN; print a table, write RUN/evaluation-....json."""
    config = RunFolder(run).config()
    check_root(config.data, root, way="")
    config = dataclasses.replace(config, device=device, root=root or config.root)
    config.validate()

    from tcseg.data import validation_subset
    from tcseg.evaluation import evaluate as evaluation
    from tcseg.use.with_data import load_with_data

    segmenter, dataset, split = load_with_data(
        run, config.device, config.root, network, cache, whole=on == "all"
    )
    validation = on == "validation"
    indices = validation_subset(split, config.validation_images) if validation else split.test
    kind = "annotated" if on == "all" else on
    how = {"postprocess": postprocess, "original_size": original_size}
    results = evaluation.evaluate(segmenter.network, dataset, indices, **how)

    console = plain_console()
    size = " at their own size" if original_size else ""
    processed = ", post-processed" if postprocess else ""
    console.print(f"{run}: {counted(len(indices), f'{kind} {dataset.noun}')}{size}{processed}")
    if on == "all" and (seen := RunFolder(run).trained_with & {dataset.ids[i] for i in indices}):
        console.print(
            f"{len(seen)} have names of images that the network was trained with, which flatter."
        )
    remark = dataset.size_remark(indices, kind)
    if remark is not None and not original_size:
        console.print(remark)
    console.print(evaluation.results_table({config.method: results}))
    processing = ("-original" if original_size else "") + ("-postprocessed" if postprocess else "")
    name = f"evaluation-{on}{processing}.json"
    write_json(run / name, {"on": on, **how, **results})
    console.print(f"Details by {dataset.noun}: {run / name}")


@click.command(
    epilog=examples(
        "tcseg reproduce table1 --root JSRT --size 128 --labelled 5 --out grid",
        "tcseg reproduce table1 --root JSRT --out full --workers 4 --minutes 30",
        "tcseg reproduce table2 --root JSRT --out full",
        "tcseg reproduce table1 --root JSRT --out full --merge other/full --minutes 0",
        "tcseg reproduce table1 --data folder --root SET --labelled 5 --splits 0 --out own",
    )
)
@click.argument("table", type=click.Choice(["table1", "table2"]))
@click.option(
    "--labelled",
    type=ListOf(int),
    help="Numbers of labelled images, separated by commas; those of the paper if not given. With "
    "--data folder they must be given.",
)
@click.option(
    "--methods",
    type=ListOf(str, tuple(METHODS)),
    help="Methods, separated by commas; those of the paper if not given.",
)
@click.option(
    "--splits",
    type=ListOf(int),
    default="0,1,2,3,4",
    show_default=True,
    help="Numbers of the splits, separated by commas.",
)
@click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, help="Runs at one time."
)
@click.option(
    "--launcher",
    default="",
    help="Command to put before each training, such as 'srun --gpus 1': OUT must be a folder that "
    "all machines share.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(0),
    default=math.inf,
    help="Stop after this many minutes; 0 only makes the table.",
)
@click.option(
    "--merge",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Another such folder, whose results are taken over; may be given more than once.",
)
@out_option("Folder of the runs and tables, made if it is missing; finished runs are not repeated.")
@config_file_option
@config_options(without=VARIED, data="jsrt")
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
    launcher: str,
    minutes: float,
    merge: tuple[Path, ...],
    **options: Any,
) -> None:
    """Train the grid behind TABLE of the paper; print and write the table beside the paper's.

    The same command continues where it was stopped. Each finished run leaves a small file in
    OUT/results; folders of several machines are joined by --merge.
    """
    from tcseg.paper.reproduce import reproduce as run_reproduce

    command = shlex.split(launcher)
    if command and shutil.which(command[0]) is None:
        raise click.BadParameter(f"no such command: {command[0]}", param_hint="--launcher")

    complete = run_reproduce(
        table,
        read_config(ctx, config_file, options, data="jsrt"),
        out,
        labelled=labelled,
        methods=methods,
        splits=splits,
        workers=workers,
        launcher=command,
        minutes=minutes,
        merge=merge,
    )
    if not complete:
        ctx.exit(1)


@click.command(epilog=examples("tcseg demo --out demo", "tcseg demo --dimensions 3 --out demo-3d"))
@out_option("Folder of the runs, made if it is missing; finished ones in it are shown again.")
@click.option(
    "--dimensions",
    default=2,
    type=click.IntRange(2, 3),
    show_default=True,
    help="2: images; 3: volumes.",
)
@click.option("--size", type=int, help="Side of the phantoms; if not set 64, of volumes 48.")
@click.option("--pretrain-steps", type=int, help="Of pre-training; if not set 300, of volumes 240.")
@click.option("--steps", type=int, help="Of each method; if not set 400, of volumes 120.")
@click.option("--seed", type=int, help="Of weights, batches and transforms; if not set 0.")
def demo(out: Path, dimensions: int, **options: int | None) -> None:
    """Show in minutes, without data, what unlabelled images add to a few labelled ones."""
    from tcseg.cli.demo import demo as run_demo

    given = {name: value for name, value in options.items() if value is not None}
    run_demo(out, dimensions, **given)


@click.command()
@click.pass_context
def doctor(ctx: click.Context) -> None:
    """Report what is installed and what works: versions, devices, build, a test of the operator.

    The exit status is 1 if something that training needs does not work.
    """
    from tcseg.cli.doctor import examine

    if not examine():
        ctx.exit(1)
