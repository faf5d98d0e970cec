"""torch.nn.functional as it was when this package was imported.

What kernels do not take is handed to torch's functions, as is double backward. They are called by way of
this module, never as attributes of torch.nn.functional: `patch` may have put ours there.
"""

from torch.nn.functional import *  # noqa: F403
