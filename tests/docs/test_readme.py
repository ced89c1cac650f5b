"""What the README shows runs."""

import re

import pytest
from checkout import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_examples_run(block, capsys):
    exec(compile(block, "README.md", "exec"), {})
    difference, residual = capsys.readouterr().out.splitlines()
    # Two interpolations of white noise differ; the solver is exact.
    assert 0 < float(re.search(r"\d[\d.e-]*", difference).group()) < 0.2
    assert float(re.search(r"\d[\d.e-]*", residual).group()) < 1e-4


def test_commands_shown_exist():
    from tcseg.cli import main

    for command in set(re.findall(r"^tcseg (\w+)", README, re.MULTILINE)):
        assert command in main.commands
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"make ([a-z-]+)`|^make ([a-z-]+)", README, re.MULTILINE)):
        name = "".join(target)
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), name
