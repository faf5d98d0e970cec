"""The examples of other libraries, and the code of the guide, at tiny sizes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_transformers_example():
    pytest.importorskip("transformers")
    printed = run("examples/transformers_causal_lm.py", "--vocabulary=64", "--length=16", "--steps=2")
    losses = [re.findall(r"\d\.\d{4}", line) for line in printed.splitlines()]
    assert [len(row) for row in losses] == [2, 2, 2]
    for row in losses:
        assert [float(x) for x in row] == pytest.approx([float(x) for x in losses[0]], rel=1e-2)


@pytest.mark.slow
def test_lightning_example():
    pytest.importorskip("typer")
    plain = run("examples/lightning_module.py", "--epochs=1", "--plain")
    before, after = (float(x) for x in re.findall(r"\d+\.\d+", plain))
    assert after < before
    # With lightning, if it is installed, the same module goes the same way.
    assert run("examples/lightning_module.py", "--epochs=1").splitlines()[-1] == plain.strip()


def test_torchtitan_example():
    pytest.importorskip("typer")
    # The command itself fails where the two forms differ.
    printed = run("examples/torchtitan_loss.py", "--vocabulary=50", "--length=8")
    assert printed.count("loss") == 2


@pytest.mark.slow
def test_the_code_of_the_guide(tmp_path):
    pytest.importorskip("transformers")
    guide = (ROOT / "docs" / "drop_in.md").read_text()
    script = tmp_path / "guide.py"
    script.write_text("\n".join(re.findall(r"^```python\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)))
    assert "torch.nn.functional.cross_entropy" in run(str(script))
