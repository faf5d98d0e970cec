"""Losses over a linear head, of which only some rows have logits at any time.

Rows are taken a chunk at a time: their logits go into a workspace, a kernel turns them into the loss and, in
place, into its gradient, and two more matrix products make the gradients of the head from that.

    functions.py   what users call
    contrastive.py losses of pairs of features, by these functions
    choice.py      whether a call goes chunk by chunk, or with all logits in memory
    divergence.py  distillation, as a cross-entropy
    module.py      torch.nn's module
    composition.py the same losses with all logits in memory
    autograd.py    the backward contract
    operators.py   the loss and its gradients, as operators that torch.compile sees
    counted.py     which rows and classes count, and gradients times a factor there
    loop.py        the loop over chunks
    chunks.py      which rows, and how many at a time
    products.py    the matrix products
    head.py        a linear layer, and a call of a loss over it, as values
"""
