"""Thousands of random steps in one process: every result as accurate as torch's, and no memory lost.

    python tests/stress.py --steps 20000 --seed 0        (make test-stress STEPS=20000 SEED=0)

A step is a random loss with random options, shape, dtype and layout; see kit/random_steps.py. What fails is
printed with its seed: `--seed N --steps 1` makes it alone. The exit status is 1 if a step has failed or
memory has grown.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
from kit.random_steps import judged
from kit.resident import Growth

LOOKS = 20
"""How often resident memory is measured: often enough to see a trend."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first step; each has the next one")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    began = time.monotonic()
    failures, growth = 0, Growth()
    every = max(1, options.steps // LOOKS)
    for number, problem in enumerate(judged(options.seed, options.steps), start=1):
        if problem:
            failures += 1
            print(problem, flush=True)
        if number % every == 0:
            print(f"{number} steps, {failures} failed, {growth.look():.0f} MiB resident", flush=True)
    seconds = time.monotonic() - began
    print(f"{options.steps} steps in {seconds:.0f} s: {failures} failed; {growth}")
    return 1 if failures or growth.is_a_leak else 0


if __name__ == "__main__":
    sys.exit(main())
