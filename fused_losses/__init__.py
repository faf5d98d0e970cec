"""The losses of torch.nn in single passes that include the backward.

`fused_losses.functional` stands in for torch.nn.functional, and the modules here for those of torch.nn.

Example:
    >>> import torch, fused_losses
    >>> model, loss = torch.nn.Linear(16, 10), fused_losses.CrossEntropyLoss()
    >>> loss(model(torch.randn(8, 16)), torch.randint(10, (8,))).backward()
    >>> model.weight.grad.shape
    torch.Size([10, 16])
"""

from fused_losses import functional
from fused_losses.backends import backend, load
from fused_losses.cache import cached_bytes, empty_cache, set_cache_limit
from fused_losses.explain import explain
from fused_losses.modules import *  # noqa: F403
from fused_losses.modules import __all__ as _modules
from fused_losses.patch import patch, replace

__version__ = "0.1.0"

load()
del load

__all__ = [
    *_modules,
    "backend",
    "cached_bytes",
    "empty_cache",
    "explain",
    "functional",
    "patch",
    "replace",
    "set_cache_limit",
]
