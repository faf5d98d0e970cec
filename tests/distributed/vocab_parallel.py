"""What every process of tests/distributed/test_distributed.py does: compares its part with the whole."""

from __future__ import annotations

import itertools

import torch
import torch.distributed as dist
import torch.nn.functional as F
from kit.tolerance import roundings
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor import Shard as Placement

import fused_losses
import fused_losses.functional as L
from fused_losses.distributed import Shard, cross_entropy, linear_cross_entropy

N, C, D = 37, 50, 8


def run(rank, check, world, path):
    """One of the checks, on the process `rank` of `world`; `path` is of a file where they find each other."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world, init_method=f"file://{path}")
    torch.manual_seed(0)
    check(rank, world)
    dist.barrier()
    dist.destroy_process_group()


def made(dtype=torch.float64, rows=N):
    logits = torch.randn(rows, C, dtype=torch.float64) * 3
    labels = torch.randint(0, C, (rows,))
    labels[::5] = -100
    return logits.to(dtype), labels, torch.rand(C, dtype=torch.float64).to(dtype) + 0.5


def parts(shard, dim, tensor):
    return tensor.narrow(dim, shard.first, shard.size)


def calls(labels, weight, probabilities):
    """Targets and options, each with every other."""
    targets = {"labels": labels, "probabilities": probabilities}
    for kind, w, e, z, reduction in itertools.product(
        targets, (None, weight), (0.0, 0.1), (0.0, 0.01), ("mean", "sum", "none")
    ):
        yield targets[kind], w, {"label_smoothing": e, "z_loss": z, "reduction": reduction}
        if reduction == "mean":
            yield targets[kind], w, {"label_smoothing": e, "z_loss": z, "normalizer": 21.0}


def calls_with_terms(labels, weight, probabilities):
    """The same with each of the terms, and with all of them."""
    some = {"entropy": 0.3}, {"logit_scale": 0.5}, {"softcap": 5.0}
    every = {"entropy": -0.2, "logit_scale": 1.5, "softcap": 4.0, "z_loss": 0.01}
    for target, w, e in itertools.product((labels, probabilities), (None, weight), (0.0, 0.1)):
        for more in (*some, every):
            yield target, w, {"label_smoothing": e, **more}
        yield target, w, {"label_smoothing": e, "reduction": "none", **every}
        yield target, w, {"label_smoothing": e, "normalizer": 21.0, **every}


EVERYTHING = dict.fromkeys(("return_lse", "return_z_loss", "return_accuracy", "return_argmax"), True)


def gradient_of(result, *tensors):
    """Of a loss, or of all that can be differentiated of a CrossEntropyOutput."""
    of = [result] if isinstance(result, torch.Tensor) else [x for x in result if x is not None]
    scaled = sum(
        (x * torch.linspace(0.5, 2, x.numel()).view(x.shape).to(x)).sum() for x in of if x.requires_grad
    )
    return torch.autograd.grad(scaled, tensors)


def assert_same(mine, theirs, rtol, atol):
    """Of two losses, or two CrossEntropyOutput."""
    if isinstance(mine, torch.Tensor):
        mine, theirs = (mine,), (theirs,)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol, equal_nan=True)


def compare(shard, logits, target, weight, keywords, size=1.0, **more):
    """Losses of rows of up to such a size."""
    atol = size * roundings(logits.dtype)
    whole = logits.detach().clone().requires_grad_()
    expected = L.cross_entropy(whole, target, weight, **keywords)
    (of_whole,) = gradient_of(expected, whole)
    local = parts(shard, 1, logits).clone().requires_grad_()
    own = parts(shard, 1, target) if target.is_floating_point() else target
    own_weight = None if weight is None else parts(shard, 0, weight)
    loss = cross_entropy(local * 1, own, own_weight, shard=shard, **keywords, **more)
    assert_same(loss, expected, atol, atol)
    (of_local,) = gradient_of(loss, local)
    torch.testing.assert_close(of_local, parts(shard, 1, of_whole), rtol=atol, atol=atol, equal_nan=True)


def options(rank, world):
    shard = Shard.of_rank(C)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        logits, labels, weight = made(dtype)
        probabilities = torch.randn(N, C, dtype=torch.float64).softmax(1).to(dtype)
        for target, w, keywords in calls(labels, weight, probabilities):
            compare(shard, logits, target, w, keywords)
            if dtype is torch.float32:
                compare(shard, logits, target, w, keywords, backward="inplace")


def terms(rank, world):
    """Entropy, scale, cap, and what rows have besides their loss."""
    shard = Shard.of_rank(C)
    for dtype in (torch.float64, torch.float32):
        logits, labels, weight = made(dtype)
        logits[:, 3::7] = logits[:, 2:3]  # ties, on several processes
        probabilities = torch.randn(N, C, dtype=torch.float64).softmax(1).to(dtype)
        for target, w, keywords in calls_with_terms(labels, weight, probabilities):
            compare(shard, logits, target, w, keywords)
            compare(shard, logits, target, w, keywords | EVERYTHING)
        compare(shard, logits, labels, None, EVERYTHING)
    # Labels' weights are small beside those of other classes, one of which stands in for a class elsewhere.
    weight = torch.full((C,), 1e6)
    weight[labels.clamp_min(0)] = 1e-6
    compare(shard, made(torch.float32)[0], labels, weight, {"entropy": 0.3, "reduction": "sum"})


def extremes(rank, world):
    """Infinities, huge logits, a process without any finite one, confident rows, rows that do not count."""
    shard = Shard.of_rank(C)
    logits, labels, _ = made()
    logits[:, : C // 4] = -torch.inf
    labels = torch.where(labels < C // 4, C - 1, labels).where(labels >= 0, labels)
    compare(shard, logits, labels, None, {"z_loss": 0.1})
    compare(shard, logits, labels, None, {"entropy": 0.1, "logit_scale": 0.5, **EVERYTHING})
    compare(shard, logits * 1e4, labels, None, {}, size=1e4)
    confident = torch.zeros(N, C, dtype=torch.float64)
    confident[torch.arange(N), labels.clamp_min(0)] = 20
    # Each row's loss is the logarithm of nearly 1, and known to what 1 is rounded to.
    compare(shard, confident, labels, None, {"reduction": "sum"}, size=N)
    compare(shard, made()[0], torch.full((N,), -100), None, {"reduction": "mean"})
    compare(shard, made()[0], torch.full((N,), -100), None, {"reduction": "sum", "z_loss": 0.1})
    compare(shard, made(rows=0)[0], torch.zeros(0, dtype=torch.int64), None, {"reduction": "sum"})


def uneven(rank, world):
    """Shards of any sizes, one of them empty, and sizes that processes tell each other."""
    sizes = [C - 3 * (world - 2), 0, *[3] * (world - 2)]
    shard = Shard(sum(sizes[:rank]), sizes[rank], C)
    logits, labels, weight = made()
    for e in (0.0, 0.1):
        compare(shard, logits, labels, weight, {"label_smoothing": e})
    expected = F.cross_entropy(logits, labels)
    torch.testing.assert_close(cross_entropy(parts(shard, 1, logits), labels), expected)


def tensors(rank, world):
    """DTensors: which classes are where, they say themselves."""
    mesh = init_device_mesh("cpu", (world,))
    logits, labels, weight = made()
    spread = distribute_tensor(logits, mesh, [Placement(1)]).requires_grad_()
    loss = cross_entropy(spread, labels, distribute_tensor(weight, mesh, [Placement(0)]), label_smoothing=0.1)
    whole = logits.requires_grad_()
    expected = F.cross_entropy(whole, labels, weight, label_smoothing=0.1)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    assert isinstance(spread.grad, DTensor)
    torch.testing.assert_close(spread.grad.full_tensor(), whole.grad)


def heads(rank, world):
    shard = Shard.of_rank(C)
    x, w, b = torch.randn(N, D), torch.randn(C, D), torch.randn(C)
    _, labels, weight = made()
    probabilities = torch.randn(N, C).softmax(1)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        atol = 2 * roundings(dtype)  # of logits, too
        head = [t.to(dtype).requires_grad_() for t in (x, w, b)]
        local = [head[0], *(parts(shard, 0, t.detach()).clone().requires_grad_() for t in head[1:])]
        operands = labels, weight.to(dtype), probabilities.to(dtype)
        with_terms = calls_with_terms(*operands) if dtype is not torch.bfloat16 else ()
        further = ((t, w, k | EVERYTHING) for t, w, k in calls_with_terms(*operands) if with_terms)
        for target, given, keywords in itertools.chain(calls(*operands), with_terms, further):
            expected = L.linear_cross_entropy(
                *head[:2], target, linear_bias=head[2], weight=given, **keywords
            )
            own = parts(shard, 1, target) if target.is_floating_point() else target
            loss = linear_cross_entropy(
                *local[:2],
                own,
                linear_bias=local[2],
                weight=None if given is None else parts(shard, 0, given),
                shard=shard,
                workspace=8 * 16 * C // world,
                **keywords,
            )
            results = expected if isinstance(expected, tuple) else (expected,)
            scale = max(1.0, *(float(x.detach().abs().max()) for x in results))
            assert_same(loss, expected, atol, atol * scale)
            one, other = gradient_of(loss, *local), gradient_of(expected, *head)
            for mine, theirs in zip(one, (other[0], *(parts(shard, 0, g) for g in other[1:])), strict=True):
                limit = atol * max(1.0, float(theirs.abs().max()))
                torch.testing.assert_close(mine, theirs, rtol=0, atol=limit)


def changed_operands(rank, world):
    """Whoever writes to an operand before the backward gets an error of autograd, not a wrong gradient."""
    shard = Shard.of_rank(C)
    logits, labels, weight = made()
    x, head = torch.randn(N, D, dtype=torch.float64), torch.randn(C, D, dtype=torch.float64)
    for target in (labels, parts(shard, 1, torch.rand(N, C, dtype=torch.float64))):
        for changed in range(2):
            for strategy in ("recompute", "inplace", "head"):
                operands = target.clone(), parts(shard, 0, weight).clone()
                leaf = parts(shard, 1, logits).clone().requires_grad_()
                if strategy == "head":
                    leaf = x.clone().requires_grad_()
                    arguments = leaf, parts(shard, 0, head), operands[0]
                    loss = linear_cross_entropy(*arguments, weight=operands[1], shard=shard)
                else:
                    loss = cross_entropy(leaf * 1, *operands, shard=shard, backward=strategy)
                operands[changed].zero_()
                try:
                    torch.autograd.grad(loss, leaf)
                except RuntimeError as error:
                    if "modified by an inplace operation" in str(error):
                        continue
                raise AssertionError((strategy, changed))


def heads_of_nothing(rank, world):
    """No rows, or no features, so that the logits are the bias."""
    shard = Shard.of_rank(C)
    bias = torch.randn(C, dtype=torch.float64)
    for (rows, features), reduction in itertools.product(((0, D), (N, 0)), ("mean", "sum", "none")):
        x = torch.randn(rows, features, dtype=torch.float64)
        head, labels = torch.randn(C, features, dtype=torch.float64), torch.arange(rows)
        whole = [t.clone().requires_grad_() for t in (x, head, bias)]
        local = [t.clone().requires_grad_() for t in (x, parts(shard, 0, head), parts(shard, 0, bias))]
        expected = F.cross_entropy(F.linear(*whole), labels, reduction=reduction)
        loss = linear_cross_entropy(
            *local[:2], labels, linear_bias=local[2], shard=shard, reduction=reduction
        )
        torch.testing.assert_close(loss, expected, equal_nan=True)
        theirs = torch.autograd.grad(expected, whole, torch.ones_like(expected))
        theirs = theirs[0], *(parts(shard, 0, gradient) for gradient in theirs[1:])
        for one, other in zip(torch.autograd.grad(loss, local, torch.ones_like(loss)), theirs, strict=True):
            torch.testing.assert_close(one, other)


def ignored_heads(rank, world):
    """Where nothing counts, gradients are 0, whatever the sum is divided by; so are those of ignored rows.

    Not in bfloat16: some of the products that CPUs have for it spread infinities to the row before.
    """
    shard = Shard.of_rank(C)
    labels, nothing = made()[1], torch.full((N,), -100)
    weight = parts(shard, 0, made()[2])
    terms = {}, {"label_smoothing": 0.1}, {"weight": weight}, {"z_loss": 0.1, "entropy": 0.1}
    for more, keywords in itertools.product(
        terms, ({}, {"normalizer": 0}, {"reduction": "sum"}, {"reduction": "none"})
    ):
        x = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
        head = parts(shard, 0, torch.randn(C, D, dtype=torch.float64)).requires_grad_()
        loss = linear_cross_entropy(x, head, nothing, shard=shard, **more, **keywords) / 0
        gradients = torch.autograd.grad(loss, (x, head), torch.ones_like(loss))
        assert not any(gradient.any() for gradient in gradients), (more, keywords)
        loss = linear_cross_entropy(x, head, labels, shard=shard, **more, **keywords) / 0
        (gradient,) = torch.autograd.grad(loss, x, torch.ones_like(loss))
        assert not gradient[labels < 0].any(), (more, keywords)
        assert not gradient[labels >= 0].isfinite().any(), (more, keywords)


def errors(rank, world):
    shard = Shard.of_rank(C)
    logits, labels, _ = made()
    local = parts(shard, 1, logits)
    for bad in (C, -1):
        try:
            cross_entropy(local, torch.where(labels == labels[1], bad, labels), shard=shard)
        except IndexError:
            continue
        raise AssertionError("a class out of range")
    wrong = {"reduction": "median"}, {"backward": "fused"}, {"softcap": -1.0}
    for keywords in (*wrong, {"normalizer": 3, "reduction": "sum"}):
        try:
            cross_entropy(local, labels, shard=shard, **keywords)
        except ValueError:
            continue
        raise AssertionError(keywords)


def sharded_modules(rank, world):
    """Under FSDP2, a head is gathered for its module's forward, and its gradient spread again."""
    mesh = init_device_mesh("cpu", (world,))
    model = nn.Sequential(nn.Linear(D, D))
    loss = fused_losses.LinearCrossEntropyLoss(D, C, bias=True)
    for parameter in (*model.parameters(), *loss.parameters()):
        dist.broadcast(parameter.detach(), 0)
    state = {name: value.clone() for name, value in loss.state_dict().items()}
    x, labels = torch.randn(N, D), made()[1]
    fully_shard(loss, mesh=mesh)
    loss(model(x), labels).backward()
    whole = fused_losses.LinearCrossEntropyLoss(D, C, bias=True)
    whole.load_state_dict(state)
    whole(model(x), labels).backward()
    for mine, theirs in zip(loss.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.full_tensor(), theirs.grad)


CHECKS = (
    options,
    terms,
    extremes,
    uneven,
    tensors,
    heads,
    changed_operands,
    heads_of_nothing,
    ignored_heads,
    errors,
    sharded_modules,
)
