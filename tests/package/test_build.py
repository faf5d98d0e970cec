"""What a build says and decides, without one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What setup.py hands to setuptools, in place of a build; and whether there are a GPU and a compiler for it.
PLAN = """
import os, runpy, sys
import setuptools, torch
gpu, nvcc = {gpu}, {nvcc}
torch.cuda.is_available = lambda: gpu
torch.version.cuda = "13.0"
setuptools.setup = lambda ext_modules, cmdclass: (
    print("plan:", *(e.name for e in ext_modules)), print("compiler:", os.environ.get("CXX"))
)
import pathlib, shutil, sysconfig
if not nvcc:
    shutil.which = lambda name, which=shutil.which: None if name == "nvcc" else which(name)
    sysconfig.get_paths = lambda: dict(purelib="nowhere")
    exists = pathlib.Path.exists
    pathlib.Path.exists = lambda path: path.name != "nvcc" and exists(path)
runpy.run_path("setup.py", run_name="__main__")
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith(("FUSED", "FORCE", "TORCH"))
    }
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**clean, "FUSED_LOSSES_CPU": "avx2", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("package", ("torch", "setuptools", "pybind11"))
def test_a_tool_that_is_missing_is_one_line(package):
    done = run(
        f"import sys, runpy; sys.modules['{package}'] = None; runpy.run_path('setup.py', run_name='__main__')"
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and f"pip install '{package}>=" in done.stderr


def test_pip_is_told_that_setuptools_is_missing():
    done = run("import sys; sys.modules['setuptools'] = None; import build_backend")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "pip install 'setuptools>=" in done.stderr


@pytest.mark.parametrize(
    ("gpu", "nvcc", "environment", "said"),
    [
        (False, True, {}, "no CUDA library, since this machine has no GPU; FUSED_LOSSES_CUDA=1 builds it"),
        (False, False, {}, "no CUDA library, since there is no nvcc"),
        (True, True, {"FUSED_LOSSES_CUDA": "0"}, "no CUDA library, since it was not to be built"),
        (True, True, {"FUSED_LOSSES_CUDA": "0", "FORCE_CUDA": "1"}, "no CUDA library"),
    ],
)
def test_no_cuda_library_and_why(gpu, nvcc, environment, said):
    done = run(PLAN.format(gpu=gpu, nvcc=nvcc), **environment)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout and "plan: fused_losses._cpu_avx2 fused_losses._C\n" in done.stdout


def test_a_cuda_library_that_was_asked_for_and_cannot_be_built():
    done = run(PLAN.format(gpu=True, nvcc=False), FUSED_LOSSES_CUDA="1")
    assert done.returncode == 1 and "plan:" not in done.stdout
    assert done.stderr == (
        "fused_losses: the CUDA library cannot be built, since there is no nvcc; "
        "`pip install fused_losses[cuda-build]` brings one\n"
    )


@pytest.mark.parametrize(
    ("gpu", "environment"), [(True, {}), (False, {"FUSED_LOSSES_CUDA": "1"}), (False, {"FORCE_CUDA": "1"})]
)
def test_a_cuda_library_for_a_gpu_or_on_request(gpu, environment):
    done = run(PLAN.format(gpu=gpu, nvcc=True), TORCH_CUDA_ARCH_LIST="9.0", **environment)
    if "there is no nvcc" in done.stdout + done.stderr:
        pytest.skip("there is no nvcc")
    assert done.returncode == 0, done.stderr
    assert "CUDA library for 9.0" in done.stdout and "fused_losses._cuda" in done.stdout


@pytest.mark.parametrize("compiler", ("env c++", "c++ -pipe"))
def test_a_compiler_may_be_several_words(compiler):
    """Torch, which takes them for one, is given a program of one word."""
    done = run(PLAN.format(gpu=False, nvcc=True), CXX=compiler, FUSED_LOSSES_CUDA="0")
    assert done.returncode == 0, done.stderr
    program = done.stdout.partition("compiler: ")[2].strip()
    assert " " not in program or " " in str(ROOT)
    called = [
        subprocess.run([*words, "-dumpversion"], capture_output=True, check=True)
        for words in (["c++"], [program])
    ]
    assert called[0].stdout == called[1].stdout


def test_a_compiler_that_is_not_there():
    done = run(PLAN.format(gpu=False, nvcc=True), CXX="ccache-that-is-not-there c++", FUSED_LOSSES_CUDA="0")
    assert done.returncode == 1 and "needs a C++20 compiler" in done.stderr and "plan:" not in done.stdout
