"""Cross-entropy of logits whose classes are spread over the processes of a group (vocab-parallel).

Every process has all rows, but only the logits of its own classes, or the part of the head that makes them.
It reduces its part of each row to a few numbers; these are gathered in one collective, and every process
merges all in the same order: the loss is the same bits everywhere. The backward communicates nothing but the
sum of a linear head's input gradients.

    shard.py          which classes a process has
    target.py         what rows are compared with, as far as a process has it
    rows.py           the numbers of a row: local ones, merged ones, and the local gradient
    results.py        what is made of these numbers for the caller
    cross_entropy.py  the loss of logits
    linear.py         the loss over a linear head, without its logits
    contrastive.py    losses of pairs, of which each process has some

Example:
    In each process of a group, as torchrun starts them:

    >>> import torch
    >>> from fused_losses import distributed
    >>> shard = distributed.Shard.of_rank(8)  # 8 classes, cut into as many parts as there are processes
    >>> local_logits = torch.zeros(2, shard.size)
    >>> distributed.cross_entropy(local_logits, torch.tensor([0, 7]), shard=shard)
    tensor(2.0794)
"""

from fused_losses.distributed.contrastive import clip_loss, siglip_loss
from fused_losses.distributed.cross_entropy import cross_entropy
from fused_losses.distributed.linear import linear_cross_entropy
from fused_losses.distributed.shard import Shard

__all__ = ["Shard", "clip_loss", "cross_entropy", "linear_cross_entropy", "siglip_loss"]
