"""Environments that have less: the oldest torch."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from torch_symbols import C_INTERFACE, LIBRARIES, has_nm, oldest, symbols

import fused_losses

HERE = Path(__file__).parent
BUILT = sorted(Path(fused_losses.__file__).parent.glob("*.so"))
CPLUSPLUS = re.compile(r"_ZNK?(2at|3c10|5torch)\w*")
"""Torch's C++ interface, which is another in every version."""


@pytest.mark.skipif(not has_nm(), reason="there is no nm (binutils), which reads symbols")
@pytest.mark.parametrize("library", BUILT, ids=lambda path: path.name.partition(".")[0])
def test_libraries_need_what_the_oldest_torch_has(library):
    needed = symbols(library, "undefined")
    interface = {name for name in needed if C_INTERFACE.fullmatch(name)}
    assert library.name.startswith("_C.") != bool(interface)
    there = oldest("libtorch_cpu") | (oldest("libtorch_cuda") if library.name == "_cuda.so" else set())
    assert not interface - there
    assert not [name for name in needed if CPLUSPLUS.fullmatch(name)]


def test_the_lists_are_of_whole_libraries():
    """One function of each kind that libraries use: threads, tensors, registration; guards and streams."""
    cpu, cuda = map(oldest, LIBRARIES)
    assert {"torch_parallel_for", "aoti_torch_empty_strided", "torch_library_impl"} <= cpu
    assert {"aoti_torch_create_cuda_guard", "aoti_torch_get_current_cuda_stream"} <= cuda
    assert "torch_exception_get_what_without_backtrace" not in cpu | cuda  # of torch 2.13
