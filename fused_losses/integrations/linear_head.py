"""Causal language models of transformers that train without logits.

Example:
    >>> import torch, transformers
    >>> from fused_losses.integrations.linear_head import use_linear_head
    >>> config = transformers.GPT2Config(vocab_size=16, n_embd=8, n_layer=1, n_head=1)
    >>> model, tokens = transformers.GPT2LMHeadModel(config), torch.tensor([[1, 2, 3]])
    >>> handle = use_linear_head(model)
    >>> model(input_ids=tokens, labels=tokens).loss.backward()
    >>> handle.undo()
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fused_losses.integrations.transformers import (
    Items,
    causal_lm_linear_loss,
    causal_lm_loss,
    loss_utils,
    without_backward,
)
from fused_losses.swaps import Patch, Swap


def use_linear_head(model: Any) -> LinearHead:
    """Lets a causal language model compute its loss from the hidden states, without ever having logits.

    In training mode, `model(input_ids, labels=...)` returns the loss of :func:`causal_lm_linear_loss`, and
    `logits=None`. In evaluation, or without labels, nothing changes. In effect at once, until `undo` or the
    end of the `with` block. Labels must be given by keyword, as the Trainer does (without a
    `compute_loss_func`, which would need the logits).

    Args:
        model: a model of transformers, such as LlamaForCausalLM or GPT2LMHeadModel, with a `torch.nn.Linear`
            as its output layer and transformers' causal loss. Nothing may happen to the logits between the
            two; where something does, the first step in training raises RuntimeError.

    Returns:
        A handle, which is a context manager: `undo()` gives the model its own parts back.

    Raises:
        ValueError: a model with another output layer or another loss, or that caps its logits.
        RuntimeError: the model has a linear head of this kind already.

    Example:
        >>> import transformers
        >>> from fused_losses.integrations.linear_head import use_linear_head
        >>> config = transformers.GPT2Config(vocab_size=16, n_embd=8, n_layer=1, n_head=1)
        >>> model, tokens = transformers.GPT2LMHeadModel(config), torch.tensor([[1, 2, 3]])
        >>> with use_linear_head(model):
        ...     print(model(tokens, labels=tokens).logits)
        None
    """
    name = type(model).__name__
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise ValueError(f"{name} has no torch.nn.Linear as its output layer, but {type(head).__name__}.")
    if isinstance(getattr(vars(head).get("forward"), "__self__", None), LinearHead):
        raise RuntimeError(f"{name} has a linear head already.")
    if without_backward(model.loss_function) not in (loss_utils().ForCausalLMLoss, causal_lm_loss):
        raise ValueError(f"the loss of {name} is not that of transformers' causal language models.")
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    if cap is not None:
        raise ValueError(f"{name} caps its logits (final_logit_softcapping={cap}), so it needs them.")
    return LinearHead(model, head)


class LinearHead(Patch):
    """A model whose output layer and loss are one function while it trains; see :func:`use_linear_head`."""

    def __init__(self, model: Any, head: nn.Linear) -> None:
        self._head = head
        self._hidden: Tensor | None = None
        self._is_active = False
        self._hooks = (
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after),
        )
        name = type(model).__name__
        super().__init__(
            (
                Swap(vars(head), "forward", self._skip, f"{name}'s output layer"),
                Swap(vars(model), "_loss_function", self._loss, f"{name}.loss_function"),
            )
        )

    def undo(self) -> None:
        """Gives the model its output layer and its loss back; a second time does nothing."""
        super().undo()
        for hook in self._hooks:
            hook.remove()

    def _before(self, model: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        """A hook before the model's forward: it will compute a loss in training mode, if given labels."""
        self._hidden = None
        labels = any(keywords.get(name) is not None for name in ("labels", "shift_labels"))
        self._is_active = model.training and labels

    def _skip(self, hidden: Tensor) -> Tensor:
        """The output layer's forward: where a loss is computed, it returns the hidden states as logits."""
        if not self._is_active:
            return type(self._head).forward(self._head, hidden)
        # A tensor object of its own: if the loss is given the very same, nothing has happened in between.
        self._hidden = hidden.view_as(hidden)
        self._version = self._hidden._version
        return self._hidden

    def _loss(
        self,
        logits: Tensor,
        labels: Tensor | None,
        vocab_size: int,
        num_items_in_batch: Items = None,
        ignore_index: int = -100,
        shift_labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The model's loss function, whose `logits` are the hidden states that `_skip` has returned."""
        if not self._is_active:
            return causal_lm_loss(logits, labels, vocab_size, num_items_in_batch, ignore_index, shift_labels)
        if logits is not self._hidden or logits._version != self._version:
            raise RuntimeError(
                "use_linear_head: this model changes its logits before the loss, which cannot be skipped."
            )
        self._is_active = False
        return causal_lm_linear_loss(
            logits,
            self._head.weight,
            labels,
            lm_head_bias=self._head.bias,
            num_items_in_batch=num_items_in_batch,
            ignore_index=ignore_index,
            shift_labels=shift_labels,
        )

    def _after(self, model: Any, arguments: tuple[Any, ...], outputs: Any) -> Any:
        """A hook after the model's forward: its outputs without what stands in the place of logits."""
        if self._is_active:
            raise RuntimeError(
                f"use_linear_head: {type(model).__name__} did not compute its loss by `loss_function`."
            )
        hidden, self._hidden = self._hidden, None
        if hidden is None:
            return outputs
        if isinstance(outputs, tuple):  # which has no place for what is None
            return tuple(value for value in outputs if value is not hidden)
        return type(outputs)(**{key: None if value is hidden else value for key, value in outputs.items()})
