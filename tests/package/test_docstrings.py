"""Every public function, class and module has an example in its docstring, and the examples are true."""

from __future__ import annotations

import doctest
import inspect

import pytest
import torch
import torch.distributed as dist

import fused_losses
from fused_losses import distributed, functional, info
from fused_losses.integrations import linear_head, transformers

PLACES = (fused_losses, functional, distributed, transformers, linear_head, info)


# What a function of this package returns is made by that function, which has the example; and what
# integrations have for each other.
OTHERS = {"LinearHead", "loss_utils", "without_backward", "main"}


def public():
    """By name, all that users call, and the modules where they find it."""
    for place in PLACES:
        yield place.__name__, place
        for name, value in vars(place).items():
            if name[0] == "_" or name in OTHERS or not (inspect.isfunction(value) or inspect.isclass(value)):
                continue
            # Without `__all__`, what is defined there is public. Torch's own are described by torch.
            is_listed = name in getattr(place, "__all__", ()) or value.__module__ == place.__name__
            if is_listed and value.__module__.startswith("fused_losses"):
                yield f"{place.__name__}.{name}", value


PUBLIC = dict(public())


@pytest.fixture
def group():
    """A group of one process, for losses over processes."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", PUBLIC)
def test_example(name, request):
    value = PUBLIC[name]
    text = inspect.getdoc(value)
    if "transformers" in text and name.endswith(("patch_transformers", "linear_head", ".transformers")):
        pytest.importorskip("transformers")
    if name.startswith("fused_losses.distributed"):
        request.getfixturevalue("group")
    _, heading, example = text.partition("\n\nExample:\n")
    assert heading, "no example"
    test = doctest.DocTestParser().get_doctest(
        example, {"torch": torch, "fused_losses": fused_losses}, name, None, 0
    )
    assert test.examples
    failures: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(test, out=failures.append)
    assert not failures, "".join(failures)


def test_all_places_are_looked_at():
    assert len(PUBLIC) > 60
    assert {"fused_losses.MSELoss", "fused_losses.functional.mse_loss", "fused_losses.patch"} <= set(PUBLIC)
