"""What networks are given and asked, class dropout, and the likelihood of held-out images."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dpar.data.loader import batches, sequential
from dpar.errors import InputError
from dpar.experiment.settings import Patchify
from dpar.patches.counts import PatchCounts
from dpar.patches.rule import PatchRule, patch_starts
from dpar.train.distributed import Ranks
from dpar.train.objective import drop_classes, inputs, likelihood, logits_and_targets, summed_loss
from tests.train.tiny import CLASSES, VOCAB, code_rows, code_store, tiny_task

CPU = Ranks(torch.device("cpu"))
KINDS = ["dpar", "llamagen", "unconditional"]


def trained(kind):
    """A task whose head is not zero."""
    task = tiny_task(kind)
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    return task


@pytest.mark.parametrize("kind", KINDS)
def test_a_zero_head_gives_ln_v_exactly(kind):
    task = tiny_task(kind)
    found = likelihood(task.model, task.val, rule=task.rule, precision="float32", ranks=CPU)
    assert found.nll == pytest.approx(math.log(VOCAB), rel=1e-6)
    assert found.images == task.val.num_images
    assert found.tokens == task.val.num_images * (15 if kind == "unconditional" else 16)


@pytest.mark.parametrize("kind", KINDS)
def test_the_likelihood_is_the_mean_over_tokens_of_images_one_by_one(kind):
    task = trained(kind)
    found = likelihood(task.model, task.val, rule=task.rule, precision="float32", ranks=CPU)
    losses = []
    task.model.eval()
    for batch in sequential(task.val, 1):
        starts = (
            None
            if task.rule is None
            else patch_starts(batch.entropy, threshold=task.rule.threshold, max_length=3, grid_width=4)
        )
        if kind == "unconditional":
            logits, targets = task.model(batch.tokens), batch.tokens[:, 1:]
        else:
            given = (batch.tokens, batch.labels) if starts is None else (batch.tokens, batch.labels, starts)
            logits, targets = task.model(*given), batch.tokens
        losses.append(F.cross_entropy(logits[0], targets[0], reduction="none"))
    assert found.nll == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)


def test_the_likelihood_leaves_the_mode_of_the_network_and_reports_p_avg():
    task = trained("dpar")
    task.model.train()
    found = likelihood(task.model, task.val, rule=task.rule, precision="float32", ranks=CPU)
    assert task.model.training
    starts = patch_starts(task.val.entropy[:, 0], threshold=2.0, max_length=3, grid_width=4)
    assert found.mean_patch_length == pytest.approx(PatchCounts.of(starts).mean_patch_length)


def test_ranks_share_the_images_out():
    task, alone = trained("dpar"), CPU

    class OneOfTwo(Ranks):
        """A rank whose sums are kept apart instead of added up."""

        def total(self, value):
            parts.append(value.clone())
            return value

    parts: list[torch.Tensor] = []
    big = code_store(code_rows(2, images=600, views=1))
    for rank in range(2):
        likelihood(task.model, big, rule=task.rule, precision="float32", ranks=OneOfTwo(alone.device, rank, 2))
    whole = likelihood(task.model, big, rule=task.rule, precision="float32", ranks=alone)
    nats, tokens, images, _ = (parts[0] + parts[1]).tolist()
    assert (tokens, images) == (whole.tokens, whole.images)
    assert nats / tokens == pytest.approx(whole.nll, rel=1e-9)


def test_class_dropout_depends_on_seed_epoch_and_image_alone():
    store = code_store(code_rows(3, images=4000, views=1))
    batch = next(sequential(store, 4000))
    dropped = drop_classes(batch, rate=0.1, null=CLASSES, seed=7).labels == CLASSES
    assert dropped.float().mean() == pytest.approx(0.1, abs=0.02)
    assert torch.equal(
        dropped | (batch.labels == drop_classes(batch, rate=0.1, null=CLASSES, seed=7).labels),
        torch.ones(4000, dtype=torch.bool),
    )
    order = torch.from_numpy(np.random.default_rng(0).permutation(4000))
    part = replace(batch, labels=batch.labels[order], images=batch.images[order])
    assert torch.equal(drop_classes(part, rate=0.1, null=CLASSES, seed=7).labels == CLASSES, dropped[order])
    for other in (
        drop_classes(batch, rate=0.1, null=CLASSES, seed=8),
        drop_classes(replace(batch, epoch=1), rate=0.1, null=CLASSES, seed=7),
    ):
        assert not torch.equal(other.labels == CLASSES, dropped)


def test_class_dropout_of_0_and_1_keeps_and_drops_all():
    batch = next(sequential(code_store(code_rows()), 8))
    assert torch.equal(drop_classes(batch, rate=0.0, null=CLASSES, seed=0).labels, batch.labels)
    assert (drop_classes(batch, rate=1.0, null=CLASSES, seed=0).labels == CLASSES).all()


def test_patches_come_from_the_entropies_of_the_drawn_views():
    task = tiny_task("dpar")
    batch = next(batches(task.train, batch_size=8, seed=3))
    given = inputs(batch, labelled=True, rule=task.rule)
    stored = task.train.entropy[batch.images.numpy(), batch.views.numpy()]
    starts = patch_starts(torch.from_numpy(np.array(stored)), threshold=2.0, max_length=3, grid_width=4)
    assert given.layout is not None
    assert given.layout.packed.lengths == tuple(starts.sum(1).tolist())
    assert given.mean_patch_lengths == pytest.approx((16 / starts.sum(1)).sum().item())


def test_dynamic_patches_need_entropies_and_static_ones_do_not():
    task = tiny_task("dpar")
    batch = next(sequential(code_store(code_rows(scored=False)), 4))
    with pytest.raises(InputError, match="no entropies"):
        inputs(batch, labelled=True, rule=task.rule)
    static = PatchRule.of(Patchify(strategy="static", p_avg=2), None, 4)
    assert inputs(batch, labelled=True, rule=static).layout.packed.lengths == (8, 8, 8, 8)


def test_a_distilled_gate_learns_the_entropies_of_the_drawn_views():
    task = tiny_task("distilled")
    assert task.distilled
    assert not task.labelled
    batch = next(batches(task.train, batch_size=8, seed=3))
    given = inputs(batch, labelled=False, rule=None, distilled=True)
    found, targets = logits_and_targets(task.model, given)
    assert torch.equal(targets, torch.from_numpy(task.train.entropy[batch.images.numpy(), batch.views.numpy()])[:, 1:])
    errors = [abs(a - b) for a, b in zip(found.flatten().tolist(), targets.flatten().tolist(), strict=True)]
    assert min(errors) < 1 < max(errors)
    expected = sum(e**2 / 2 if e < 1 else e - 0.5 for e in errors)
    assert summed_loss(found, targets).item() == pytest.approx(expected, rel=1e-5)


def test_the_error_of_a_distilled_gate_is_the_mean_over_all_tokens_but_the_first():
    task = tiny_task("distilled")
    found = likelihood(task.model, task.val, rule=None, precision="float32", ranks=CPU)
    errors = np.abs(math.log(VOCAB) - task.val.entropy[:, 0, 1:])
    assert found.nll == pytest.approx(np.where(errors < 1, errors**2 / 2, errors - 0.5).mean(), rel=1e-5)
    assert found.tokens == task.val.num_images * 15


def test_a_gate_cannot_be_distilled_from_codes_without_entropies():
    batch = next(sequential(code_store(code_rows(scored=False)), 4))
    with pytest.raises(InputError, match="no entropies to learn"):
        inputs(batch, labelled=False, rule=None, distilled=True)


def test_an_unconditional_network_is_asked_for_all_tokens_but_the_first():
    task = tiny_task("unconditional")
    batch = next(sequential(task.val, 2))
    logits, targets = logits_and_targets(task.model, inputs(batch, labelled=False, rule=None))
    assert logits.shape == (2, 15, VOCAB)
    assert torch.equal(targets, batch.tokens[:, 1:])
