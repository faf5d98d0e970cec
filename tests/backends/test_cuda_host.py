"""What the CUDA library's host code makes of the runtime's answers, and where its memory comes from."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths, library_paths

FOLDER = Path(__file__).parent / "fake_cuda"

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    made = tmp_path_factory.mktemp("fake_cuda") / "host"
    command = ["g++", "-std=c++20", "-DUSE_CUDA", "-fvisibility=hidden", "-Wno-attributes", f"-I{FOLDER}"]
    command += [f"-isystem{path}" for path in include_paths()]
    command += [FOLDER / "host.cpp", "-o", made, "-pthread", "-ldl"]
    for path in library_paths():
        command += [f"-L{path}", f"-Wl,-rpath,{path}"]
    subprocess.run([*command, "-Wl,--no-as-needed", "-ltorch_cpu", "-lc10"], check=True)
    return made


def run(program, case):
    done = subprocess.run([program, case], capture_output=True, text=True, check=True)
    *printed, last = done.stdout.splitlines()
    assert last == "no error is left"  # torch would take it for its own
    return printed


def test_the_limit_of_shared_memory_is_the_same_for_all_threads(program):
    """Launches that need more than the usual 48 KiB ask for all there is: no other thread can lower that."""
    assert run(program, "limits") == ["launched"] * 3 + ["200 KiB"] * 2


def test_a_failed_launch_raises(program):
    first, second = run(program, "failed launch")
    assert first == "fused_losses: an error of CUDA"
    assert "was not built for this GPU" in second


@pytest.mark.parametrize("what", ("limit", "memset", "query"))
def test_whatever_fails_raises(program, what):
    printed = run(program, f"failed {what}")
    assert printed == ["fused_losses: an error of CUDA"] + ["0 launches"] * (what == "limit")


def test_scratch_is_of_a_stream_and_from_outside_a_graphs_pool(program):
    """Torch allocates from a graph's pool before it captures, too, but only what the same thread asks for."""
    assert run(program, "scratch") == [
        "another thread",
        "for the stream",
        "the same again",
        "another one on another stream",
        "2 memsets",
    ]


def test_a_graph_has_scratch_of_its_own_and_clears_it(program):
    assert run(program, "captured scratch") == ["this thread"] * 2 + ["3 memsets"]
