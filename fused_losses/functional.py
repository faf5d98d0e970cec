"""The losses of torch.nn.functional: same names, same arguments, same results, same errors.

Every function takes torch's arguments and one more, keyword-only:

    backward  "fused" (default): loss and gradient are computed in one pass by the forward; the gradient
              takes one buffer of the input's size until backward. "recompute": the forward computes the
              loss only, the backward reads the inputs again. "inplace": as fused, but the gradient
              overwrites the input: no memory at all, and autograd raises if anything else needs the
              input. See DESIGN.md.

Shapes, dtypes and formulas are those of the functions of the same name in torch.nn.functional. Losses have
the input's dtype, and float32 under autocast; arithmetic is in float32 (float64 for float64) throughout.

Example:
    >>> import torch
    >>> from fused_losses import functional as F
    >>> logits = torch.zeros(2, 4, requires_grad=True)
    >>> F.cross_entropy(logits, torch.tensor([0, 3]), backward="recompute").backward()
    >>> logits.grad
    tensor([[-0.3750,  0.1250,  0.1250,  0.1250],
            [ 0.1250,  0.1250,  0.1250, -0.3750]])
"""

from __future__ import annotations

from functools import partial

from torch.nn.functional import ctc_loss as ctc_loss

from fused_losses import losses, unpatched
from fused_losses.linear.contrastive import clip_loss as clip_loss
from fused_losses.linear.contrastive import siglip_loss as siglip_loss
from fused_losses.linear.functions import linear_cross_entropy as linear_cross_entropy
from fused_losses.linear.functions import linear_loss as linear_loss
from fused_losses.losses import *  # noqa: F403

__all__ = ["clip_loss", "ctc_loss", "linear_cross_entropy", "linear_loss", "siglip_loss"]
__all__ += losses.__all__

for _name in __all__:
    if hasattr(unpatched, _name) and _name != "ctc_loss":
        # What torch.jit.script compiles where it meets this function: torch's.
        globals()[_name].__prepare_scriptable__ = partial(getattr, unpatched, _name)
