"""A language model's head whose vocabulary is spread over processes: the same training as on one.

torchrun --nproc-per-node 4 examples/vocab_parallel.py
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist

from fused_losses import functional
from fused_losses.distributed import Shard, linear_cross_entropy


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--tokens", type=int, default=512)
    arguments.add_argument("--width", type=int, default=64)
    arguments.add_argument(
        "--vocabulary", type=int, default=8003
    )  # a prime: no number of processes divides it
    arguments.add_argument("--steps", type=int, default=5)
    args = arguments.parse_args()
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    torch.manual_seed(0)  # the same on every process
    hidden = torch.randn(args.tokens, args.width)
    labels = torch.randint(0, args.vocabulary, (args.tokens,))
    head = torch.randn(args.vocabulary, args.width) / args.width**0.5

    shard = Shard.of_rank(args.vocabulary)
    local = head[shard.first : shard.first + shard.size].clone().requires_grad_()
    whole = head.requires_grad_()
    gathered = count_gathered_bytes()
    options = {"label_smoothing": 0.1, "z_loss": 1e-4}
    for step in range(args.steps):
        one = functional.linear_cross_entropy(hidden, whole, labels, **options)
        many = linear_cross_entropy(hidden, local, labels, shard=shard, **options)
        for weight, loss in ((whole, one), (local, many)):
            (gradient,) = torch.autograd.grad(loss, weight)
            with torch.no_grad():
                weight -= 10 * gradient
        if dist.get_rank() == 0:
            print(f"step {step}: loss {one:.6f} on one process, {many:.6f} on {dist.get_world_size()}")
    if dist.get_rank() == 0:
        per_token = gathered[0] / args.steps / args.tokens
        print(f"each process sends {per_token:.0f} bytes per token, forward and backward")
    dist.destroy_process_group()


def count_gathered_bytes() -> list[int]:
    """Counts what this process sends from now on: every collective of the losses' rows is this one."""
    count, gather = [0], Shard.gather

    def counting(shard: Shard, rows: torch.Tensor) -> torch.Tensor:
        count[0] += rows.nbytes
        return gather(shard, rows)

    Shard.gather = counting  # type: ignore[method-assign]
    return count


if __name__ == "__main__":
    main()
