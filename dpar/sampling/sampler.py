"""Images drawn token by token (Algorithm 2), every position computed once and every image on its own patch clock.

All rows of a batch stand at the same token; their patches begin where they will. Each step reads the token drawn last:
the entropy model and the encoder once an image, the decoder once a guidance branch. The patch transformer runs at once,
and only for the images whose clock fires; both branches of an image share that clock.

Why in lock-step: every image has T tokens, so all images of a batch end together and the batch is full by construction.
Continuous batching, which replaces sequences that end early, has nothing to replace; what it could offer is to let
images wait for each other at patch boundaries, so that calls of the patch transformer are fewer and larger. Those of
everything else then become more and smaller. `dpar.sampling.schedule` simulates it over real boundaries: no share to
wait for is more than 4 % faster than lock-step, and most are slower (docs/benchmarks.md).

Why image i is the same in every batch: its noise belongs to its seed, the position and the code, and nothing mixes
rows. Products of matrices may round differently in another batch, so logits agree to rounding, not to the bit; the
largest of logits plus noise then changes with about the probability of the rounding. In float64 no image changes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dpar.config import Patchify
from dpar.device import sent
from dpar.entropy import said_entropy
from dpar.errors import InputError
from dpar.model.dpar import DPAR
from dpar.model.layers import at_least_float32
from dpar.model.llamagen import LlamaGen
from dpar.model.patch_decoder import PatchDecoderLayer
from dpar.model.patch_encoder import PatchEncoderLayer
from dpar.model.rope import zero_rope
from dpar.patchify import opens_patch, static_starts
from dpar.sampling.cache import RaggedCache, TokenCache
from dpar.sampling.guidance import CHOICES, branch_labels, drawn, guidance_scales, guided, guided_tokens, truncated
from dpar.sampling.noise import gumbel

# Numbers of noise that are made together: enough to make the calls cheap, 8 MiB an array.
NOISE_AT_ONCE = 2**20


class Step(NamedTuple):
    """One token of every image of a batch."""

    entropy: Float[Tensor, " B"] | None  # e_t in nats; None where nothing asks for it
    opens: Bool[Tensor, " B"]  # whether x_t begins a patch
    logits: Float[Tensor, "B V"]  # after guidance, before temperature and truncation
    tokens: Int[Tensor, " B"]  # x_t


class SampleResult(NamedTuple):
    """A batch of drawn images, and where their patches began (every token, for a model without patches)."""

    tokens: Int[Tensor, "B T"]
    starts: Bool[Tensor, "B T"]
    entropy: Float[Tensor, "B T"] | None


class TokenStream:
    """A LlamaGen that reads one position a step: the baseline's logits, or the entropy model's."""

    def __init__(self, model: LlamaGen, labels: Int[Tensor, " R"]):
        """Args:
        labels: of the class token, one a row; only their number counts for an unconditional model.
        """
        self.model = model
        self.labels = labels
        self.first = 0 if model.config.num_classes is not None else 1  # the token that can be predicted first
        self.rope = model.rope()
        self.cache = TokenCache(len(model.layers), len(labels), len(self.rope), model.config.heads, model.output.weight)

    def keep(self, rows: int) -> None:
        """Goes on with the first `rows` rows alone."""
        self.labels = self.labels[:rows]
        self.cache.keep(rows)

    def logits(self, position: int, previous: Int[Tensor, " B"] | None, opens: object = None) -> Float[Tensor, "R V"]:
        """Logits of x_t in every branch from the class and x_<t, of which x_{t-1} is `previous`; t >= `first`."""
        if previous is None:
            x = self.model.cls_embedding(self.labels)
        else:
            x = self.model.tok_embeddings(torch.cat([previous] * (len(self.labels) // len(previous))))
        place = position - self.first
        x, rope = x[:, None], self.rope[place : place + 1]
        for i, layer in enumerate(self.model.layers):
            x = layer(x, rope, self.cache.attend(i, place))
        return self.model.output(self.model.norm(x))[:, 0]


class FixedClock:
    """Patches begin at the same tokens in all images: the static strategy, or every token."""

    def __init__(self, starts: Bool[Tensor, "B T"]):
        self.starts = starts

    def tick(self, position: int, previous: Int[Tensor, " B"] | None) -> tuple[None, Bool[Tensor, " B"]]:
        """No entropy, and whether x_t opens a patch."""
        return None, self.starts[:, position]


class EntropyClock:
    """Patches begin where the entropy model is uncertain (Algorithm 3), with the settings of `patchify`."""

    def __init__(self, model: LlamaGen, patchify: Patchify, threshold: float, labels: Int[Tensor, " B"]):
        conditional = model.config.num_classes is not None
        self.stream = TokenStream(model, torch.full_like(labels, model.null_label) if conditional else labels)
        self.rule = {
            "threshold": threshold,
            "max_length": patchify.max_length,
            "grid_width": model.config.grid[1],
            "row_boundary": patchify.row_boundary,
        }
        self.length = torch.zeros_like(labels)

    def tick(self, position: int, previous: Int[Tensor, " B"] | None) -> tuple[Float[Tensor, " B"], Bool[Tensor, " B"]]:
        """e_t in nats, and whether x_t opens a patch, given x_{t-1}."""
        logits = self.stream.logits(position, previous) if position >= self.stream.first else None
        if position == 0 or logits is None:
            dtype = at_least_float32(self.stream.model.output.weight.dtype)
            entropy = torch.full(self.length.shape, torch.inf, dtype=dtype, device=self.length.device)
        else:
            entropy = said_entropy(self.stream.model, logits)
        opens = opens_patch(entropy, self.length, position, **self.rule)
        self.length = torch.where(opens, 1, self.length + 1)
        return entropy, opens


class PatchStream:
    """A DPAR that reads one token a step and a patch when it closes."""

    def __init__(self, model: DPAR, batch: int, labels: Int[Tensor, " R"]):
        """Args:
        batch: images.
        labels: of the guidance branches of all images, one branch after the other.
        """
        config, like = model.config, model.tok_embeddings.weight
        rows, length, heads = len(labels), config.tokens, config.heads
        self.model, self.labels = model, labels
        self.encoder = cast(Sequence[PatchEncoderLayer], model.encoder.layers)
        self.decoder = cast(Sequence[PatchDecoderLayer], model.decoder.layers)
        self.rope = model.rope()
        # rotations of patches of one token each; those of longer patches take from the last token what depends on it
        cells = torch.arange(length, device=like.device)
        self.patch_rope = model.patch_rope(cells, cells)
        self.by_last = (model.patch_rope(cells[:1], cells[1:2]) != self.patch_rope[:1]).any(-1).view(-1, 1)
        self.encoder_cache = TokenCache(len(self.encoder), batch, length - 1, heads, like)
        self.patch_cache = RaggedCache(len(model.patch_transformer.layers), rows, length, heads, like)
        self.decoder_cache = TokenCache(len(self.decoder), rows, length, heads, like)
        # states of the tokens after each encoder layer, and what each decoder layer adds to the tokens of a patch
        self.states = like.new_empty(len(self.encoder), batch, length - 1, config.width)
        self.copied = like.new_empty(len(self.decoder), rows, 1, config.width)
        self.first = np.zeros(batch, dtype=np.int64)
        self.offsets = np.arange(0, rows, batch)[:, None]  # of the branches

    def keep(self, rows: int) -> None:
        """Goes on with the first `rows` rows alone."""
        self.labels, self.offsets = self.labels[:rows], self.offsets[self.offsets[:, 0] < rows]
        self.copied = self.copied[:, :rows]
        self.patch_cache.keep(rows)
        self.decoder_cache.keep(rows)

    def logits(
        self, position: int, previous: Int[Tensor, " B"] | None, opens: Bool[Tensor, " B"]
    ) -> Float[Tensor, "R V"]:
        """Logits of x_t in every branch, given x_{t-1} and whether x_t opens a patch (Algorithm 2, lines 7-13)."""
        model, rope = self.model, self.rope[position : position + 1]
        if previous is None:
            x = model.start.expand(len(opens), 1, -1)
        else:
            x = model.tok_embeddings(previous)[:, None]
            for i, layer in enumerate(self.encoder):
                x = layer.block(x, rope, self.encoder_cache.attend(i, position - 1))
                self.states[i, :, position - 1] = x[:, 0]
        opening = opens.cpu().numpy().nonzero()[0]
        if len(opening):
            self._open(position, self.patch_cache.order(opening))
        x = torch.cat([x] * len(self.offsets))
        for i, layer in enumerate(self.decoder):
            x = layer.block(x + self.copied[i], rope, self.decoder_cache.attend(i, position))
        return model.decoder.output(model.decoder.norm(x))[:, 0]

    def _open(self, position: int, images: Int[np.ndarray, " n"]) -> None:
        """Closes the patches that end before `position`, and asks the patch transformer about the ones that begin."""
        model, branches = self.model, len(self.offsets)
        first, rows = self.first[images], (self.offsets + images).ravel()
        sizes = position - first  # tokens of the patches that end
        behind = sizes.cumsum() - sizes
        ids = np.repeat(np.arange(len(images)), sizes)
        tokens = images[ids] * self.states.shape[2] + np.arange(len(ids)) + (first - behind)[ids]
        self.first[images] = position
        lists = rows, np.tile(first, branches), tokens, ids
        index, first, tokens, ids = sent(torch.from_numpy(np.concatenate(lists)), self.states.device).split(
            [len(numbers) for numbers in lists]
        )
        if position == 0:
            x = model.cls_embedding(self.labels)
            rope = zero_rope(len(x), model.config.head_dim, device=x.device, dtype=self.rope.dtype)
        else:
            x = torch.cat([self._closed(tokens, ids, len(images))] * branches)
            rope = torch.where(self.by_last, self.patch_rope[position - 1], self.patch_rope.index_select(0, first))
        attend = self.patch_cache.append(rows)
        x, rope = x[:, None], rope[:, None]
        for i, layer in enumerate(model.patch_transformer.layers):
            x = layer(x, rope, attend(i))
        for i, layer in enumerate(self.decoder):
            self.copied[i].index_copy_(0, index, layer.projection(layer.norm(x)))

    def _closed(self, tokens: Int[Tensor, " N"], ids: Int[Tensor, " N"], count: int) -> Float[Tensor, "count D"]:
        """States of the patches of which `tokens`, counted through all images, are members `ids` (Eq. 5)."""
        patches = None
        for layer, states in zip(self.encoder, self.states, strict=True):
            patches = layer.gather(states.flatten(0, 1).index_select(0, tokens), patches, ids, count)
        assert patches is not None
        return patches


def sample(
    model: DPAR | LlamaGen,
    entropy_model: LlamaGen | None,
    *,
    labels: Int[Tensor, " B"],
    seeds: Int[Tensor, " B"],
    patchify: Patchify | None,
    threshold: float | None,
    cfg_scale: float,
    cfg_interval: tuple[float, float] = (0.0, 1.0),
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    prefix: Int[Tensor, "B N"] | None = None,
    observe: Callable[[Step], object] | None = None,
) -> SampleResult:
    """A drawn image for each label (Algorithm 2). Image i depends on `labels[i]` and `seeds[i]`, not on the others.

    Args:
        model: in eval mode, class-conditional. A LlamaGen has no patches: `entropy_model`, `patchify` and `threshold`
            are not looked at.
        entropy_model: in eval mode; one with classes is asked through its null class. None for static patches.
        labels: classes.
        seeds: 64-bit numbers.
        patchify: where patches begin; may differ from the rule of training.
        threshold: E_Th in nats; None for static patches.
        cfg_scale: s in u + s (c - u); 1 runs the class alone, 0 the null class alone, else both are run.
        cfg_interval: the shares of the sequence between which `cfg_scale` holds: x_t is guided iff t / T lies from the
            first to below the second. Outside, the class alone decides; after it the null class is no longer run.
        temperature: divides the logits.
        top_k: largest logits to draw from; 0 = all.
        top_p: least probability to draw from, largest codes first; 1 = all.
        prefix: the first N tokens of each image, which are kept; the rest continues them, exactly as the model would
            have after drawing them.
        observe: is handed each step; for what the result does not hold.

    Raises:
        InputError: a label, prefix or guidance scale is out of range, or the two models do not fit each other.
    """
    choice = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    _check(model, entropy_model, labels, patchify, cfg_scale, cfg_interval, choice, prefix)
    tokens: list[Tensor] = []
    starts: list[Tensor] = []
    entropies: list[Tensor] = []
    with torch.inference_mode():
        batch, scales = len(labels), guidance_scales(model.config.tokens, cfg_scale, cfg_interval)
        branches = branch_labels(labels, model.null_label, scales)
        clock = _clock(model, entropy_model, labels, patchify, threshold)
        both = guided_tokens(scales)
        stream = _stream(model, batch, branches)
        given = 0 if prefix is None else prefix.shape[1]
        noise = _noise(seeds, given, model.config.tokens, model.config.vocab_size)
        for position in range(model.config.tokens):
            previous = tokens[-1] if tokens else None
            entropy, opens = clock.tick(position, previous)
            if position == both and len(branches) > batch:
                stream.keep(batch)
            logits = guided(stream.logits(position, previous, opens), batch, scales[position])
            if prefix is not None and position < given:
                tokens.append(prefix[:, position])
            else:
                tokens.append(drawn(truncated(logits, **choice), next(noise)))
            starts.append(opens)
            if entropy is not None:
                entropies.append(entropy)
            if observe is not None:
                observe(Step(entropy, opens, logits, tokens[-1]))
    # stacked outside of inference mode, so that the result may take part in computations with gradients
    return SampleResult(
        torch.stack(tokens, 1), torch.stack(starts, 1), torch.stack(entropies, 1) if entropies else None
    )


def _stream(model: DPAR | LlamaGen, batch: int, branches: Int[Tensor, " R"]) -> PatchStream | TokenStream:
    return PatchStream(model, batch, branches) if isinstance(model, DPAR) else TokenStream(model, branches)


def _noise(seeds: Int[Tensor, " B"], start: int, stop: int, vocab_size: int) -> Iterator[Float[Tensor, "B V"]]:
    """The noise of each position in turn, made for many positions at once."""
    at_once = max(1, NOISE_AT_ONCE // (len(seeds) * vocab_size))
    for first in range(start, stop, at_once):
        yield from gumbel(seeds, first, min(first + at_once, stop), vocab_size).unbind(1)


def _clock(
    model: DPAR | LlamaGen,
    entropy_model: LlamaGen | None,
    labels: Int[Tensor, " B"],
    patchify: Patchify | None,
    threshold: float | None,
) -> FixedClock | EntropyClock:
    batch, length = len(labels), model.config.tokens
    if isinstance(model, LlamaGen):
        return FixedClock(torch.ones(batch, length, dtype=torch.bool, device=labels.device))
    assert patchify is not None, "a model with patches needs to know where they begin"
    if not patchify.is_dynamic:
        assert patchify.p_avg is not None
        return FixedClock(static_starts(batch, length, patchify.p_avg))
    assert entropy_model is not None
    assert threshold is not None, "dynamic patches need the threshold in nats"
    return EntropyClock(entropy_model, patchify, threshold, labels)


def _check(
    model: DPAR | LlamaGen,
    entropy_model: LlamaGen | None,
    labels: Int[Tensor, " B"],
    patchify: Patchify | None,
    cfg_scale: float,
    cfg_interval: tuple[float, float],
    choice: Mapping[str, float],
    prefix: Int[Tensor, "B N"] | None,
) -> None:
    config = model.config
    if not len(labels):
        raise InputError("there are no labels; give the class of each image to draw")
    if config.num_classes is None:
        raise InputError("the model has no classes: it can place patches, but not draw images; give another model")
    if not 0 <= cfg_scale < float("inf"):
        raise InputError(f"the guidance scale is {cfg_scale}; expected 0 (no class), 1 (no guidance) or more")
    if not 0 <= cfg_interval[0] < cfg_interval[1] <= 1:
        raise InputError(
            f"guidance from {cfg_interval[0]} to {cfg_interval[1]} is no part of the sequence; expected two rising "
            "shares between 0 (its beginning) and 1 (its end)"
        )
    for name, (least, most, expected) in CHOICES.items():
        if not least < choice[name] <= most:
            raise InputError(f"{name} is {choice[name]}; expected {expected}")
    outside = labels[(labels < 0) | (labels >= config.num_classes)]
    if len(outside):
        raise InputError(
            f"label {int(outside[0])} is out of range; the model knows the classes 0 to {config.num_classes - 1}"
        )
    if prefix is not None:
        if len(prefix) != len(labels) or prefix.shape[1] > config.tokens:
            raise InputError(
                f"the prefix has the shape {tuple(prefix.shape)}; expected one row for each of the {len(labels)} "
                f"labels and at most {config.tokens} tokens"
            )
        if prefix.numel() and not 0 <= int(prefix.min()) <= int(prefix.max()) < config.vocab_size:
            raise InputError(f"the prefix has tokens outside of the codebook, 0 to {config.vocab_size - 1}")
    if isinstance(model, DPAR) and patchify is not None and patchify.is_dynamic:
        if entropy_model is None:
            raise InputError("dynamic patches begin where the entropy model is uncertain: give the entropy model")
        for name in ("grid", "vocab_size"):
            found, expected = getattr(entropy_model.config, name), getattr(config, name)
            if found != expected:
                raise InputError(
                    f"the entropy model's {name} is {found}, the model's is {expected}: they were trained on different "
                    "tokens; give the entropy model that placed the model's patches"
                )
