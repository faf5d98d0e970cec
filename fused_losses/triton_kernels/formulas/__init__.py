"""Every loss as mathematics: the formulas of `csrc/formulas/`, in the same order, in Triton's language."""
