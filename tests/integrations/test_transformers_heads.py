"""Models of transformers whose losses run over the linear head, without logits, train alike."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fused_losses.integrations import transformers as ours
from fused_losses.integrations.linear_head import use_linear_head

pytest.importorskip("transformers")

import transformers
import transformers.loss.loss_utils as theirs
from kit.small_models import BERT, BFLOAT16, FLOAT32, LLAMA, MODELS, VOCABULARY, batch, gradients, make, train


@pytest.mark.parametrize("name", MODELS)
def test_linear_head_trains_alike(name):
    expected, expected_gradients = train(make(name))
    model = make(name)
    with use_linear_head(model):
        losses, computed = train(model)
    torch.testing.assert_close(losses, expected, **FLOAT32)
    torch.testing.assert_close(computed, expected_gradients, **FLOAT32)


@pytest.mark.parametrize("name", MODELS)
def test_linear_head_bfloat16(name):
    model = make(name, torch.bfloat16)
    other = copy.deepcopy(model)
    expected = model(**batch()).loss
    expected.backward()
    with use_linear_head(other):
        loss = other(**batch()).loss
        loss.backward()
    assert loss.dtype is torch.float32
    # Logits were rounded to bfloat16 in the one, not in the other: 2^-9 of a logit of about 1.
    torch.testing.assert_close(loss, expected, rtol=2**-9, atol=0)
    torch.testing.assert_close(gradients(other), gradients(model), **BFLOAT16)


def test_causal_lm_linear_loss_with_bias():
    hidden, weight, bias = torch.randn(2, 6, 8), torch.randn(VOCABULARY, 8), torch.randn(VOCABULARY)
    labels = batch()["labels"][:, :6]
    for items in (None, 4):
        expected = theirs.ForCausalLMLoss(F.linear(hidden, weight, bias), labels, VOCABULARY, items)
        loss = ours.causal_lm_linear_loss(hidden, weight, labels, lm_head_bias=bias, num_items_in_batch=items)
        torch.testing.assert_close(loss, expected, **FLOAT32)


def test_linear_head_has_no_logits_in_training_alone():
    model = make("llama")
    before = set(vars(model)), set(vars(model.lm_head))
    inputs = batch()
    with use_linear_head(model) as head:
        outputs = model(**inputs)
        assert outputs.logits is None and "logits" not in outputs and outputs.loss.requires_grad
        loss, *rest = model(**inputs, return_dict=False)
        assert torch.equal(loss, outputs.loss) and not any(x is None for x in rest)
        assert model(inputs["input_ids"]).logits.shape == (2, 12, VOCABULARY)
        model.eval()
        evaluated = model(**inputs)
        assert evaluated.logits.shape == (2, 12, VOCABULARY)
        torch.testing.assert_close(evaluated.loss, outputs.loss, **FLOAT32)
        model.generate(inputs["input_ids"], max_new_tokens=2, do_sample=False)
        with pytest.raises(RuntimeError, match="has a linear head already"):
            use_linear_head(model)
    head.undo()
    assert (set(vars(model)), set(vars(model.lm_head))) == before
    assert model.train()(**inputs).logits is not None
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_linear_head_refuses():
    with pytest.raises(ValueError, match="not that of transformers' causal language models"):
        use_linear_head(transformers.BertForMaskedLM(transformers.BertConfig(**BERT)))
    model = make("llama")
    model.lm_head = nn.Sequential(model.lm_head)
    with pytest.raises(ValueError, match=r"no torch\.nn\.Linear as its output layer, but Sequential"):
        use_linear_head(model)
    gemma = transformers.Gemma2Config(**LLAMA, head_dim=8, num_key_value_heads=4)
    with pytest.raises(ValueError, match=r"caps its logits \(final_logit_softcapping=30"):
        use_linear_head(transformers.Gemma2ForCausalLM(gemma))
    gemma.final_logit_softcapping = None
    with use_linear_head(transformers.Gemma2ForCausalLM(gemma).train()) as head:
        assert head._head.weight.shape[0] == VOCABULARY
    granite = transformers.GraniteForCausalLM(transformers.GraniteConfig(**LLAMA, logits_scaling=2.0)).train()
    with use_linear_head(granite), pytest.raises(RuntimeError, match="changes its logits before the loss"):
        granite(**batch())
    assert granite(**batch()).logits is not None


def test_a_model_that_computes_its_loss_itself():
    class Own(transformers.LlamaForCausalLM):
        def forward(self, input_ids, labels=None):
            logits = self.lm_head(self.model(input_ids).last_hidden_state)
            return transformers.modeling_outputs.CausalLMOutput(loss=logits.sum(), logits=logits)

    model = Own(transformers.LlamaConfig(**LLAMA)).train()
    with use_linear_head(model), pytest.raises(RuntimeError, match="did not compute its loss by"):
        model(**batch())
