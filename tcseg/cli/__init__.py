"""The command `tcseg`.

Imports of torch and all that builds on it stand inside the commands, so that help is instant.
"""

import click

from tcseg.cli.data import data
from tcseg.cli.options import Commands, examples
from tcseg.cli.training import demo, doctor, evaluate, reproduce, train
from tcseg.cli.using import export, predict, preview, report


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
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


for command in (train, evaluate, predict, reproduce, preview, report, export, data, demo, doctor):
    main.add_command(command)
