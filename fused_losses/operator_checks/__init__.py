"""What operators refuse: calls whose arguments do not fit together, in words that name them.

The dispatcher calls an operator with whatever it is given. The compiled kernels check for themselves, in the
same words (`csrc/loss_operators.h` and the files `csrc/*_call.h`); this is for the kernels in Triton and for
fake tensors. What depends on memory, which fake tensors have none of, is in
`fused_losses.triton_kernels.memory_checks`.

    operators.py  the arguments that all operators share
    families.py   those whose meaning depends on the engine that runs a loss
    checks.py     single checks, and the errors that they raise
"""

from fused_losses.operator_checks.checks import Checks, describe
from fused_losses.operator_checks.families import Arguments
from fused_losses.operator_checks.operators import check_backward, check_forward, check_scale

__all__ = ["Arguments", "Checks", "check_backward", "check_forward", "check_scale", "describe"]
