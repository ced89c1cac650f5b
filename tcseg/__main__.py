"""The command `tcseg`, also as `python -m tcseg`."""

import io
import sys

from tcseg.extras import MissingPackageError, needs


def main() -> None:
    """Run the command, or name the extra that it needs."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() != "utf-8":
            stream.reconfigure(errors="replace")  # a table with "?" in it rather than none
    try:
        with needs("tcseg"):
            from tcseg.cli import main as command
    except MissingPackageError as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit("Aborted!")  # as the command itself says later
    command(prog_name="tcseg")


if __name__ == "__main__":
    main()
