"""The losses as an operator of tritonbench, which imports this folder from its own `operators`."""

from .operator import Operator as Operator
