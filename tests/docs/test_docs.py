"""Every code block of the guides runs, page by page, trainings cut short; and the site builds."""

import os
import re
import shlex

import pytest
from checkout import ROOT
from click.testing import CliRunner
from processes import python

PAGES = sorted((ROOT / "docs").glob("*.md"))
# Of many trainings, a grid of processes, or of commands each of which reads all radiographs.
SLOW = ["own-images", "reproduce", "volumes"]
# Long work cut short: the last of two equal options counts.
SHORT = ["--size", "32", "--pretrain-steps", "4", "--steps", "4"]
SMALL = {"train": ["--batch-size", "4"], "reproduce": ["--batch-size", "4"], "demo": []}


def blocks(page):
    return re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def run_line(line):
    """Run a command line in this process: that the command starts is tested elsewhere."""
    from tcseg.cli import main

    program, *words = shlex.split(os.path.expandvars(line), comments=True)
    assert program == "tcseg", line
    short = [*SHORT, *SMALL[words[0]]] if words[0] in SMALL else []
    result = CliRunner().invoke(main, [*words, *short])
    assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem in SLOW else [])
        for page in PAGES
    ],
)
def test_every_block_runs(page, tmp_path, monkeypatch, phantoms_made_once):
    monkeypatch.chdir(tmp_path)
    for language, code in blocks(page):
        assert language in ("python", "sh", "text")
        if language == "python":
            exec(compile(code, page.name, "exec"), {"__name__": "docs"})
        elif language == "sh":
            if "TCSEG_JSRT_ROOT" in code and "TCSEG_JSRT_ROOT" not in os.environ:
                pytest.skip(f"TCSEG_JSRT_ROOT is not set: commands of {page.name} did not run")
            for line in code.replace("\\\n", " ").splitlines():
                run_line(line)


@pytest.mark.slow
def test_the_site_builds_and_its_reference_holds_what_is_public(tmp_path):
    import tcseg
    import tcwarp

    done = python("-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert {f"{page.stem}" for page in PAGES} - {"index"} <= {p.name for p in tmp_path.iterdir()}
    page = (tmp_path / "api" / "index.html").read_text(encoding="utf-8")
    modules = {"tcwarp.reference", "tcseg.metrics"}  # pages of their own
    types = {"tcwarp.Mode", "tcwarp.PaddingMode"}
    for package in (tcwarp, tcseg):
        names = {f"{package.__name__}.{name}" for name in package.__all__} - modules - types
        assert [name for name in sorted(names) if f'id="{name}"' not in page] == []


def test_commands_and_options_named_exist():
    from tcseg.cli import main

    for page in (*PAGES, ROOT / "README.md"):
        text = page.read_text(encoding="utf-8")
        for line in re.findall(r"^(?:torchrun .* -m )?tcseg (.*)$|`tcseg ([^`]*)`", text, re.M):
            words = "".join(line).split("#")[0].split()
            command = main
            while words and hasattr(command, "commands") and words[0] in command.commands:
                command = command.commands[words.pop(0)]
            assert command is not main, f"{page.name}: {line}"
            known = {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
            used = {word for word in words if word.startswith("--")}
            assert used <= known, f"{page.name}: {line}: {used - known}"
