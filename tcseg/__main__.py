"""Lets `python -m tcseg` stand for the command `tcseg`."""

from tcseg.cli import main

if __name__ == "__main__":
    main(prog_name="tcseg")
