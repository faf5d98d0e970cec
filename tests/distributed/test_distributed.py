"""Vocab-parallel losses: several processes, each with its part of the classes, against one with all."""

from __future__ import annotations

import pytest
import torch
import vocab_parallel


@pytest.mark.parametrize("world", (2, 4))
def test_processes_agree_with_one(world, tmp_path):
    torch.multiprocessing.spawn(vocab_parallel.run, (world, tmp_path / "store"), nprocs=world)
