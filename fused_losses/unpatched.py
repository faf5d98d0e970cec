"""torch.nn.functional as it was when this package was imported.

Torch's functions run where kernels do not take a call, and for double backward. They are called by way of
this module, never as attributes of torch.nn.functional, where `patch` may have put others.
"""

from torch.nn.functional import *  # noqa: F403
