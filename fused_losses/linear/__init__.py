"""Losses over a linear head, whose logits are never there as a whole.

Rows are taken a chunk at a time: their logits go into a workspace, a kernel turns them into the loss and, in
place, into its gradient, and two more matrix products make the gradients of the head from that.

    planning.py    which kernel, and what the mean divides by
    chunks.py      which rows, and how many at a time
    products.py    the matrix products
    operators.py   the loop, as operators that torch.compile sees
    autograd.py    the backward contract
    composition.py the same with all logits there
    run.py         which of these takes a call
    divergence.py  distillation, as a cross-entropy
    module.py      torch.nn's module
"""
