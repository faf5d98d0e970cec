"""The losses of Hugging Face's transformers: without a float32 copy of the logits, or without logits at all.

The functions have the signatures of those in `transformers.loss.loss_utils`, and their results, but
the loss of bfloat16 or float16 logits is float32 throughout, and that of float64 logits float64.
`patch_transformers` lets models use them.

Example:
    >>> from fused_losses.integrations.transformers import patch_transformers
    >>> patched = patch_transformers()  # here, models train with these losses
    >>> patched.undo()
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fused_losses import functional as F
from fused_losses.call import Backward
from fused_losses.losses.checks import check_backward
from fused_losses.swaps import Patch, Swap

Items = Tensor | float | None
"""What a sum over a batch is divided by: a number, or a tensor of one on any device. None stands for the
number of labels of this call that are not ignored."""


def causal_lm_loss(
    logits: Tensor,
    labels: Tensor | None,
    vocab_size: int,
    num_items_in_batch: Items = None,
    ignore_index: int = -100,
    shift_labels: Tensor | None = None,
    *,
    backward: Backward = "fused",
    **kwargs: Any,
) -> Tensor:
    """Cross-entropy of each token's logits and the next token; as transformers' `ForCausalLMLoss`.

    Args:
        logits: (batch, length, vocab_size).
        labels: int64, (batch, length); not needed where shift_labels is given.
        vocab_size: the number of classes.
        num_items_in_batch: divides the sum; without it, the mean over tokens that are not ignored.
        ignore_index: tokens with this label do not count.
        shift_labels: labels that are shifted already.
        backward: "fused": this call computes the gradient, too, and keeps it in a buffer until the backward.
            "recompute": the backward computes it from the logits. "inplace": this call computes it, over the
            logits, which the model returns, too.
        kwargs: ignored, as by transformers.

    Returns:
        A scalar: float32, or float64 for float64 logits.

    Example:
        >>> from fused_losses.integrations.transformers import causal_lm_loss
        >>> causal_lm_loss(torch.zeros(1, 3, 8), torch.tensor([[1, 2, 3]]), vocab_size=8)
        tensor(2.0794)
    """
    return _cross_entropy(
        logits.reshape(-1, vocab_size),
        _next_tokens(labels, ignore_index, shift_labels),
        num_items_in_batch,
        ignore_index,
        backward,
    )


def masked_lm_loss(
    logits: Tensor,
    labels: Tensor,
    vocab_size: int,
    num_items_in_batch: Items = None,
    ignore_index: int = -100,
    *,
    backward: Backward = "fused",
    **kwargs: Any,
) -> Tensor:
    """Cross-entropy of each token; as transformers' `ForMaskedLMLoss`. See :func:`causal_lm_loss`.

    Example:
        >>> from fused_losses.integrations.transformers import masked_lm_loss
        >>> masked_lm_loss(torch.zeros(1, 3, 8), torch.tensor([[-100, 2, -100]]), vocab_size=8)
        tensor(2.0794)
    """
    logits = logits.reshape(-1, vocab_size)
    return _cross_entropy(logits, labels.reshape(-1), num_items_in_batch, ignore_index, backward)


def token_classification_loss(
    logits: Tensor,
    labels: Tensor,
    config: Any,
    num_items_in_batch: Items = None,
    ignore_index: int = -100,
    *,
    backward: Backward = "fused",
    **kwargs: Any,
) -> Tensor:
    """Cross-entropy of each token; as transformers' `ForTokenClassification`. See :func:`causal_lm_loss`.

    Example:
        >>> import types
        >>> from fused_losses.integrations.transformers import token_classification_loss
        >>> config = types.SimpleNamespace(num_labels=4)  # a model's config
        >>> token_classification_loss(torch.zeros(1, 3, 4), torch.tensor([[0, 1, -100]]), config)
        tensor(1.3863)
    """
    return masked_lm_loss(
        logits, labels, config.num_labels, num_items_in_batch, ignore_index, backward=backward
    )


def sequence_classification_loss(
    labels: Tensor,
    pooled_logits: Tensor,
    config: Any,
    num_items_in_batch: Items = None,
    ignore_index: int = -100,
    *,
    backward: Backward = "fused",
    **kwargs: Any,
) -> Tensor:
    """The loss of `config.problem_type`; as transformers' `ForSequenceClassificationLoss`.

    Squared error for "regression", cross-entropy for "single_label_classification", binary cross-entropy for
    "multi_label_classification". Where the config does not say, the number and the dtype of the labels do,
    and the config is told, as by transformers.

    Args:
        labels: (batch), or (batch, config.num_labels) for several numbers or labels.
        pooled_logits: (batch, config.num_labels).
        config: the model's.
        num_items_in_batch: as in :func:`causal_lm_loss`, for a single label.
        ignore_index: as in :func:`causal_lm_loss`, for a single label.
        backward: as in :func:`causal_lm_loss`.
        kwargs: ignored.

    Raises:
        RuntimeError: another problem type.

    Example:
        >>> import types
        >>> from fused_losses.integrations.transformers import sequence_classification_loss
        >>> config = types.SimpleNamespace(num_labels=4, problem_type=None)  # a model's config
        >>> sequence_classification_loss(torch.tensor([1, 3]), torch.zeros(2, 4), config)
        tensor(1.3863)
        >>> config.problem_type
        'single_label_classification'
    """
    if config.problem_type is None:
        if config.num_labels == 1:
            config.problem_type = "regression"
        elif labels.dtype in (torch.int64, torch.int32):
            config.problem_type = "single_label_classification"
        else:
            config.problem_type = "multi_label_classification"
    labels = labels.to(pooled_logits.device)
    with _float32_losses(pooled_logits):
        if config.problem_type == "regression":
            if config.num_labels == 1:
                return F.mse_loss(pooled_logits.squeeze(), labels.squeeze(), backward=backward)
            return F.mse_loss(pooled_logits, labels, backward=backward)
        if config.problem_type == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(pooled_logits, labels, backward=backward)
    if config.problem_type == "single_label_classification":
        logits = pooled_logits.reshape(-1, config.num_labels)
        return _cross_entropy(logits, labels.reshape(-1), num_items_in_batch, ignore_index, backward)
    raise RuntimeError(f"Invalid problem type: {config.problem_type}")


def causal_lm_loss_func(outputs: Any, labels: Tensor, num_items_in_batch: Items = None) -> Tensor:
    """:func:`causal_lm_loss`, as the Trainer's `compute_loss_func`.

    Args:
        outputs: the model's; its logits are (batch, length, vocabulary).
        labels: int64, (batch, length).
        num_items_in_batch: as in :func:`causal_lm_loss`.

    Example:
        >>> from fused_losses.integrations.transformers import causal_lm_loss_func
        >>> causal_lm_loss_func({"logits": torch.zeros(1, 3, 8)}, torch.tensor([[1, 2, 3]]))
        tensor(2.0794)
    """
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
    return causal_lm_loss(logits, labels, logits.shape[-1], num_items_in_batch)


def causal_lm_linear_loss(
    hidden_states: Tensor,
    lm_head_weight: Tensor,
    labels: Tensor | None,
    *,
    lm_head_bias: Tensor | None = None,
    num_items_in_batch: Items = None,
    ignore_index: int = -100,
    shift_labels: Tensor | None = None,
) -> Tensor:
    """:func:`causal_lm_loss` of the logits that a linear head would make of hidden states.

    It is :func:`fused_losses.functional.linear_cross_entropy` of the shifted labels.

    Args:
        hidden_states: (batch, length, features), those that the head gets.
        lm_head_weight: (vocabulary, features).
        labels: as in :func:`causal_lm_loss`; so are the other arguments.
        lm_head_bias: (vocabulary).
        num_items_in_batch: divides the sum.
        ignore_index: tokens with this label do not count.
        shift_labels: labels that are shifted already.

    Returns:
        A scalar: float32, or float64 for float64 hidden states.

    Example:
        >>> from fused_losses.integrations.transformers import causal_lm_linear_loss
        >>> hidden_states, head = torch.zeros(1, 3, 16), torch.ones(8, 16)
        >>> causal_lm_linear_loss(hidden_states, head, torch.tensor([[1, 2, 3]]))
        tensor(2.0794)
    """
    with _float32_losses(hidden_states):
        loss = F.linear_cross_entropy(
            hidden_states.reshape(-1, hidden_states.shape[-1]),
            lm_head_weight,
            _next_tokens(labels, ignore_index, shift_labels).to(hidden_states.device),
            linear_bias=lm_head_bias,
            ignore_index=ignore_index,
            normalizer=num_items_in_batch,
        )
    return _in_shape_of(num_items_in_batch, loss)


def patch_transformers(*, backward: Backward = "fused") -> Patch:
    """Lets the models of transformers look up the losses of this module in the place of transformers'.

    Models look when they compute their loss, so those that exist already are served, too; not those that were
    given a `loss_function` of their own. Like :func:`fused_losses.patch`, it is in effect at once for the
    whole process, until `undo` or the end of the `with` block. The other losses of transformers, and those
    that models compute themselves, are calls of torch.nn: see :func:`fused_losses.patch`.

    The table `LOSS_MAPPING` itself stays as it is: the Trainer asks it whether a loss shifts its labels, and
    so how many tokens there are.

    Args:
        backward: "fused", "recompute" or "inplace", for all of them, as :func:`causal_lm_loss` has them. With
            "inplace", the logits that a model returns beside the loss are overwritten.

    Returns:
        A handle, which is a context manager: `undo()` puts transformers' losses back.

    Raises:
        ImportError: transformers is not installed.
        ValueError: another `backward`.

    Example:
        >>> from fused_losses.integrations.transformers import patch_transformers
        >>> with patch_transformers() as patched:
        ...     patched.replaced
        ('transformers.modeling_utils.LOSS_MAPPING',)
    """
    check_backward(backward)
    models = importlib.import_module("transformers.modeling_utils")
    name = "LOSS_MAPPING"
    return Patch([Swap(vars(models), name, _losses(backward), f"{models.__name__}.{name}")])


class _Losses(Mapping[str, Any]):
    """Transformers' table of losses as it is when asked, but for functions that have a replacement."""

    def __init__(self, table: Mapping[str, Any], replacements: Mapping[Any, Any]) -> None:
        self._table, self._replacements = table, replacements

    def __getitem__(self, name: str) -> Any:
        function = self._table[name]
        return self._replacements.get(function, function)

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)


@functools.cache  # one object for each `backward`, by which nested patches recognise each other
def _losses(backward: Backward) -> _Losses:
    utils = loss_utils()
    functions: dict[Any, Callable[..., Tensor]] = {
        utils.ForCausalLMLoss: causal_lm_loss,
        utils.ForMaskedLMLoss: masked_lm_loss,
        utils.ForTokenClassification: token_classification_loss,
        utils.ForSequenceClassificationLoss: sequence_classification_loss,
    }
    return _Losses(
        utils.LOSS_MAPPING,
        {replaced: functools.partial(loss, backward=backward) for replaced, loss in functions.items()},
    )


def loss_utils() -> Any:
    """The module of transformers that has its losses."""
    return importlib.import_module("transformers.loss.loss_utils")


def without_backward(loss: Any) -> Any:
    """A model's loss function, without the `backward` that `patch_transformers` may have bound to it."""
    return loss.func if isinstance(loss, functools.partial) else loss


def _next_tokens(labels: Tensor | None, ignore_index: int, shift_labels: Tensor | None) -> Tensor:
    """Each token's label (batch * length), int64: that of the next token; the last token's is ignored."""
    if shift_labels is not None:
        return shift_labels.reshape(-1)
    assert labels is not None
    return nn.functional.pad(labels[..., 1:], (0, 1), value=ignore_index).reshape(-1)


def _cross_entropy(
    logits: Tensor, labels: Tensor, num_items_in_batch: Items, ignore_index: int, backward: Backward
) -> Tensor:
    """Cross-entropy of logits (N, C) and labels (N): the sum over num_items_in_batch, or the mean."""
    with _float32_losses(logits):
        loss = F.cross_entropy(
            logits,
            labels.to(logits.device),
            ignore_index=ignore_index,
            backward=backward,
            normalizer=num_items_in_batch,
        )
    return _in_shape_of(num_items_in_batch, loss)


def _float32_losses(input: Tensor) -> AbstractContextManager[Any]:
    """Autocast for 16-bit input, which is then read as it is, while losses are float32; otherwise nothing."""
    if input.dtype is torch.bfloat16 or input.dtype is torch.float16:
        return torch.autocast(input.device.type, dtype=input.dtype)
    return nullcontext()


def _in_shape_of(num_items_in_batch: Items, loss: Tensor) -> Tensor:
    """The loss, shaped as a quotient would be: (1) where num_items_in_batch is a tensor (1)."""
    return loss.reshape(num_items_in_batch.shape) if isinstance(num_items_in_batch, Tensor) else loss
