"""Images drawn token by token (Algorithm 2), every position computed once and every image with patches of its own.

All rows of a batch are at the same token; their patches begin independently. Each step reads the token drawn last:
the entropy model and the encoder run once per image, the decoder once per guidance branch. The patch transformer runs
only for the images that open a patch at this token; both branches of an image share its patches.

Why in lock-step: every image has T tokens, so all images of a batch end together and the batch is full by construction.
Continuous batching, which replaces sequences that end early, has nothing to replace; what it could offer is to let
images wait for each other at patch boundaries, so that calls of the patch transformer are fewer and larger. Those of
everything else then become more and smaller. Simulated over real boundaries, no share to wait for was more than 4 %
faster than lock-step, and most were slower (docs/decisions.md).

Why image i is the same in every batch: its noise belongs to its seed, the position and the code, and nothing mixes
rows. Products of matrices may round differently in another batch, so logits agree to rounding, not to the bit; the
largest of logits plus noise then changes with about the probability of the rounding. In float64 no image changes.

On CUDA `dpar.sampling.captured` draws instead, whatever the settings: the same steps on tensors at fixed addresses.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dpar.device import to_device
from dpar.errors import InputError
from dpar.model.dpar import DPAR
from dpar.model.layers import at_least_float32
from dpar.model.llamagen import LlamaGen
from dpar.model.rope import zero_rope
from dpar.patches.rule import PatchRule, static_starts
from dpar.sampling import steps
from dpar.sampling.cache import RaggedCache, TokenCache
from dpar.sampling.captured import GraphStore, sample_static
from dpar.sampling.guidance import DrawSettings, branch_labels, guidance_scales, guided, guided_tokens, gumbel_argmax
from dpar.sampling.noise import gumbel
from dpar.sampling.result import SampleResult, Step

# Numbers of noise that are made together: enough to make the calls cheap, 8 MiB an array.
NOISE_AT_ONCE = 2**20

Run = Callable[
    [Callable[..., Any], int], Callable[..., Any]
]  # a function of `steps`, a position -> the function to call


class TokenStream:
    """A LlamaGen that reads one position per step: the baseline's logits, or the entropy model's."""

    def __init__(self, model: LlamaGen, labels: Int[Tensor, " R"], run: Run):
        """Args:
        labels: of the class token, one per row; only their number counts for an unconditional model.
        run: see `sample`.
        """
        self.run = run
        self.model = model
        self.labels = labels
        self.first = 0 if model.config.num_classes is not None else 1  # the token that can be predicted first
        self.rope = model.rope()
        self.cache = TokenCache(len(model.layers), len(labels), len(self.rope), model.config.heads, model.output.weight)

    def truncate_batch(self, rows: int) -> None:
        """Keeps only the first `rows` rows."""
        self.labels = self.labels[:rows]
        self.cache.truncate_batch(rows)

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


class FixedBoundaries:
    """Patches that begin at the same tokens in all images: the static strategy, or every token."""

    def __init__(self, starts: Bool[Tensor, "B T"]):
        self.starts = starts

    def at(self, position: int, previous: Int[Tensor, " B"] | None) -> tuple[None, Bool[Tensor, " B"]]:
        """No entropy, and whether x_t opens a patch."""
        return None, self.starts[:, position]


class EntropyBoundaries:
    """Patches that begin where the entropy exceeds E_Th (Algorithm 3), in each image independently."""

    def __init__(self, model: LlamaGen, rule: PatchRule, labels: Int[Tensor, " B"], run: Run):
        conditional = model.config.num_classes is not None
        self.stream = TokenStream(model, torch.full_like(labels, model.null_label) if conditional else labels, run)
        self.rule = rule
        self.length = torch.zeros_like(labels)

    def at(self, position: int, previous: Int[Tensor, " B"] | None) -> tuple[Float[Tensor, " B"], Bool[Tensor, " B"]]:
        """e_t in nats, and whether x_t opens a patch, given x_{t-1}."""
        entropy = self.stream.entropy(position, previous) if position >= self.stream.first else None
        if position == 0 or entropy is None:
            dtype = at_least_float32(self.stream.model.output.weight.dtype)
            entropy = torch.full(self.length.shape, torch.inf, dtype=dtype, device=self.length.device)
        opens = self.rule.opens(entropy, self.length, position)
        self.length = torch.where(opens, 1, self.length + 1)
        return entropy, opens


class PatchStream:
    """A DPAR that reads one token per step and one patch whenever it closes."""

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

    def truncate_batch(self, rows: int) -> None:
        """Keeps only the first `rows` rows."""
        self.labels, self.offsets = self.labels[:rows], self.offsets[self.offsets[:, 0] < rows]
        self.added = [some[:rows] for some in self.added]
        self.patch_cache.truncate_batch(rows)
        self.decoder_cache.truncate_batch(rows)

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
            new = self.run(steps.encoder_step, position - 1)(model, x, rope, self.encoder_cache.entries, at)
            for states, some in zip(self.states, new, strict=True):
                states[:, position - 1] = some
            x = new[-1]
        opening = opens.cpu().numpy().nonzero()[0]
        if len(opening):
            self._open(position, opening)
        x, at = torch.cat([x] * len(self.offsets)), self.decoder_cache.append(position)
        return self.run(steps.decoder_step, position)(model, x, self.added, rope, self.decoder_cache.entries, at)

    def _open(self, position: int, images: Int[np.ndarray, " n"]) -> None:
        """Closes the patches that end before `position`, and runs the patch transformer for the ones that begin."""
        model, branches = self.model, len(self.offsets)
        first, rows = self.first[images], (self.offsets + images).ravel()
        sizes = position - first  # tokens of the patches that end
        behind = sizes.cumsum() - sizes
        ids = np.repeat(np.arange(len(images)), sizes)
        tokens = images[ids] * self.states.shape[2] + np.arange(len(ids)) + (first - behind)[ids]
        self.first[images] = position
        lists = rows, np.tile(first, branches), tokens, ids
        index, first, tokens, ids = to_device(torch.from_numpy(np.concatenate(lists)), self.states.device).split(
            [len(numbers) for numbers in lists]
        )
        if position == 0:
            x = model.cls_embedding(self.labels)
            rope = zero_rope(len(x), model.config.head_dim, device=x.device, dtype=self.rope.dtype)
        else:
            states = [some.flatten(0, 1).index_select(0, tokens) for some in self.states]
            x = torch.cat([self.run(steps.pool_patches, position)(model, states, ids, len(images))] * branches)
            rope = torch.where(self.by_last, self.patch_rope[position - 1], self.patch_rope.index_select(0, first))
        at = self.patch_cache.append(rows)
        # compiled code is for one piece
        step = self.run(steps.patch_transformer_step, position) if len(at.pieces) < 2 else steps.patch_transformer_step
        for added, some in zip(self.added, step(model, x, rope, self.patch_cache.entries, at), strict=True):
            added.index_copy_(0, index, some)


class GuidedStream:
    """A model that reads one token per step in the branches of guidance, and gives the guided logits of the next."""

    def __init__(self, model: DPAR | LlamaGen, labels: Int[Tensor, " B"], settings: DrawSettings, run: Run):
        self.batch = len(labels)
        self.scales = guidance_scales(model.config.tokens, settings.cfg_scale, settings.cfg_interval)
        branches = branch_labels(labels, model.null_label, self.scales)
        self.stream = (
            PatchStream(model, self.batch, branches, run)
            if isinstance(model, DPAR)
            else TokenStream(model, branches, run)
        )
        self.single_from = guided_tokens(self.scales) if len(branches) > self.batch else None

    def logits(
        self, position: int, previous: Int[Tensor, " B"] | None, opens: Bool[Tensor, " B"]
    ) -> Float[Tensor, "B V"]:
        """Logits of x_t, given x_{t-1} and whether x_t opens a patch."""
        if position == self.single_from:
            self.stream.truncate_batch(self.batch)
        return guided(self.stream.logits(position, previous, opens), self.batch, self.scales[position])


def by_static_parts(device: torch.device) -> bool:
    """Whether `dpar.sampling.captured` draws there: everything on CUDA, nothing elsewhere."""
    return device.type == "cuda"


def sample(
    model: DPAR | LlamaGen,
    entropy_model: LlamaGen | None,
    *,
    labels: Int[Tensor, " B"],
    seeds: Int[Tensor, " B"],
    rule: PatchRule | None,
    settings: DrawSettings,
    prefix: Int[Tensor, "B N"] | None = None,
    observe: Callable[[Step], object] | None = None,
    store: GraphStore | None = None,
) -> SampleResult:
    """A drawn image for each label (Algorithm 2). Image i depends on `labels[i]` and `seeds[i]`, not on the others.

    Args:
        model: in eval mode, class-conditional. A LlamaGen has no patches: `entropy_model` and `rule` are not looked at.
        entropy_model: in eval mode; one with classes is asked through its null class. None for static patches.
        labels: classes.
        seeds: 64-bit numbers.
        rule: where patches begin; may differ from the rule of training.
        settings: guidance, and how codes are drawn.
        prefix: the first N tokens of each image, which are kept; the rest continues them, exactly as the model would
            have after drawing them.
        observe: called with each step; for values that the result does not hold.
        store: for a GPU: where CUDA graphs are kept for the next batches of this size. None: nothing is captured.

    Raises:
        InputError: a label or the prefix is out of range, the two models do not fit each other, or nothing can be
            compiled here.
    """
    _check(model, entropy_model, labels, rule, prefix)
    with steps.compiling(labels.device) if settings.compile else nullcontext():
        if not by_static_parts(labels.device):
            return _sample_eagerly(model, entropy_model, labels, seeds, rule, settings, prefix, observe)
        return sample_static(
            model,
            entropy_model,
            labels=labels,
            seeds=seeds,
            rule=rule,
            settings=settings,
            prefix=prefix,
            observe=observe,
            store=store,
        )


def _sample_eagerly(
    model: DPAR | LlamaGen,
    entropy_model: LlamaGen | None,
    labels: Int[Tensor, " B"],
    seeds: Int[Tensor, " B"],
    rule: PatchRule | None,
    settings: DrawSettings,
    prefix: Int[Tensor, "B N"] | None,
    observe: Callable[[Step], object] | None,
) -> SampleResult:
    """The images, with caches that grow with what was drawn."""

    def run(step: Callable[..., Any], position: int) -> Callable[..., Any]:
        """`step` or compiled code; not at positions 0 and 1, which would be compiled by themselves."""
        return steps.compiled(step) if settings.compile and position > 1 else step

    tokens: list[Tensor] = []
    starts: list[Tensor] = []
    entropies: list[Tensor] = []
    with torch.inference_mode():
        boundaries = _boundaries(model, entropy_model, labels, rule, run)
        stream = GuidedStream(model, labels, settings, run)
        given = 0 if prefix is None else prefix.shape[1]
        noise = _noise(seeds, given, model.config.tokens, model.config.vocab_size)
        for position in range(model.config.tokens):
            previous = tokens[-1] if tokens else None
            entropy, opens = boundaries.at(position, previous)
            logits = stream.logits(position, previous, opens)
            if prefix is not None and position < given:
                tokens.append(prefix[:, position])
            else:
                tokens.append(gumbel_argmax(settings.truncated(logits), next(noise)))
            starts.append(opens)
            if entropy is not None:
                entropies.append(entropy)
            if observe is not None:
                observe(Step(entropy, opens, logits, tokens[-1]))
    # stacked outside of inference mode, so that the result may take part in computations with gradients
    return SampleResult(
        torch.stack(tokens, 1),
        to_device(torch.stack(starts, 1), labels.device),  # those of static patches are on the host
        torch.stack(entropies, 1) if entropies else None,
    )


def _noise(seeds: Int[Tensor, " B"], start: int, stop: int, vocab_size: int) -> Iterator[Float[Tensor, "B V"]]:
    """The noise of each position in turn, made for many positions at once."""
    at_once = max(1, NOISE_AT_ONCE // (len(seeds) * vocab_size))
    for first in range(start, stop, at_once):
        yield from gumbel(seeds, first, min(first + at_once, stop), vocab_size).unbind(1)


def _boundaries(
    model: DPAR | LlamaGen,
    entropy_model: LlamaGen | None,
    labels: Int[Tensor, " B"],
    rule: PatchRule | None,
    run: Run,
) -> FixedBoundaries | EntropyBoundaries:
    batch, length = len(labels), model.config.tokens
    if isinstance(model, LlamaGen):
        return FixedBoundaries(torch.ones(batch, length, dtype=torch.bool, device=labels.device))
    assert rule is not None, "a model with patches needs to know where they begin"
    if rule.static_length is not None:
        return FixedBoundaries(static_starts(batch, length, rule.static_length))
    assert entropy_model is not None
    return EntropyBoundaries(entropy_model, rule, labels, run)


def _check(
    model: DPAR | LlamaGen,
    entropy_model: LlamaGen | None,
    labels: Int[Tensor, " B"],
    rule: PatchRule | None,
    prefix: Int[Tensor, "B N"] | None,
) -> None:
    config = model.config
    if not len(labels):
        raise InputError("there are no labels; give the class of each image to draw")
    if config.num_classes is None:
        raise InputError("the model has no classes: it can place patches, but not draw images; give another model")
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
    if isinstance(model, DPAR) and rule is not None and rule.is_dynamic:
        if entropy_model is None:
            raise InputError("dynamic patches begin where the entropy model is uncertain: give the entropy model")
        for name in ("grid", "vocab_size"):
            found, expected = getattr(entropy_model.config, name), getattr(config, name)
            if found != expected:
                raise InputError(
                    f"the entropy model's {name} is {found}, the model's is {expected}: they were trained on different "
                    "tokens; give the entropy model that placed the model's patches"
                )
