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

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dpar.config import Patchify
from dpar.device import sent
from dpar.errors import InputError
from dpar.model.dpar import DPAR
from dpar.model.layers import at_least_float32
from dpar.model.llamagen import LlamaGen
from dpar.model.rope import zero_rope
from dpar.patchify import opens_patch, static_starts
from dpar.sampling import steps
from dpar.sampling.cache import RaggedCache, TokenCache
from dpar.sampling.guidance import CHOICES, branch_labels, drawn, guidance_scales, guided, guided_tokens, truncated
from dpar.sampling.noise import gumbel

# Numbers of noise that are made together: enough to make the calls cheap, 8 MiB an array.
NOISE_AT_ONCE = 2**20

Run = Callable[[Callable[..., Any], int], Callable[..., Any]]  # a function of `steps`, a position -> what is called


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

    def __init__(self, model: LlamaGen, labels: Int[Tensor, " R"], run: Run):
        """Args:
        labels: of the class token, one a row; only their number counts for an unconditional model.
        run: see `sample`.
        """
        self.run = run
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
        return self._next(steps.token_logits, position, previous)

    def entropy(self, position: int, previous: Int[Tensor, " B"] | None) -> Float[Tensor, " R"]:
        """e_t in nats, as `logits`."""
        return self._next(steps.token_entropy, position, previous)

    def _next(self, step: Callable[..., Tensor], position: int, previous: Int[Tensor, " B"] | None) -> Tensor:
        if previous is None:
            x = self.model.cls_embedding(self.labels)
        else:
            x = self.model.tok_embeddings(torch.cat([previous] * (len(self.labels) // len(previous))))
        place = position - self.first
        at = self.cache.append(place)
        return self.run(step, place)(self.model, x, self.rope[place : place + 1], self.cache.entries, at)


class FixedClock:
    """Patches begin at the same tokens in all images: the static strategy, or every token."""

    def __init__(self, starts: Bool[Tensor, "B T"]):
        self.starts = starts

    def tick(self, position: int, previous: Int[Tensor, " B"] | None) -> tuple[None, Bool[Tensor, " B"]]:
        """No entropy, and whether x_t opens a patch."""
        return None, self.starts[:, position]


class EntropyClock:
    """Patches begin where the entropy model is uncertain (Algorithm 3), with the settings of `patchify`."""

    def __init__(self, model: LlamaGen, patchify: Patchify, threshold: float, labels: Int[Tensor, " B"], run: Run):
        conditional = model.config.num_classes is not None
        self.stream = TokenStream(model, torch.full_like(labels, model.null_label) if conditional else labels, run)
        self.rule = {
            "threshold": threshold,
            "max_length": patchify.max_length,
            "grid_width": model.config.grid[1],
            "row_boundary": patchify.row_boundary,
        }
        self.length = torch.zeros_like(labels)

    def tick(self, position: int, previous: Int[Tensor, " B"] | None) -> tuple[Float[Tensor, " B"], Bool[Tensor, " B"]]:
        """e_t in nats, and whether x_t opens a patch, given x_{t-1}."""
        entropy = self.stream.entropy(position, previous) if position >= self.stream.first else None
        if position == 0 or entropy is None:
            dtype = at_least_float32(self.stream.model.output.weight.dtype)
            entropy = torch.full(self.length.shape, torch.inf, dtype=dtype, device=self.length.device)
        opens = opens_patch(entropy, self.length, position, **self.rule)
        self.length = torch.where(opens, 1, self.length + 1)
        return entropy, opens


class PatchStream:
    """A DPAR that reads one token a step and a patch when it closes."""

    def __init__(self, model: DPAR, batch: int, labels: Int[Tensor, " R"], run: Run):
        """Args:
        batch: images.
        labels: of the guidance branches of all images, one branch after the other.
        run: see `sample`.
        """
        self.run = run
        config, like = model.config, model.tok_embeddings.weight
        rows, length, heads = len(labels), config.tokens, config.heads
        self.model, self.labels = model, labels
        encoder_layers, decoder_layers = len(model.encoder.layers), len(model.decoder.layers)
        self.rope = model.rope()
        # rotations of patches of one token each; those of longer patches take from the last token what depends on it
        cells = torch.arange(length, device=like.device)
        self.patch_rope = model.patch_rope(cells, cells)
        self.by_last = (model.patch_rope(cells[:1], cells[1:2]) != self.patch_rope[:1]).any(-1).view(-1, 1)
        self.encoder_cache = TokenCache(encoder_layers, batch, length - 1, heads, like)
        self.patch_cache = RaggedCache(len(model.patch_transformer.layers), rows, length, heads, like)
        self.decoder_cache = TokenCache(decoder_layers, rows, length, heads, like)
        # states of the tokens after each encoder layer, and what each decoder layer adds to the tokens of a patch
        self.states = like.new_empty(encoder_layers, batch, length - 1, config.width)
        self.added = [like.new_empty(rows, config.width) for _ in range(decoder_layers)]
        self.first = np.zeros(batch, dtype=np.int64)
        self.offsets = np.arange(0, rows, batch)[:, None]  # of the branches

    def keep(self, rows: int) -> None:
        """Goes on with the first `rows` rows alone."""
        self.labels, self.offsets = self.labels[:rows], self.offsets[self.offsets[:, 0] < rows]
        self.added = [some[:rows] for some in self.added]
        self.patch_cache.keep(rows)
        self.decoder_cache.keep(rows)

    def logits(
        self, position: int, previous: Int[Tensor, " B"] | None, opens: Bool[Tensor, " B"]
    ) -> Float[Tensor, "R V"]:
        """Logits of x_t in every branch, given x_{t-1} and whether x_t opens a patch (Algorithm 2, lines 7-13)."""
        model, rope = self.model, self.rope[position : position + 1]
        if previous is None:
            x = model.start.expand(len(opens), -1)
        else:
            at = self.encoder_cache.append(position - 1)
            x = model.tok_embeddings(previous)
            new = self.run(steps.encoded, position - 1)(model, x, rope, self.encoder_cache.entries, at)
            for states, some in zip(self.states, new, strict=True):
                states[:, position - 1] = some
            x = new[-1]
        opening = opens.cpu().numpy().nonzero()[0]
        if len(opening):
            self._open(position, opening)
        x, at = torch.cat([x] * len(self.offsets)), self.decoder_cache.append(position)
        return self.run(steps.decoded, position)(model, x, self.added, rope, self.decoder_cache.entries, at)

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
            states = [some.flatten(0, 1).index_select(0, tokens) for some in self.states]
            x = torch.cat([self.run(steps.closed, position)(model, states, ids, len(images))] * branches)
            rope = torch.where(self.by_last, self.patch_rope[position - 1], self.patch_rope.index_select(0, first))
        at = self.patch_cache.append(rows)
        # compiled code is for one piece
        opened = self.run(steps.opened, position) if len(at.pieces) < 2 else steps.opened
        for added, some in zip(self.added, opened(model, x, rope, self.patch_cache.entries, at), strict=True):
            added.index_copy_(0, index, some)


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
    compile: bool = False,  # as PyTorch and the settings call it
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
        compile: whether the steps run in compiled code, for which the first batch waits. Logits round differently, so
            that an image may turn out another where two codes are nearly tied.
        observe: is handed each step; for what the result does not hold.

    Raises:
        InputError: a label, prefix or guidance scale is out of range, the two models do not fit each other, or nothing
            can be compiled here.
    """
    choice = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    _check(model, entropy_model, labels, patchify, cfg_scale, cfg_interval, choice, prefix)
    compilers = steps.compiling(labels.device) if compile else nullcontext()

    def run(step: Callable[..., Any], position: int) -> Callable[..., Any]:
        """`step` or compiled code; not at positions 0 and 1, which would be compiled by themselves."""
        return steps.compiled(step) if compile and position > 1 else step

    tokens: list[Tensor] = []
    starts: list[Tensor] = []
    entropies: list[Tensor] = []
    with torch.inference_mode(), compilers:
        batch, scales = len(labels), guidance_scales(model.config.tokens, cfg_scale, cfg_interval)
        branches = branch_labels(labels, model.null_label, scales)
        clock = _clock(model, entropy_model, labels, patchify, threshold, run)
        both = guided_tokens(scales)
        stream = (
            PatchStream(model, batch, branches, run) if isinstance(model, DPAR) else TokenStream(model, branches, run)
        )
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
    run: Run,
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
    return EntropyClock(entropy_model, patchify, threshold, labels, run)


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
