"""What tests share: a single thread each, and the counts that are printed at the end of a run."""

from __future__ import annotations

import importlib
import os
from collections import Counter

import pytest
import torch
from kit import device
from kit.shares import share_of
from kit.strictness import by_kernels_only

__all__ = ["by_kernels_only"]  # a fixture

_SAMPLES = "torch's own samples"
_CALLS = "calls of the operators with other arguments"

_COUNTS: pytest.StashKey[dict[str, Counter[str]]] = pytest.StashKey()


def pytest_addoption(parser):
    parser.addoption(
        "--device",
        default=os.environ.get("FUSED_LOSSES_TEST_DEVICE"),
        help="where the losses under test compute, such as cuda: only tests that have to do with it run "
        "(default: FUSED_LOSSES_TEST_DEVICE; without it, all tests, on the CPU)",
    )
    parser.addoption(
        "--cpu-products",
        choices=("16", "32"),
        help="bits of the products of 16-bit linear heads on a CPU, whatever this one has instructions for",
    )


def multiply_16_bits(patch, natively):
    """Makes linear heads believe that the CPU has instructions for products of 16 bits, or has none."""
    patch.setattr("fused_losses.linear.products._cpu_multiplies", lambda dtype: natively)


@pytest.fixture(params=(True, False), ids=("16-bit-products", "float32-products"))
def cpu_products(request, monkeypatch):
    """Both ways in which a CPU multiplies heads of 16 bits: torch emulates the one that it lacks, slowly."""
    multiply_16_bits(monkeypatch, request.param)


def pytest_configure(config):
    if bits := config.option.cpu_products:
        multiply_16_bits(pytest.MonkeyPatch(), bits == "16")
    config.stash[_COUNTS] = {title: Counter() for title in (_SAMPLES, _CALLS)}
    device.device = config.option.device
    # Tests run side by side, one process per core; those that are about threads ask for more.
    torch.set_num_threads(1)
    if os.environ.get("TRITON_INTERPRET") == "1":
        from kit import interpreter

        interpreter.patch_language_once()
        interpreter.count_with_any_numpy()
        interpreter.assert_as_devices_do()
        interpreter.convert_as_devices_do()
    if library := os.environ.get("FUSED_LOSSES_CUDA_ON_CPU"):
        # Takes the CPU's operators over, so it must be loaded after the CPU's own library.
        importlib.import_module("fused_losses")
        torch.ops.load_library(library)
        devices = importlib.import_module("fused_losses.devices")
        devices.compiled["cpu"] = f"{devices.CUDA}, on the CPU"
        assert (
            "csrc/cuda"
            in torch._C._dispatch_dump("fused_losses::cross_entropy").split("CPU:")[1].splitlines()[0]
        )


# Inputs that take the interpreter seconds, and fibers; shorter ones meet the same code.
_LARGE = ("40000", "33000", "3x4x50x7", "threads", "shared")


def pytest_collection_modifyitems(config, items):
    """Leaves out tests that have nothing to do with the device, those of large inputs where kernels are slow,
    and all but a share of what is left, if FUSED_LOSSES_TEST_SHARE says so."""
    kept = items[:]
    if config.option.device is not None:
        kept = [x for x in kept if x.get_closest_marker("gpu") and not x.get_closest_marker("cpu")]
    if os.environ.get("TRITON_INTERPRET") == "1" or "FUSED_LOSSES_CUDA_ON_CPU" in os.environ:
        kept = [x for x in kept if not any(word in x.nodeid for word in _LARGE)]
    share = int(os.environ.get("FUSED_LOSSES_TEST_SHARE", "1"))
    some = share_of((x.nodeid for x in kept), share)
    kept = [x for x in kept if x.nodeid in some]
    chosen = set(kept)
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = kept


@pytest.fixture(scope="session")
def sample_counts(request):
    """Samples by what was done with them; a test adds to it."""
    return request.config.stash[_COUNTS][_SAMPLES]


@pytest.fixture(scope="session")
def call_counts(request):
    """Calls by what came of them; a test adds to it."""
    return request.config.stash[_COUNTS][_CALLS]


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["counts"] = {
            title: dict(counts) for title, counts in session.config.stash[_COUNTS].items()
        }


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """In the process that waits for the workers: adds the counts of one that is done."""
    for title, counts in getattr(node, "workeroutput", {}).get("counts", {}).items():
        node.config.stash[_COUNTS][title].update(counts)


def pytest_terminal_summary(terminalreporter, config):
    for title, counts in config.stash[_COUNTS].items():
        if counts:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
            terminalreporter.write_line(f"{title}: {sum(counts.values())} ({kinds})")
