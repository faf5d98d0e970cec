"""What every process of test_distributed.py does with losses of pairs: it compares them with those of all."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F

from fused_losses import distributed

N, D = 11, 6


def made(world):
    """The features of all processes' images and texts, (N, D) each, the same everywhere; scale and bias."""
    images, texts = (
        [F.normalize(torch.randn(N, D, dtype=torch.float64)).requires_grad_() for _ in range(world)]
        for _ in range(2)
    )
    return images, texts, *(torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (5.0, -2.0))


def clip_of(rank, own, gathered, scale, local):
    """The loss of one process, in torch's operators: its own features against all, or all against all."""
    images, texts = own if local else gathered
    labels = torch.arange(len(images)) + (rank * N if local else 0)
    return (
        F.cross_entropy(scale * images @ gathered[1].T, labels)
        + F.cross_entropy(scale * texts @ gathered[0].T, labels)
    ) / 2


def softmaxes(rank, world):
    """As open_clip's ClipLoss: who computes which rows, and whether gradients pass through the gathering."""
    for local, with_grad in itertools.product((False, True), repeat=2):
        images, texts, scale, bias = made(world)

        def loss_of(r, local=local, with_grad=with_grad, images=images, texts=texts, scale=scale):
            kept = [[x if with_grad or (i == r and not local) else x.detach() for i, x in enumerate(side)]
                    for side in (images, texts)]  # fmt: skip
            return clip_of(r, (images[r], texts[r]), [torch.cat(side) for side in kept], scale, local)

        own = loss_of(rank)
        (of_scale,) = torch.autograd.grad(own, scale, retain_graph=True)
        total = sum(map(loss_of, range(world))) if with_grad else own
        expected = torch.autograd.grad(total, (images[rank], texts[rank]))
        for options in ({}, {"workspace": 1000}, {"backward": "recompute"}):
            mine = distributed.clip_loss(
                images[rank],
                texts[rank],
                scale,
                logit_bias=bias,
                local_loss=local,
                gather_with_grad=with_grad,
                **options,
            )
            torch.testing.assert_close(mine, own)
            *features, slope, nothing = torch.autograd.grad(mine, (images[rank], texts[rank], scale, bias))
            torch.testing.assert_close(features, list(expected))
            torch.testing.assert_close(slope, of_scale)
            assert nothing == 0


def sigmoids(rank, world):
    """As open_clip's SigLipLoss: each process's images against all texts, whose gradients are added up."""
    images, texts, scale, bias = made(world)

    def loss_of(r):
        signs = -torch.ones(N, world * N, dtype=torch.float64)
        signs[torch.arange(N), torch.arange(N) + r * N] = 1
        return -F.logsigmoid(signs * (scale * images[r] @ torch.cat(texts).T + bias)).sum() / N

    own, total = loss_of(rank), sum(map(loss_of, range(world)))
    of_numbers = torch.autograd.grad(own, (scale, bias), retain_graph=True)
    expected = *torch.autograd.grad(total, (images[rank], texts[rank])), *of_numbers
    for options in ({}, {"workspace": 1000}, {"backward": "recompute"}):
        mine = distributed.siglip_loss(images[rank], texts[rank], scale, bias, **options)
        torch.testing.assert_close(mine, own)
        found = torch.autograd.grad(mine, (images[rank], texts[rank], scale, bias))
        torch.testing.assert_close(found, expected)


def average_is_that_of_one_process(rank, world):
    """What DistributedDataParallel makes of gradients, with gathering that passes them on."""
    images, texts, scale, bias = made(world)
    whole = [torch.cat(side).detach().requires_grad_() for side in (images, texts)]
    for name, options in (
        ("clip_loss", {"gather_with_grad": True}),
        ("clip_loss", {"gather_with_grad": True, "local_loss": True}),
        ("siglip_loss", {}),
    ):
        mine = getattr(distributed, name)(images[rank], texts[rank], scale, logit_bias=bias, **options)
        gradients = torch.autograd.grad(mine, (images[rank], texts[rank], scale, bias))
        everywhere = [distributed.Shard(0, 1, 1).sum(x.clone()) / world for x in gradients[2:]]
        one = clip_of(0, whole, whole, scale, False)
        if name == "siglip_loss":
            signs = 2 * torch.eye(world * N, dtype=torch.float64) - 1
            logits = scale * whole[0] @ whole[1].T + bias
            one = -F.logsigmoid(signs * logits).sum() / (world * N)
        *theirs, of_scale, of_bias = torch.autograd.grad(one, (*whole, scale, bias), allow_unused=True)
        for a, b in zip(gradients, theirs, strict=False):
            torch.testing.assert_close(a / world, b.chunk(world)[rank])
        torch.testing.assert_close(everywhere[0], of_scale)
        if of_bias is not None:
            torch.testing.assert_close(everywhere[1], of_bias)


CHECKS = (softmaxes, sigmoids, average_is_that_of_one_process)
