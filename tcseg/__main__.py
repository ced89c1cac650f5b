"""The command `tcseg`, also as `python -m tcseg`."""

import sys


def main() -> None:
    """Run the command, or say what to install for it."""
    try:
        from tcseg.cli import main as command
    except ModuleNotFoundError as error:
        sys.exit(f'tcseg: {error.name} is not installed; run `pip install "tcwarp[tcseg]"`')
    command(prog_name="tcseg")


if __name__ == "__main__":
    main()
