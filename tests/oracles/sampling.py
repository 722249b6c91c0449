"""Algorithm 2 as it is written: for each token, everything before it is computed again."""

import math

import torch

from dpar.config import Patchify
from dpar.entropy import next_token_entropy
from dpar.model.attention import causal_attention
from dpar.model.dpar import DPAR
from dpar.model.llamagen import LlamaGen
from dpar.packing import PatchLayout
from dpar.sampling.guidance import drawn, truncated
from dpar.sampling.noise import gumbel
from dpar.sampling.sampler import Step


def llamagen_logits(model: LlamaGen, tokens, label):
    """Logits of x_t from the class (None for a model without) and the tokens x_<t, (B, t)."""
    x = model.tok_embeddings(tokens)
    if label is not None:
        x = torch.cat((model.cls_embedding(label)[:, None], x), 1)
    rope = model.rope()[: x.shape[1]]
    for layer in model.layers:
        x = layer(x, rope, causal_attention)
    return model.output(model.norm(x[:, -1]))


class LiteralDPAR:
    """DPAR asked for one more token at a time; only the patch transformer's outputs live until a patch opens."""

    def __init__(self, model: DPAR, label):
        self.model, self.label = model, label
        self.outputs = None

    def logits(self, tokens, starts):
        """Logits of x_t from x_<t (B, t) and the patches of x_0 .. x_t, `starts` (B, t + 1) (Algorithm 2, 7-13)."""
        model, length = self.model, tokens.shape[1]
        layout = PatchLayout.from_starts(starts)
        rope = model.rope()[: length + 1]
        shifted = model.start.expand(len(tokens), 1, -1)
        patches = shifted.new_zeros(layout.packed.total, model.config.width)
        if length:
            states, patches = model.encoder(
                model.tok_embeddings(tokens), rope[1:], causal_attention, layout.rows[:, :-1], layout.packed.total
            )
            shifted = torch.cat((shifted, states), 1)
        if starts[:, -1].any():
            self.outputs = model.patch_transformer(
                model.cls_embedding(self.label),
                patches,
                model.patch_rope(layout.first, layout.last),
                layout.packed,
                "sdpa",
            )
        return model.decoder(shifted, self.outputs, layout.rows, rope, causal_attention)[:, -1]


def opens(entropies: list[float], starts: list[bool], patchify: Patchify, threshold: float, width: int) -> bool:
    """Whether x_t opens a patch, given e_0 .. e_t and the starts before it (Algorithm 3, spelled out)."""
    t = len(starts)
    if patchify.strategy == "static":
        return t == 0 or math.floor(t / patchify.p_avg) != math.floor((t - 1) / patchify.p_avg)
    if t <= 1:
        return True
    length = starts[::-1].index(True) + 1
    return (
        entropies[t] > threshold
        or (patchify.max_length is not None and length >= patchify.max_length)
        or (patchify.row_boundary and t % width == 0)
    )


@torch.no_grad()
def literal(
    model,
    entropy_model,
    *,
    labels,
    seeds,
    patchify=None,
    threshold=None,
    cfg_scale=1.0,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    prefix=None,
) -> list[Step]:
    """The steps of drawing a batch; with a batch of one, those of an image by itself."""
    batch, config = len(labels), model.config
    patched = isinstance(model, DPAR)
    null = torch.full_like(labels, model.null_label)
    branches = {"class": labels, "null": null}
    networks = {name: LiteralDPAR(model, label) for name, label in branches.items()} if patched else {}
    tokens = torch.empty(batch, 0, dtype=torch.long)
    entropies = [[] for _ in range(batch)]
    starts = [[] for _ in range(batch)]
    steps = []

    def logits_of(branch):
        if patched:
            return networks[branch].logits(tokens, torch.tensor(starts))
        return llamagen_logits(model, tokens, branches[branch])

    for t in range(config.tokens):
        entropy = None
        if patched and patchify.strategy == "dynamic":
            if t == 0:
                entropy = torch.full((batch,), torch.inf)
            else:
                no_class = entropy_model.config.num_classes is None
                nothing = None if no_class else torch.full_like(labels, entropy_model.null_label)
                entropy = next_token_entropy(llamagen_logits(entropy_model, tokens, nothing))
            for i in range(batch):
                entropies[i].append(entropy[i].item())
        for i in range(batch):
            starts[i].append(not patched or opens(entropies[i], starts[i], patchify, threshold, config.grid[1]))
        if cfg_scale == 1:
            logits = logits_of("class")
        else:
            unconditional = logits_of("null")
            logits = unconditional + cfg_scale * (logits_of("class") - unconditional)
        if prefix is not None and t < prefix.shape[1]:
            now = prefix[:, t]
        else:
            noise = gumbel(seeds, t, t + 1, config.vocab_size)[:, 0]
            now = drawn(truncated(logits, temperature=temperature, top_k=top_k, top_p=top_p), noise)
        tokens = torch.cat((tokens, now[:, None]), 1)
        steps.append(Step(entropy, torch.tensor([row[-1] for row in starts]), logits, now))
    return steps
