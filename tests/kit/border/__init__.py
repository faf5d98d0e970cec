"""Calls of the operators `torch.ops.fused_losses.*` with wrong arguments, and what comes of them."""
