"""The rule of accuracy, by which tests and benchmark judge: an error of at most twice eager torch's.

Errors are distances from a float64 reference. Twice, because two roundings of one exact value may lie on both
sides of it; and a few units in the last place besides, because eager may happen to round to the exact value.
Nothing here grows with the number of terms of a reduction.
"""

import torch
from torch import Tensor

EAGER_FACTOR = 2
SLACK_ULP = 4


def ulp(reference: Tensor, dtype: torch.dtype) -> Tensor:
    """The unit in the last place that `dtype` has at each float64 value of `reference`, in its shape."""
    info = torch.finfo(dtype)
    # Subnormals are as far apart as the smallest normal numbers.
    exponent = torch.frexp(reference.abs().clamp_min(info.smallest_normal)).exponent
    # frexp counts from [0.5, 1), eps from [1, 2): hence the half.
    return torch.ldexp(torch.full_like(reference, info.eps / 2), exponent)


def allowance(eager_error: Tensor, unit: Tensor) -> Tensor:
    """The largest error that is accepted, in the shape of `unit`.

    Args:
        eager_error: eager's largest error, of one element or for each element of `unit`.
        unit: the units in the last place of the results.
    """
    return unit.mul(SLACK_ULP).add_(eager_error, alpha=EAGER_FACTOR)
