"""Linear probes: the states that are pooled, what they must not know, and the classifier as scikit-learn fits it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dpar.data.loader import sequential
from dpar.evaluation.linear_probe import describe_codes, fit_probe, pooled_states, top_k_accuracy
from dpar.model.attention import causal_attention
from dpar.train.objective import inputs, patch_layout
from tests.train.tiny import tiny_task

CPU = torch.device("cpu")


@pytest.fixture(params=["llamagen", "dpar"])
def task(request):
    """A model with varied weights, codes, and where patches begin."""
    task = tiny_task(request.param, dropout=0.3)
    for parameter in task.model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    task.model.eval()
    return task


def given(task, batch, label=None):
    labels = torch.full_like(batch.labels, task.model.null_label if label is None else label)
    return inputs(replace(batch, labels=labels), labelled=True, rule=task.rule)


def one_by_one(task, batch):
    """The states of each image alone, block by block, from embeddings on."""
    model = task.model
    for i in range(len(batch.tokens)):
        tokens, null = batch.tokens[i : i + 1], torch.tensor([model.null_label])
        embedded = model.tok_embeddings(tokens[:, :-1])
        if task.rule is None:
            states, rope = torch.cat((model.cls_embedding(null)[:, None], embedded), 1), model.rope()
        else:
            alone = replace(batch, tokens=tokens, labels=null, entropy=batch.entropy[i : i + 1])
            layout = patch_layout(task.rule, alone)
            _, patches = model.encoder(
                embedded, model.rope()[1:], causal_attention, layout.rows[:, :-1], layout.packed.total
            )
            states = torch.cat((model.cls_embedding(null), patches[:-1]))[None]
            rope = model.patch_rope(layout.first, layout.last)[:-1]
            rope = torch.cat((torch.zeros_like(rope[:1]), rope))
        blocks = model.layers if task.rule is None else model.patch_transformer.layers
        for block in blocks:
            states = block(states, rope, causal_attention)
        yield states[0, 1:].mean(0)


@torch.no_grad()
def test_states_are_pooled_over_what_an_image_has_and_not_the_class(task):
    batch = next(sequential(task.train, 7))
    found = pooled_states(task.model, given(task, batch))
    torch.testing.assert_close(found, torch.stack(list(one_by_one(task, batch))), rtol=1e-4, atol=1e-5)
    if task.rule is not None:
        assert len(set(patch_layout(task.rule, batch).packed.lengths)) > 1, "images of several numbers of patches"


@torch.no_grad()
def test_labels_and_the_last_token_do_not_reach_the_features(task):
    batch = next(sequential(task.train, 7))
    how = {"rule": task.rule, "precision": "float32", "device": CPU}
    features, labels = describe_codes(task.model, [batch], **how)
    assert torch.equal(labels, batch.labels)
    others = replace(batch, labels=(batch.labels + 1) % 3, tokens=batch.tokens.clone())
    others.tokens[:, -1] = (others.tokens[:, -1] + 1) % 32
    again, other_labels = describe_codes(task.model, [others], **how)
    assert torch.equal(again, features)
    assert torch.equal(other_labels, others.labels)
    told = pooled_states(task.model, given(task, batch, label=0))
    assert not torch.allclose(told, features, atol=1e-3), "the class would have told"
    halves, _ = describe_codes(task.model, sequential(task.train, 5), **how)
    torch.testing.assert_close(halves[:7], features, rtol=1e-4, atol=1e-5)


def clusters(count, seed=0, spread=1.5):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    centres = torch.randn(4, 6, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    noise = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    return (centres[labels] + spread * noise) * torch.tensor([1, 10, 0.1, 1, 1, 1]) + 5, labels


def test_the_fit_is_the_minimum_that_scikit_learn_finds(monkeypatch):
    linear_model = pytest.importorskip("sklearn.linear_model")
    monkeypatch.setattr("dpar.evaluation.linear_probe.CHUNK", 70)  # several, the last of them short
    features, labels = clusters(300)
    probe = fit_probe(features, labels, num_classes=4, penalty=0.01, iterations=500)
    standard = (features - features.mean(0)) / features.std(0, correction=0)
    theirs = linear_model.LogisticRegression(C=1 / (300 * 0.01), tol=1e-10, max_iter=5000).fit(standard, labels)
    np.testing.assert_allclose(probe.weight - probe.weight.mean(0), theirs.coef_ - theirs.coef_.mean(0), atol=2e-5)
    expected = torch.from_numpy(theirs.predict_proba(standard))
    torch.testing.assert_close(probe(features).softmax(1), expected, rtol=0, atol=2e-5)


def test_accuracy_counts_the_best_and_the_best_few():
    features, labels = clusters(400)
    probe = fit_probe(features, labels, num_classes=4, penalty=1e-4, iterations=100)
    held_out, theirs = clusters(200, seed=1)
    ranked = probe(held_out).argsort(1, descending=True)
    for k in (1, 2, 4):
        expected = 100 * (ranked[:, :k] == theirs[:, None]).any(1).double().mean().item()
        assert top_k_accuracy(probe, held_out, theirs, k) == pytest.approx(expected)
    assert 50 < top_k_accuracy(probe, held_out, theirs, 1) < 100
    assert top_k_accuracy(probe, held_out, theirs, 4) == 100


def test_a_feature_that_never_changes_is_no_division_by_zero():
    features, labels = clusters(100)
    features[:, 3] = 7
    probe = fit_probe(features, labels, num_classes=4, penalty=1e-3, iterations=50)
    assert probe(features).isfinite().all()
