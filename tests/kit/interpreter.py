"""Triton's interpreter, made to compute as devices do, and fast enough for thousands of tests."""

from __future__ import annotations

import dataclasses
import inspect

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter


class _NothingToRestore:
    def restore(self):
        pass


def patch_language_once():
    """Lets the first function of a launch patch the language for all: it takes longer than functions run."""
    patch = interpreter._patch_lang
    patched = set()
    scopes = []

    def modules_of(function):
        return {
            x.__name__ for x in function.__globals__.values() if inspect.ismodule(x) and x in (tl, tl.core)
        }

    def patch_unless_done(function):
        modules = modules_of(function)
        if modules <= patched:
            return _NothingToRestore()
        patched.update(modules)
        scopes.append(patch(function))
        return _Launch() if len(scopes) == 1 else _NothingToRestore()

    class _Launch:
        def restore(self):
            while scopes:
                scopes.pop().restore()
            patched.clear()

    interpreter._patch_lang = patch_unless_done


def count_with_any_numpy():
    """Lets scalars be indices, where Triton 3.6 keeps them in arrays of one element, and NumPy is 2.5."""
    patch = interpreter._patch_lang_tensor

    def patch_and_count(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_and_count


def assert_as_devices_do():
    """Makes assertions in kernels hold, which the interpreter takes as compiled out."""
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, debug=True)


def convert_as_devices_do():
    """Rounds float32 to the nearest bfloat16, and widens subnormal bfloat16 exactly.

    The interpreter cuts float32 off, and gives subnormal bfloat16 other values.
    """
    convert = interpreter._convert_float

    def converted(input, input_dtype, output_dtype, rounding_mode):
        match input_dtype, output_dtype:
            case tl.float32, tl.bfloat16:
                rounded = torch.from_numpy(np.ascontiguousarray(input)).bfloat16()
                return rounded.view(torch.int16).numpy().view(np.uint16)
            case tl.bfloat16, tl.float32:
                return input.astype(np.uint32) << 16
            case _:
                return convert(input, input_dtype, output_dtype, rounding_mode)

    interpreter._convert_float = converted
