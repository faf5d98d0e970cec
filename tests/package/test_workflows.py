"""What the workflows run is what people run: the Makefile's targets, among them all of .ci/run."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]
WORKFLOWS = {path.stem: path for path in sorted((ROOT / ".github/workflows").glob("*.yml"))}
MAKE = re.compile(r"make ((?:[a-z][\w-]* ?)+)((?:[A-Z_]+=\S+ ?)*)")


def jobs(name):
    return yaml.safe_load(WORKFLOWS[name].read_text())["jobs"]


def commands(name):
    return [step["run"] for job in jobs(name).values() for step in job["steps"] if "run" in step]


def targets_of(command):
    """The targets that a command makes; an assertion fails if it is another command than make."""
    made = MAKE.fullmatch(command)
    assert made, command
    return made[1].split()


def test_all_workflows_are_there():
    assert set(WORKFLOWS) == {"docs", "gpu", "lint", "tests", "wheels"}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflows_run_targets_of_the_makefile(name):
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)", makefile, flags=re.MULTILINE)[1].split()
    made = [target for command in commands(name) for target in targets_of(command)]
    assert made or name == "docs"
    for target in made:
        assert target in phony and re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_workflows_run_all_of_ci():
    made = {target for name in WORKFLOWS for command in commands(name) for target in targets_of(command)}
    ci = re.findall(r"^make (\S+)", (ROOT / ".ci/run").read_text(), flags=re.MULTILINE)
    assert {"lint", "test", "gpu-session"} <= set(ci) <= made


def test_tests_cover_every_python_with_both_torches():
    for job in ("newest", "oldest"):
        matrix = jobs("tests")[job]["strategy"]["matrix"]
        assert matrix == {"python": ["3.10", "3.11", "3.12", "3.13"]}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_jobs_end_and_may_only_read(name):
    text = yaml.safe_load(WORKFLOWS[name].read_text())
    assert text["permissions"] == {"contents": "read"}
    for job in text["jobs"].values():
        assert job["timeout-minutes"] <= 180


def test_actionlint_has_nothing_to_say():
    if shutil.which("actionlint") is None:
        pytest.skip("actionlint is not installed: make actionlint")
    done = subprocess.run(["actionlint", *map(str, WORKFLOWS.values())], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_issue_templates_ask_for_the_report():
    templates = [path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"]
    assert len(templates) == 3
    for path in templates:
        labels = [part["attributes"]["label"] for part in yaml.safe_load(path.read_text())["body"]]
        assert any("python -m fused_losses.info" in label for label in labels), path.name
