"""Models of transformers, made of small configurations, train alike with its losses and with ours."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
import torch.nn.functional as F

from fused_losses.integrations import transformers as ours
from fused_losses.integrations.linear_head import use_linear_head

pytest.importorskip("transformers")

import transformers
import transformers.loss.loss_utils as theirs
from kit.small_models import BERT, BFLOAT16, FLOAT32, MODELS, VOCABULARY, batch, gradients, make, train

PAIRS = [
    (theirs.ForCausalLMLoss, ours.causal_lm_loss),
    (theirs.ForMaskedLMLoss, ours.masked_lm_loss),
    (theirs.ForTokenClassification, ours.token_classification_loss),
    (theirs.ForSequenceClassificationLoss, ours.sequence_classification_loss),
]


@pytest.mark.parametrize(("their", "mine"), PAIRS, ids=[their.__name__ for their, _ in PAIRS])
def test_signatures(their, mine):
    """Ours has all that fixed_cross_entropy takes, which theirs hand their keywords to."""
    expected = {
        **inspect.signature(theirs.fixed_cross_entropy).parameters,
        **inspect.signature(their).parameters,
    }
    parameters = inspect.signature(mine).parameters
    names = [name for name in inspect.signature(their).parameters if name != "kwargs"]
    assert list(parameters)[: len(names)] == names and "kwargs" in parameters
    for name in expected.keys() - {"source", "target"}:
        assert parameters[name].default == expected[name].default


def test_models_look_up_ours():
    table, before = theirs.LOSS_MAPPING, dict(theirs.LOSS_MAPPING)
    model = make("llama")

    def looked_up():
        return getattr(model.loss_function, "func", model.loss_function)

    outer = ours.patch_transformers()
    assert outer.replaced == ("transformers.modeling_utils.LOSS_MAPPING",)
    assert looked_up() is ours.causal_lm_loss
    seen = transformers.modeling_utils.LOSS_MAPPING
    assert list(seen) == list(before) and len(seen) == len(before)
    for key, their in before.items():
        mine = dict(PAIRS).get(their)
        assert seen[key].func is mine if mine else seen[key] is their
    inner = ours.patch_transformers()
    outer.undo()
    assert looked_up() is ours.causal_lm_loss
    with ours.patch_transformers(backward="inplace"):
        assert model.loss_function.keywords == {"backward": "inplace"}
        with pytest.raises(RuntimeError, match="has been replaced again"):
            inner.undo()
    inner.undo()
    inner.undo()
    assert looked_up() is theirs.ForCausalLMLoss
    assert transformers.modeling_utils.LOSS_MAPPING is table and table == before
    with pytest.raises(ValueError, match="backward must be"):
        ours.patch_transformers(backward="eager")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("backward", ["fused", "recompute", "inplace"])
def test_training_float32(name, backward):
    expected, expected_gradients = train(make(name))
    with ours.patch_transformers(backward=backward):
        losses, computed = train(make(name))
    torch.testing.assert_close(losses, expected, **FLOAT32)
    torch.testing.assert_close(computed, expected_gradients, **FLOAT32)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("items", [None, 7, 7.0, torch.tensor(7), torch.tensor([7])], ids=repr)
def test_one_step_bfloat16(name, items):
    model = make(name, torch.bfloat16)
    other = copy.deepcopy(model)
    expected = model(**batch(), num_items_in_batch=items).loss
    expected.sum().backward()
    with ours.patch_transformers():
        loss = other(**batch(), num_items_in_batch=items).loss
    loss.sum().backward()
    assert loss.dtype is expected.dtype is torch.float32 and loss.shape == expected.shape
    # From the same logits, so to float32's precision.
    torch.testing.assert_close(loss, expected, **FLOAT32)
    torch.testing.assert_close(gradients(other), gradients(model), **BFLOAT16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("items", [None, 5], ids=repr)
def test_causal_lm_loss_against_float64(dtype, items):
    logits = torch.randn(3, 7, VOCABULARY).to(dtype).requires_grad_()
    labels = batch(ignored=2)["labels"][:, :7][[0, 1, 0]]
    exact = logits.detach().double().requires_grad_()
    expected = F.cross_entropy(exact[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    expected = expected / (items or (labels[:, 1:] != -100).sum())
    shifted = F.pad(labels[:, 1:], (0, 1), value=-100)
    for loss in (
        ours.causal_lm_loss(logits, labels, VOCABULARY, items),
        ours.causal_lm_loss(logits, None, VOCABULARY, items, shift_labels=shifted, output_attentions=True),
        ours.causal_lm_loss_func({"logits": logits}, labels, items),
        ours.causal_lm_loss_func((logits,), labels, items),
    ):
        assert loss.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
        torch.testing.assert_close(loss.double(), expected, **FLOAT32)
        (gradient,) = torch.autograd.grad(loss, logits)
        (exact_gradient,) = torch.autograd.grad(expected, exact, retain_graph=True)
        epsilon = torch.finfo(dtype).eps
        torch.testing.assert_close(gradient.double(), exact_gradient, rtol=4 * max(epsilon, 1e-7), atol=1e-7)


def test_no_copy_of_bfloat16_logits():
    """Neither loss nor gradient makes anything of the logits' size in float32."""
    logits = torch.randn(1, 4, VOCABULARY, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.arange(4)[None]
    with torch.profiler.profile(record_shapes=True) as profile:
        ours.causal_lm_loss(logits, labels, VOCABULARY, 3).backward()
    of_logits = {e.name for e in profile.events() if any(VOCABULARY in shape for shape in e.input_shapes)}
    assert "fused_losses::cross_entropy" in of_logits
    assert not of_logits & {"aten::to", "aten::_to_copy", "aten::copy_", "aten::clone", "aten::log_softmax"}


CLASSIFICATION = {
    "regression": (1, torch.randn(4)),
    "regression of many": (3, torch.randn(4, 3)),
    "single_label_classification": (3, torch.tensor([0, 2, 1, -100])),
    "multi_label_classification": (3, torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])),
}


# Not inferred: several floating labels, which transformers takes for a multi-label classification.
INFERRED = [problem for problem in CLASSIFICATION if problem != "regression of many"]


@pytest.mark.parametrize(
    ("problem", "said"),
    [*((problem, True) for problem in CLASSIFICATION), *((problem, False) for problem in INFERRED)],
)
def test_bert_classifies_sequences(problem, said):
    classes, labels = CLASSIFICATION[problem]
    kind = problem.removesuffix(" of many")
    config = transformers.BertConfig(**BERT, num_labels=classes, problem_type=kind if said else None)
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config).eval()  # no dropout
    other = copy.deepcopy(model)
    tokens = torch.randint(VOCABULARY, (4, 9))
    with ours.patch_transformers():
        assert other.loss_function.func is ours.sequence_classification_loss
        loss = other(input_ids=tokens, labels=labels).loss
    direct = ours.sequence_classification_loss(labels, other(input_ids=tokens).logits, other.config)
    expected = model(input_ids=tokens, labels=labels).loss
    assert other.config.problem_type == model.config.problem_type == kind
    torch.testing.assert_close(loss, expected, **FLOAT32)
    torch.testing.assert_close(direct, expected, **FLOAT32)
    loss.backward(), expected.backward()
    torch.testing.assert_close(gradients(other), gradients(model), **FLOAT32)


def test_sequence_classification_refuses_another_problem():
    config = transformers.BertConfig(**BERT, num_labels=3)
    config.problem_type = "ranking"
    for loss in (theirs.ForSequenceClassificationLoss, ours.sequence_classification_loss):
        with pytest.raises(RuntimeError, match="Invalid problem type: ranking"):
            loss(torch.zeros(2), torch.zeros(2, 3), config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("items", [None, torch.tensor(3)], ids=repr)
def test_losses_of_tokens(dtype, items):
    logits = torch.randn(2, 5, 7).to(dtype)
    labels = torch.tensor([[0, 1, -100, 3, 6], [-100, 2, 2, 5, 4]])
    config = transformers.BertConfig(**BERT, num_labels=7)
    for mine, their, third in (
        (ours.masked_lm_loss, theirs.ForMaskedLMLoss, 7),
        (ours.token_classification_loss, theirs.ForTokenClassification, config),
    ):
        loss = mine(logits, labels, third, num_items_in_batch=items)
        expected = their(logits, labels, third, num_items_in_batch=items)
        torch.testing.assert_close(loss, expected, **FLOAT32)


@pytest.mark.parametrize("form", ["loss of the model", "compute_loss_func", "linear head"])
def test_trainer(tmp_path, form):
    data = [{key: value[0] for key, value in batch(i, ignored=i % 5).items()} for i in range(12)]

    def losses(model, **keywords):
        arguments = transformers.TrainingArguments(
            output_dir=tmp_path,
            max_steps=3,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(model, arguments, train_dataset=data, **keywords)
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    expected_model, model = make("llama"), make("llama")
    expected = losses(expected_model)
    if form == "loss of the model":
        with ours.patch_transformers():
            computed = losses(model)
    elif form == "compute_loss_func":
        computed = losses(model, compute_loss_func=ours.causal_lm_loss_func)
    else:
        with use_linear_head(model):
            computed = losses(model)
    assert len(expected) == 3 and computed == pytest.approx(expected, rel=1e-4)
    # AdamW's first steps have the size of the learning rate, whatever the gradient's.
    torch.testing.assert_close(model.state_dict(), expected_model.state_dict(), rtol=1e-3, atol=5e-5)
