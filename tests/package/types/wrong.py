"""What a user may get wrong: type checkers report the lines that say so, and no others."""

from __future__ import annotations

import torch

import fused_losses
from fused_losses import functional

x = torch.randn(8, 10)
target = torch.randint(10, (8,))

functional.cross_entropy(x, target, reduction="avg")  # wrong
functional.cross_entropy(x, target, return_lse=True).backward()  # wrong
functional.cross_entropy(x, target, z_los=1e-4)  # wrong
functional.mse_loss(x, x, reduction="batchmean")  # wrong
functional.mse_loss(x, x, backward="inplace_")  # wrong
functional.linear_loss(x, x, target, "crossentropy")  # wrong
fused_losses.MSELoss(reduction="avg")  # wrong
fused_losses.CrossEntropyLoss(return_lse=True)(x, target).backward()  # wrong
fused_losses.backend("cuda")  # wrong
fused_losses.patch(["ctc_loss"])  # wrong
functional.kl_div(x, x, reduction="batchmean").backward()
