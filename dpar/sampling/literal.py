"""Algorithm 2 as it is written: for each token, all earlier positions are recomputed, for the whole batch.

The sampler is tested equal to it in float64, and `dpar bench sample` times both.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dpar.model.attention import causal_attention
from dpar.model.dpar import DPAR
from dpar.model.entropy import entropy_from_outputs
from dpar.model.llamagen import LlamaGen
from dpar.patches.packing import PatchLayout
from dpar.patches.rule import PatchRule
from dpar.sampling.guidance import DrawSettings, gumbel_argmax
from dpar.sampling.noise import gumbel
from dpar.sampling.sampler import Step


def llamagen_logits(
    model: LlamaGen, tokens: Int[Tensor, "B t"], labels: Int[Tensor, " B"] | None
) -> Float[Tensor, "B V"]:
    """Logits of x_t from the class (None for a model without) and the tokens x_<t."""
    x = model.tok_embeddings(tokens)
    if labels is not None:
        x = torch.cat((model.cls_embedding(labels)[:, None], x), 1)
    rope = model.rope()[: x.shape[1]]
    for layer in model.layers:
        x = layer(x, rope, causal_attention)
    return model.output(model.norm(x[:, -1]))


def literal_entropy(entropy_model: LlamaGen, tokens: Int[Tensor, "B t"]) -> Float[Tensor, " B"]:
    """e_t in nats from the tokens x_<t, of which there is at least one (Algorithm 2, line 4)."""
    conditional = entropy_model.config.num_classes is not None
    nothing = tokens.new_full((len(tokens),), entropy_model.null_label) if conditional else None
    return entropy_from_outputs(entropy_model, llamagen_logits(entropy_model, tokens, nothing))


class LiteralDPAR:
    """A DPAR asked for one more token at a time; only the patch transformer's outputs live until a patch opens."""

    def __init__(self, model: DPAR, labels: Int[Tensor, " B"]):
        self.model, self.labels = model, labels
        self.outputs: Tensor | None = None

    def logits(self, tokens: Int[Tensor, "B t"], starts: Bool[Tensor, "B t+1"]) -> Float[Tensor, "B V"]:
        """Logits of x_t from x_<t and the starts of the patches of x_0 .. x_t (Algorithm 2, lines 7-13)."""
        model, length = self.model, tokens.shape[1]
        layout = PatchLayout.from_starts(starts)
        rope = model.rope()[: length + 1]
        x = model.start.expand(len(tokens), 1, -1)
        patches = x.new_zeros(layout.packed.total, model.config.width)
        if length:
            states, patches = model.encoder(
                model.tok_embeddings(tokens), rope[1:], causal_attention, layout.rows[:, :-1], layout.packed.total
            )
            x = torch.cat((x, states), 1)
        if starts[:, -1].any():
            self.outputs = model.patch_transformer(
                model.cls_embedding(self.labels),
                patches,
                model.patch_rope(layout.first, layout.last),
                layout.packed,
                "sdpa",
            )
        for layer in model.decoder.layers:
            x = layer(x, self.outputs, layout.rows, rope, causal_attention)
        return model.decoder.output(model.decoder.norm(x[:, -1]))


def opens(entropies: list[float], starts: list[bool], rule: PatchRule) -> bool:
    """Whether x_t opens a patch, given e_0 .. e_t and the starts before it (Algorithm 3, spelled out)."""
    t = len(starts)
    if rule.static_length is not None:
        return t == 0 or math.floor(t / rule.static_length) != math.floor((t - 1) / rule.static_length)
    if t <= 1:
        return True
    assert rule.threshold is not None
    length = starts[::-1].index(True) + 1
    return (
        entropies[t] > rule.threshold
        or (rule.max_length is not None and length >= rule.max_length)
        or (rule.row_boundary and t % rule.grid_width == 0)
    )


@torch.no_grad()
def literal(
    model: DPAR | LlamaGen,
    entropy_model: LlamaGen | None,
    *,
    labels: Int[Tensor, " B"],
    seeds: Int[Tensor, " B"],
    rule: PatchRule | None,
    settings: DrawSettings,
    prefix: Int[Tensor, "B N"] | None = None,
) -> Iterator[Step]:
    """The steps of drawing a batch, as `dpar.sampling.sampler.sample` takes them; the arguments are its own."""
    batch, config = len(labels), model.config
    null = torch.full_like(labels, model.null_label)
    branches = {"class": labels, "null": null}
    networks = {name: LiteralDPAR(model, label) for name, label in branches.items()} if isinstance(model, DPAR) else {}
    tokens = labels.new_empty(batch, 0)
    entropies: list[list[float]] = [[] for _ in range(batch)]
    starts: list[list[bool]] = [[] for _ in range(batch)]

    def logits_of(branch: str) -> Tensor:
        if isinstance(model, DPAR):
            return networks[branch].logits(tokens, torch.tensor(starts, device=tokens.device))
        return llamagen_logits(model, tokens, branches[branch])

    for t in range(config.tokens):
        entropy = None
        if networks and rule is not None and rule.is_dynamic:
            assert entropy_model is not None
            entropy = literal_entropy(entropy_model, tokens) if t else torch.full(labels.shape, torch.inf)
            for i, of_image in enumerate(entropy.tolist()):
                entropies[i].append(of_image)
        for i in range(batch):
            starts[i].append(rule is None or not networks or opens(entropies[i], starts[i], rule))
        logits = logits_of("class")
        if settings.cfg_scale != 1:
            unconditional = logits_of("null")
            if settings.cfg_interval[0] <= t / config.tokens < settings.cfg_interval[1]:
                logits = unconditional + settings.cfg_scale * (logits - unconditional)
        if prefix is not None and t < prefix.shape[1]:
            now = prefix[:, t]
        else:
            noise = gumbel(seeds, t, t + 1, config.vocab_size)[:, 0]
            now = gumbel_argmax(settings.truncated(logits), noise)
        tokens = torch.cat((tokens, now[:, None]), 1)
        yield Step(entropy, torch.tensor([row[-1] for row in starts]), logits, now)
