"""What a call of an operator yields, in torch's own operators; and which calls have no answer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_losses import reference
from fused_losses.call import PointwiseOptions, SoftmaxOptions
from fused_losses.registry import ARGMAX, LOSSES, STATISTICS
from kit.border.calls import BATCH_MEAN, MEAN, NONE, Arguments, Base

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Refused(Exception):
    """The call has no answer."""


def need(condition: bool, why: str) -> None:
    """Raises Refused where the condition does not hold."""
    if not condition:
        raise Refused(why)


def results_of(base: Base, arguments: Arguments) -> list[Tensor]:
    """The tensors that the operator returns, then those that it writes to.

    Raises:
        Exception: the call has no answer.
    """
    if base.name == "set_cache_limit":
        need(arguments["bytes"] >= 0, "bytes")
    if base.name == "scale_":
        return _scaled(arguments["gradient"], arguments["factor"])
    if base.kind == "other":
        return []
    given = [x for x in arguments.values() if isinstance(x, Tensor)] + arguments.get("into", [])
    need(all(x.device == given[0].device for x in given), "devices")
    need(max(x.dim() for x in given) <= 64, "dimensions")
    losses, leaves, weight = _losses(base, arguments)
    bits = arguments["gradients"]
    forward = base.kind in ("forward", "forward_inplace")
    known = sum(1 << k for k, leaf in enumerate(leaves) if leaf is not None)
    if forward and base.name == "cross_entropy":
        known |= STATISTICS | ARGMAX
    need(bits & ~known == 0, "gradients")
    loss = _reduced(base, arguments, losses, weight)
    if base.kind == "forward_inplace":
        bits |= 1
        need(arguments["input"].shape == leaves[0].shape and _is_dense(arguments["input"]), "layout")
    gradients = _gradients(base, arguments, loss, leaves, bits)
    if forward:
        dtype = arguments["dtype"] or arguments["input"].dtype
        need(dtype in FLOATING, "dtype")
        results = [loss.detach().to(dtype)]
        if bits & STATISTICS:
            results.append(_statistics(arguments))
        if bits & ARGMAX:
            dim = min(1, arguments["input"].dim() - 1)
            counted = reference.counted(arguments["input"], arguments["target"], arguments["ignore_index"])
            results.append(torch.where(counted, arguments["input"].argmax(dim), -1))
        if base.kind == "forward_inplace":
            return [*results, *gradients[1:], gradients[0]]
        return results + gradients
    if base.kind == "backward":
        return gradients
    into = arguments["into"]
    need(len(into) == len(gradients), "into")
    for x, gradient in zip(into, gradients, strict=True):
        need(x.shape == gradient.shape and x.dtype is gradient.dtype and _is_dense(x), "into")
    need(len({x.data_ptr() for x in into if x.numel()}) == len([x for x in into if x.numel()]), "into")
    is_one = arguments["reduction"] != NONE and arguments["upstream"].item() == 1
    if arguments["ready"] and is_one and arguments.get("lse_gradient") is None:
        return [x.clone() for x in into]
    return gradients


def _scaled(gradient: Tensor, factor: Tensor) -> list[Tensor]:
    need(gradient.dtype in FLOATING and factor.dtype in FLOATING and factor.numel() == 1, "dtype")
    need(gradient.device == factor.device and _is_dense(gradient), "layout")
    return [gradient * factor.reshape(()).to(gradient.dtype)]


def _is_dense(x: Tensor) -> bool:
    return x.numel() == 0 or torch.ops.aten.is_non_overlapping_and_dense(x)


def _leaf(x: Tensor, shape: torch.Size | None = None) -> Tensor:
    need(x.dtype in FLOATING, "dtype")
    return (x if shape is None else x.expand(shape)).double().clone().requires_grad_()


def _losses(base: Base, a: Arguments) -> tuple[Tensor, list[Tensor | None], Tensor | None]:
    """The losses before reductions; what has derivatives, in the order of operands; and the weight."""
    return {
        "pointwise": _pointwise,
        "vectors": _vectors,
        "softmax": _softmax,
        "class_margin": _class_margin,
    }[base.family](base, a)


def _check_parameters(base: Base, a: Arguments) -> None:
    need(len(a["parameters"]) == len(LOSSES[base.name].parameters), "parameters")


def _check_normalizer(a: Arguments) -> None:
    normalizer = a["normalizer"]
    if normalizer is not None:
        need(normalizer.dtype is torch.float64 and normalizer.dim() == 0, "normalizer")


def _pointwise(base: Base, a: Arguments) -> tuple[Tensor, list[Tensor | None], Tensor | None]:
    _check_parameters(base, a)
    need((a["extra"] is not None) == base.needs_extra or LOSSES[base.name].optional_extra, "extra")
    need(a["ignore_index"] is None or "ignore_index" in LOSSES[base.name].extensions, "ignore_index")
    operands = [x for x in (a["input"], a["target"], a["extra"]) if x is not None]
    shape = torch.broadcast_shapes(*(x.shape for x in operands))
    leaves = [_leaf(x, shape) for x in operands]
    extra = leaves[2] if len(leaves) > 2 else None
    if extra is not None and not base.needs_extra:
        extra.requires_grad_(False)
    _check_normalizer(a)
    for name, value in zip(LOSSES[base.name].parameters, a["parameters"], strict=True):
        need(name != "label_smoothing" or 0 <= value <= 1, name)
        need(not name.startswith("gamma") or 0 <= value < torch.inf, name)
    options = PointwiseOptions(a["parameters"], a["ignore_index"])
    # Torch's functions refuse numbers that kernels take: an eps, a delta or a beta that is not positive.
    if base.name == "gaussian_nll_loss":
        losses = _gaussian(*leaves, *a["parameters"])
    elif base.name in ("huber_loss", "smooth_l1_loss"):
        losses = _near_and_far(base.name, *leaves, *a["parameters"])
    elif base.name == "multilabel_soft_margin_loss":
        losses = F.binary_cross_entropy_with_logits(*leaves, reduction="none") * a["parameters"][0]
    else:
        losses = LOSSES[base.name].reference(leaves[0], leaves[1], None, extra, options, "none")
    weight = None
    if a["weight"] is not None:
        need(a["weight"].dtype in FLOATING, "weight")
        weight = a["weight"].double()
        losses = losses * weight.expand(shape)
    differentiable = [
        leaf if LOSSES[base.name].differentiable >> k & 1 else None for k, leaf in enumerate(leaves)
    ]
    return losses, differentiable, weight


def _gaussian(x: Tensor, t: Tensor, var: Tensor, full: float, eps: float) -> Tensor:
    v = var.clone()
    with torch.no_grad():
        v.clamp_(min=eps) if eps == eps else None
    constant = torch.tensor(2 * torch.pi).log() if full else 0
    return 0.5 * (v.log() + (x - t) ** 2 / v + constant)


def _near_and_far(name: str, x: Tensor, t: Tensor, limit: float) -> Tensor:
    d = x - t
    if name == "huber_loss":
        if not limit <= 0:  # nothing is further than NaN
            return F.huber_loss(x, t, reduction="none", delta=limit if limit == limit else torch.inf)
        return torch.where(d.abs() > limit, limit * (d.abs() - 0.5 * limit), 0.5 * d * d)
    if limit >= 0:
        return F.smooth_l1_loss(x, t, reduction="none", beta=limit)
    return torch.where(d.abs() >= limit, d.abs() - 0.5 * limit, 0.5 * d * (d / limit))


def _vectors(base: Base, a: Arguments) -> tuple[Tensor, list[Tensor | None], None]:
    _check_parameters(base, a)
    need(a["weight"] is None, "weight")
    operands = [a["input"], a["target"], a["extra"]]
    shape = torch.broadcast_shapes(*(x.shape for x in operands))
    need(len(shape) > 0 and min(x.dim() for x in operands) > 0, "vectors")
    need(shape[-1] > 0, "vectors of no elements")
    if base.name == "cosine_embedding_loss":
        need(a["extra"].shape[-1] == 1 and a["extra"].dtype in FLOATING, "extra")
        shape = torch.broadcast_shapes(shape[:-1], a["extra"].shape[:-1]) + torch.broadcast_shapes(
            *(x.shape[-1:] for x in operands[:2])
        )
        x1, x2 = leaves = [_leaf(x, shape) for x in operands[:2]]
        sign = a["extra"].double().squeeze(-1)
        square = [(x * x).sum(-1) + 1e-12 for x in leaves]
        cosine = (x1 * x2).sum(-1) / (square[0] * square[1]).sqrt()
        gap = cosine - a["parameters"][0]
        losses = torch.where(sign == 1, 1 - cosine, torch.where(sign == -1, gap.clamp_min(0), 0.0))
        return losses, [*leaves, None], None
    leaves = [_leaf(x, shape) for x in operands]
    margin, p, eps, swap, *cosine = a["parameters"]
    need(p != 0 or bool(cosine and cosine[0]), "p")

    def distance(x: Tensor, y: Tensor) -> Tensor:
        if cosine and cosine[0]:
            return reference.cosine_distance(x, y)
        return F.pairwise_distance(x, y, p, eps)

    to_negative = distance(leaves[0], leaves[2])
    if swap:
        to_negative = torch.minimum(to_negative, distance(leaves[1], leaves[2]))
    gap = margin + distance(leaves[0], leaves[1]) - to_negative
    return gap.clamp_min(0), leaves, None


def _softmax(base: Base, a: Arguments) -> tuple[Tensor, list[Tensor | None], Tensor | None]:
    input, target = a["input"], a["target"]
    need(input.dim() > 0 and input.shape[min(1, input.dim() - 1)] > 0, "classes")
    leaf = _leaf(input)
    positions = input.shape[:1] + input.shape[2:] if input.dim() > 1 else torch.Size()
    probabilities = None
    if target.dtype in FLOATING:
        need(base.name == "cross_entropy" and target.shape == input.shape, "target")
        need((target.dtype is torch.float64) == (input.dtype is torch.float64), "target")
        target = probabilities = _leaf(target)
    else:
        need(target.dtype in (torch.int64, torch.uint8) and target.shape == positions, "target")
    weight = a["weight"]
    if weight is not None:
        need(weight.dtype in FLOATING, "weight")
        weight = weight.double()
    need(0 <= a["label_smoothing"] <= (1 if base.name == "cross_entropy" else 0), "label_smoothing")
    need(len(a["terms"]) in ((0, 4) if base.name == "cross_entropy" else (0,)), "terms")
    _check_normalizer(a)
    if a["extra"] is not None:
        need(base.name == "cross_entropy" and base.kind in ("backward", "backward_into"), "extra")
        right = _statistics(a)
        need(a["extra"].shape == right.shape and a["extra"].dtype is right.dtype, "extra")
        need(a["extra"].is_contiguous(), "extra")
    if a["lse_gradient"] is not None:
        need(base.name == "cross_entropy" and a["lse_gradient"].dtype in FLOATING, "lse_gradient")
        need(a["lse_gradient"].shape == positions, "lse_gradient")
    options = SoftmaxOptions(a["ignore_index"], a["label_smoothing"], a["terms"])
    losses = LOSSES[base.name].reference(leaf, target, weight, None, options, "none")
    return losses, [leaf, probabilities], weight


def _class_margin(base: Base, a: Arguments) -> tuple[Tensor, list[Tensor | None], None]:
    _check_parameters(base, a)
    input, target, weight = a["input"], a["target"], a["weight"]
    need(1 <= input.dim() <= 2 and input.shape[-1] > 0, "input")
    need(target.dtype is torch.int64 and a["extra"] is None, "target")
    rows = input.shape[0] if input.dim() == 2 else 1
    if base.name == "multilabel_margin_loss":
        need(target.shape == input.shape and weight is None, "target")
    else:
        need(a["parameters"][0] in (1.0, 2.0), "p")
        need(target.dim() <= 1 and target.numel() == rows, "target")
        target = target.reshape(input.shape[:-1])
    if weight is not None:
        need(weight.dtype in FLOATING and weight.dim() <= 1 and weight.numel() == input.shape[-1], "weight")
        weight = weight.double().reshape(-1)
    leaf = _leaf(input)
    if base.name == "multilabel_margin_loss":
        return F.multilabel_margin_loss(leaf, target, reduction="none"), [leaf], None
    p, margin = a["parameters"]
    losses = F.multi_margin_loss(leaf, target, int(p), margin, weight, reduction="none")
    return losses, [leaf], None


def _statistics(a: Arguments) -> Tensor:
    """Of each row, its largest logit, the sum of exponentials relative to it, and their mean excess."""
    input = a["input"]
    x = reference.map_logits(input if input.dtype is torch.float64 else input.float(), a["terms"])
    dim = min(1, x.dim() - 1)
    largest = x.amax(dim, keepdim=True)
    e = (x - largest).exp()
    rows = [largest, e.sum(dim, keepdim=True)]
    if a["terms"] and a["terms"][1]:
        rows.append((e * (x - largest)).sum(dim, keepdim=True) / rows[1])
    return torch.stack([row.flatten() for row in rows])


def _reduced(base: Base, a: Arguments, losses: Tensor, weight: Tensor | None) -> Tensor:
    reduction = a["reduction"]
    need(reduction in range(4 if base.family == "pointwise" else 3), "reduction")
    if reduction == NONE:
        return losses
    if reduction == BATCH_MEAN:
        return losses.sum() / (a["input"].shape[0] if a["input"].dim() else 1)
    if reduction != MEAN:
        return losses.sum()
    if a.get("normalizer") is not None:
        return losses.sum() / a["normalizer"]
    if base.family == "softmax":
        divisor = reference.divisor_of_mean(a["input"], a["target"], weight, a["ignore_index"])
        return losses.sum() / divisor
    if LOSSES[base.name].mean_over_weights and weight is not None:
        return losses.sum() / weight.sum()
    if a.get("ignore_index") is not None:
        return losses.sum() / (a["target"] != a["ignore_index"]).expand(losses.shape).sum()
    if base.family == "class_margin" and losses.numel() == 0:
        return losses.sum()
    return losses.sum() / losses.numel()


def _gradients(
    base: Base, a: Arguments, loss: Tensor, leaves: list[Tensor | None], bits: int
) -> list[Tensor]:
    wanted = [(k, leaf) for k, leaf in enumerate(leaves) if leaf is not None and bits >> k & 1]
    upstream = torch.ones_like(loss)
    if "upstream" in a:
        need(a["upstream"].dtype in FLOATING, "upstream")
        shape = a["upstream"].shape
        one = a["upstream"].numel() == loss.numel() == 1 and (
            a["reduction"] != NONE or (base.family == "class_margin" and len(shape) < 2)
        )
        need(one or shape == loss.shape, "upstream")
        upstream = a["upstream"].double().reshape(loss.shape)
    if not wanted:
        return []
    roots, upstreams = [loss], [upstream]
    if a.get("lse_gradient") is not None:
        options = SoftmaxOptions(a["ignore_index"], a["label_smoothing"], a["terms"])
        roots.append(reference.lse(leaves[0], a["target"], options))
        upstreams.append(a["lse_gradient"].double())
    made = torch.autograd.grad(roots, [leaf for _, leaf in wanted], upstreams, materialize_grads=True)
    operands = (a["input"], a["target"], a["extra"])
    return [x.to(operands[k].dtype) for (k, _), x in zip(wanted, made, strict=True)]
