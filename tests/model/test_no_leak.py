"""Nothing leaks and every way to a logit gives the same one, for each rule, position scheme, depth and pooling."""

import pytest
import torch

from dpar.experiment.settings import Patchify
from dpar.model.entropy import token_entropies
from dpar.patches.rule import PatchRule
from dpar.sampling.guidance import DrawSettings
from dpar.sampling.sampler import sample
from tests.model.test_dpar import STARTS
from tests.model.tiny import HEADS, VOCAB, tiny_batch, tiny_dpar, tiny_llamagen
from tests.oracles.arithmetic import RowByRow
from tests.oracles.model import dpar_logits

CASES = {  # grid, rule of Table 3, sizes and schemes of Tables 9 and 10
    "all three rules": ((4, 4), Patchify(threshold=0, max_length=3), {"layers": 2, "decoder_layers": 2}),
    "no row rule": (
        (3, 5),
        Patchify(threshold=0, max_length=3, row_boundary=False),
        {"encoder_layers": 2, "position": "dynamic_no_redundancy"},
    ),
    "entropy alone": (
        (5, 3),
        Patchify(threshold=0, max_length=None, row_boundary=False),
        {"encoder_layers": 3, "decoder_layers": 2, "position": "2d"},
    ),
    "static": ((3, 5), Patchify(strategy="static", p_avg=1.81), {"encoder_layers": 2}),
    "mean query": ((2, 7), Patchify(threshold=0), {"encoder_layers": 4, "query_pooling": "mean"}),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request, float64):
    """A DPAR, the entropy model of its images, and the rule with a threshold in the midst of the entropies."""
    grid, patchify, sizes = request.param
    entropy_model = tiny_llamagen(grid, num_classes=None)
    with torch.no_grad():
        entropies = token_entropies(entropy_model, tiny_batch(3, grid)[0], "unconditional")
    middle = entropies[:, 2:].flatten().sort().values.chunk(2)
    threshold = None if not patchify.is_dynamic else (middle[0][-1] + middle[1][0]).item() / 2  # equal to none
    return tiny_dpar(grid, **sizes), entropy_model, PatchRule.of(patchify, threshold, grid[1])


def cut(case, tokens: torch.Tensor) -> torch.Tensor:
    """The starts that the rule gives these tokens."""
    _, entropy_model, rule = case
    return rule.starts(token_entropies(entropy_model, tokens, "unconditional"))


@torch.no_grad()
def test_packed_alone_step_by_step_and_literal_logits_are_the_same(case):
    model, entropy_model, rule = case
    tokens, labels = tiny_batch(3, model.config.grid)[0], torch.tensor([2, 0, 1])
    starts = cut(case, tokens)
    assert not rule.is_dynamic or len(set(starts.sum(1).tolist())) > 1, "all images have as many patches"
    packed, steps = model(tokens, labels, starts), []
    drawn = sample(
        model,
        entropy_model,
        labels=labels,
        seeds=torch.arange(3),
        rule=rule,
        settings=DrawSettings(1.0),
        prefix=tokens,
        observe=steps.append,
    )
    assert torch.equal(drawn.starts, starts)
    torch.testing.assert_close(torch.stack([step.logits for step in steps], 1), packed)
    scheme = (model.config.grid[1], HEADS, model.config.position, model.config.query_pooling)
    for i in range(3):
        torch.testing.assert_close(model(tokens[i : i + 1], labels[i : i + 1], starts[i : i + 1])[0], packed[i])
        literal = dpar_logits(model.state_dict(), tokens[i].tolist(), int(labels[i]), starts[i].tolist(), *scheme)
        torch.testing.assert_close(literal, packed[i])


@torch.no_grad()
def test_no_logit_changes_to_the_bit_when_a_later_token_and_all_boundaries_do(case):
    model = case[0]
    image, length = tiny_batch(1, model.config.grid)[0], model.config.tokens
    changed = image.repeat(length, 1)
    changed[range(length), range(length)] = (image[0] + 5) % VOCAB  # the t-th image has another x_t
    images = torch.cat((image, changed))
    with RowByRow():
        starts = cut(case, images)
        logits = model(images, images.new_zeros(len(images)), starts)
    for t in range(length):
        assert torch.equal(starts[1 + t, : t + 1], starts[0, : t + 1]), t
        assert torch.equal(logits[1 + t, : t + 1], logits[0, : t + 1]), t
        assert t == length - 1 or not torch.equal(logits[1 + t, t + 1], logits[0, t + 1]), t
    moved = (starts[1:] != starts[0]).any(1).sum()
    assert not case[2].is_dynamic or moved >= 4, "a leak through the boundaries would not be noticed"


@torch.no_grad()
@pytest.mark.parametrize("as_many", [True, False])
def test_no_logit_changes_with_the_arithmetic_of_the_machine(float64, as_many):
    """To the bit where boundaries only move; within rounding where their number changes, and the matrices with it."""
    model, (tokens, labels) = tiny_dpar((4, 4)), tiny_batch(2, (4, 4))
    generator = torch.Generator().manual_seed(0)
    before = torch.rand(2, 16, generator=generator) < 0.5
    before[:, :2] = True
    logits = model(tokens, labels, before)
    for t in range(1, 16):
        other, there = tokens.clone(), before.clone()
        other[:, t] = (tokens[:, t] + 1) % VOCAB
        tail = torch.rand(2, 15 - t, generator=generator)
        there[:, t + 1 :] = before[:, t + 1 :].gather(1, tail.argsort(1)) if as_many else tail < 0.5
        after = model(other, labels, there)[:, : t + 1]
        torch.testing.assert_close(after, logits[:, : t + 1], rtol=0, atol=0 if as_many else 1e-13)


def test_the_gradient_by_the_predicted_and_all_later_tokens_is_exactly_zero(case):
    tokens = tiny_batch(2, case[0].config.grid)[0]
    with torch.no_grad():
        starts = cut(case, tokens)
    check_gradients(case[0], starts)


@pytest.mark.parametrize("starts", STARTS.values(), ids=STARTS.keys())
def test_so_it_is_with_patches_of_any_length(float64, starts):
    check_gradients(tiny_dpar(), starts)


def check_gradients(model, starts: torch.Tensor) -> None:
    """Of each logit of the first image by the embeddings of all tokens; x_t is predicted at t."""
    tokens, labels = tiny_batch(len(starts), model.config.grid)
    embedded = []
    model.tok_embeddings.register_forward_hook(lambda *call: embedded.append(call[-1]))
    logits = model(tokens, labels, starts)
    for t in range(model.config.tokens):
        (gradient,) = torch.autograd.grad(logits[0, t].square().sum(), embedded, retain_graph=True)
        assert not gradient[0, t:].any(), t
        assert gradient[0, :t].any(-1).all(), t
        assert not gradient[1:].any(), "another image"


def test_the_last_token_is_never_an_input(float64):
    model, (tokens, labels) = tiny_dpar(), tiny_batch(2)
    starts = STARTS["a last patch of one token"]
    other = tokens.clone()
    other[:, -1] = (tokens[:, -1] + 1) % VOCAB
    assert torch.equal(model(tokens, labels, starts), model(other, labels, starts))
