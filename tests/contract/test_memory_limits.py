"""Where memory ends, and where a process forks: each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

MIB = 2**20

PRELUDE = """
import os, resource, threading
import torch
import torch.nn.functional as F
import fused_losses
import fused_losses.functional as L

MIB = 2**20
torch.set_num_threads(1)

def gradient_of(mib, package=L):
    x = torch.zeros(mib * MIB // 4).requires_grad_()
    return torch.autograd.grad(package.mse_loss(x, torch.ones(())), x)[0]

def leave(mib):
    '''Lets the process have so much more memory than it has now.'''
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + mib * MIB
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))

gradient_of(1), gradient_of(1, F)  # what the first call alone does
"""


def in_a_process(code: str) -> str:
    """What the code prints, behind the prelude. It must end well, and so must its children."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PRELUDE + textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, errors = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, printed + errors
    return printed


@pytest.mark.parametrize("mib", (3, 64))
def test_the_error_of_no_memory_is_torchs(mib):
    """Programs that look for the largest batch know it by its type and its words."""
    printed = in_a_process(f"""
        x = torch.zeros({mib} * MIB // 4).requires_grad_()
        y = torch.ones(())
        leave(16)
        taken = []
        def message(function):
            try:
                while True:
                    taken.append(function())
            except RuntimeError as error:
                assert len(error.args) == 1
                return str(error)
        torchs = message(lambda: torch.empty_like(x))
        ours = message(lambda: L.mse_loss(x, y))
        del taken[:]
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        L.mse_loss(x, y).backward()
        print(torchs, ours, sep="\\n")
    """)
    torchs, ours = printed.splitlines()
    words = f"DefaultCPUAllocator: can't allocate memory: you tried to allocate {mib * MIB} bytes."
    assert words in torchs and words in ours


def test_a_batch_size_finder_reduces_the_batch():
    pytest.importorskip("accelerate")
    printed = in_a_process("""
        from accelerate.utils import find_executable_batch_size
        leave(96)
        @find_executable_batch_size(starting_batch_size=64)
        def train(batch_size):
            gradient_of(batch_size)
            print(batch_size)
        train()
    """)
    assert 16 <= int(printed) < 64


def test_what_is_held_goes_back_before_an_error():
    in_a_process("""
        gradient_of(256)
        assert fused_losses.cached_bytes() == 256 * MIB
        x = torch.zeros(300 * MIB // 4).requires_grad_()
        leave(100)
        L.mse_loss(x, torch.ones(())).backward()
    """)


def test_smaller_buffers_find_what_is_held_too():
    in_a_process("""
        gradient_of(64)
        x = torch.zeros(3 * MIB // 4).requires_grad_()
        losses = []
        leave(0)
        for _ in range(8):
            losses.append(L.mse_loss(x, torch.ones(())))
    """)


def test_nothing_is_held_where_memory_is_limited():
    """Torch's allocator could not ask for it."""
    in_a_process("""
        leave(400)
        gradient_of(128)
        assert fused_losses.cached_bytes() == 0
        torch.empty(360 * MIB, dtype=torch.uint8)
    """)


@pytest.mark.slow
def test_steps_of_varying_sizes_peak_no_higher_than_with_torch():
    peaks = [
        int(
            in_a_process(f"""
            for seed in range(25):
                gradient_of(16 + 41 * seed % 48, {package})
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        """)
        )
        for package in ("F", "L")
    ]
    print(f"KiB: {peaks}")
    assert peaks[1] <= peaks[0]


@pytest.mark.slow
def test_a_process_forks_while_threads_use_the_pool():
    """Its children, whose other threads are gone, can use it, and hold nothing of what the parent holds."""
    in_a_process("""
        is_done = threading.Event()
        def work():
            while not is_done.is_set():
                gradient_of(16)
                fused_losses.empty_cache()
        threads = [threading.Thread(target=work, daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(30):
            child = os.fork()
            if child == 0:
                held = fused_losses.cached_bytes()
                gradient_of(16)
                os._exit(held != 0)
            assert os.waitpid(child, 0)[1] == 0
        is_done.set()
        for thread in threads:
            thread.join()
    """)
