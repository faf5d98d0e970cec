"""Losses over several processes, each with its part of the classes or of the pairs, against one with all."""

from __future__ import annotations

import pairs
import pytest
import torch
import vocab_parallel


@pytest.fixture(scope="module", autouse=True)
def torch_is_imported_once():
    """Processes are forked from one that has imported torch, which would take each of them seconds."""
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed.fsdp", "torch.distributed.tensor"])


@pytest.mark.parametrize("check", (*vocab_parallel.CHECKS, *pairs.CHECKS), ids=lambda check: check.__name__)
@pytest.mark.parametrize("world", (2, 4))
def test_processes_agree_with_one(world, check, tmp_path):
    arguments = check, world, tmp_path / "store"
    torch.multiprocessing.start_processes(
        vocab_parallel.run, arguments, nprocs=world, start_method="forkserver"
    )
