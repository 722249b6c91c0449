"""A token of every image in parts that a GPU repeats without the host: all that changes from token to token is in
tensors whose addresses never change.

A DPAR's token has four: `place` (entropy model, and whether the token opens a patch), `encode` (encoder), `open` (patch
transformer for n rows) and `decode` (decoder, guidance, noise, draw); a LlamaGen's has one. What the host
decides is an argument of a part, and a number of a few: each combination is code of its own in a captured graph. The
computations are those of `dpar.sampling.steps`, and of Algorithm 2 by its lines as in `dpar.sampling.sampler`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dpar.experiment.settings import EntropyPrecision
from dpar.model.dpar import DPAR
from dpar.model.entropy import entropy_products
from dpar.model.layers import at_least_float32
from dpar.model.llamagen import LlamaGen
from dpar.model.rope import zero_rope
from dpar.patches.rule import PatchRule, static_starts
from dpar.sampling import steps
from dpar.sampling.fused_noise import fuses_noise, noise_at
from dpar.sampling.guidance import DrawSettings, branch_labels, guidance_scales, guided, guided_tokens, gumbel_argmax
from dpar.sampling.result import SampleResult
from dpar.sampling.static_cache import StaticCache, reads_in_place
from dpar.splitmix import splitmix64

Part = Callable[..., Any]
BUCKETS = 16
"""Numbers of images for which the patch transformer is captured; calls for fewer are padded with scratch rows."""


def bucket(count: int, batch: int) -> int:
    """The least number of images, of `BUCKETS` or fewer up to `batch`, that holds `count`."""
    return next(size for k in range(1, BUCKETS + 1) if (size := -(-batch * k // BUCKETS)) >= count)


class Kernels(NamedTuple):
    """Kernels that not every device has."""

    in_place: bool  # of attention, for the model; see `reads_in_place`
    entropy_in_place: bool  # and for the entropy model
    fused_noise: bool

    @classmethod
    def of(
        cls, model: DPAR | LlamaGen, entropy_model: LlamaGen | None, entropy_precision: EntropyPrecision = "float32"
    ) -> "Kernels":
        """Those that work where the networks are, by trial."""

        def in_place(network: DPAR | LlamaGen, dtype: torch.dtype | None = None) -> bool:
            weight = network.tok_embeddings.weight
            return reads_in_place(weight.device, dtype or weight.dtype, network.config.head_dim)

        entropy_cache = torch.float16 if entropy_precision == "tf32" else None
        fused = fuses_noise(model.tok_embeddings.weight.device)
        return cls(in_place(model), entropy_model is not None and in_place(entropy_model, entropy_cache), fused)


class TokenParts:
    """Common state of both models' parts: the request, the drawn tokens, guidance and the draw."""

    def __init__(self, model: DPAR | LlamaGen, batch: int, settings: DrawSettings, kernels: Kernels):
        config, device = model.config, model.tok_embeddings.weight.device
        self.model, self.batch, self.settings = model, batch, settings
        self.scales = guidance_scales(config.tokens, settings.cfg_scale, settings.cfg_interval)
        self.labels = branch_labels(torch.zeros(batch, dtype=torch.long, device=device), 0, self.scales)
        self.rows, self.branches = len(self.labels), len(self.labels) // batch
        self.guided = guided_tokens(self.scales)
        self.kernels = kernels
        self.rope = model.rope()
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.codes = torch.arange(config.vocab_size, device=device)
        self.noise_keys = torch.zeros_like(self.labels[:batch])
        self.tokens = torch.zeros(batch, config.tokens, dtype=torch.long, device=device)
        self.previous = torch.zeros_like(self.noise_keys)

    def begin(self, labels: Int[Tensor, " B"], seeds: Int[Tensor, " B"], prefix: Int[Tensor, "B N"] | None) -> None:
        """Starts a batch; `prefix` are the first tokens of each image, if they are given."""
        self.labels.copy_(branch_labels(labels, self.model.null_label, self.scales))
        self.noise_keys.copy_(splitmix64(seeds))
        self.position.zero_()
        if prefix is not None:
            self.tokens[:, : prefix.shape[1]] = prefix

    def run(self, step: Part) -> Part:
        """`step` or compiled code."""
        return steps.compiled(step) if self.settings.compile else step

    def cache(self, layers: int, rows: int, length: int) -> StaticCache:
        """The cache of a stack of the model."""
        like, heads = self.model.tok_embeddings.weight, self.model.config.heads
        return StaticCache(layers, rows, length, heads, like, in_place=self.kernels.in_place)

    def noise(self) -> Float[Tensor, "B V"]:
        """The Gumbel noise of the token."""
        counters = self.codes + self.position * len(self.codes)
        return noise_at(self.noise_keys, counters, fused=self.kernels.fused_noise)

    def finish(self, logits: Float[Tensor, "R V"], scale: float, draws: bool) -> Float[Tensor, "B V"]:
        """Guides, draws the token or takes the one that is given, and goes on to the next; the guided logits."""
        logits = guided(logits, self.batch, scale)
        if draws:
            self.previous.copy_(gumbel_argmax(self.settings.truncated(logits), self.noise()))
            self.tokens.index_copy_(1, self.position, self.previous[:, None])
        else:
            self.previous.copy_(self.tokens.index_select(1, self.position)[:, 0])
        self.position.add_(1)
        return logits

    def result(self) -> SampleResult:
        """The drawn batch, after the last token; in tensors that the next batch does not overwrite."""
        return SampleResult(self.tokens.clone(), torch.ones_like(self.tokens, dtype=torch.bool), None)


class LlamaGenParts(TokenParts):
    """A LlamaGen's token."""

    model: LlamaGen

    def __init__(self, model: LlamaGen, batch: int, settings: DrawSettings, kernels: Kernels):
        super().__init__(model, batch, settings, kernels)
        self.token_cache = self.cache(len(model.layers), self.rows, len(self.rope))

    def token(
        self, first: bool, branches: int, scale: float, draws: bool, read_length: int | None
    ) -> Float[Tensor, "B V"]:
        """Guided logits of x_t, which is drawn from them.

        Args:
            first: whether t = 0, which is predicted from the class.
            branches: of guidance that are run.
            scale: of guidance.
            draws: whether x_t is drawn, or given.
            read_length: of the cache.
        """
        rows = branches * self.batch
        x = self.model.cls_embedding(self.labels[:rows]) if first else _embedded(self.model, self.previous, branches)
        slots = self.token_cache.lockstep(self.position, rows, read_length)
        rope = self.rope.index_select(0, self.position)
        logits = self.run(steps.token_logits)(self.model, x, rope, self.token_cache.entries, slots)
        return self.finish(logits, scale, draws)


class DPARParts(TokenParts):
    """A DPAR's token."""

    model: DPAR

    def __init__(
        self,
        model: DPAR,
        entropy_model: LlamaGen | None,
        batch: int,
        rule: PatchRule,
        settings: DrawSettings,
        kernels: Kernels,
    ):
        super().__init__(model, batch, settings, kernels)
        config, like, device = model.config, model.tok_embeddings.weight, self.labels.device
        self.rule, self.longest_patch = rule, rule.longest(config.tokens)
        self.boundaries = None
        if rule.is_dynamic:
            assert entropy_model is not None
            # float16 has the ten bits of mantissa that TF32 keeps, and the kernel that reads in place takes it
            half = kernels.entropy_in_place and settings.entropy_precision == "tf32"
            cached = torch.float16 if half else entropy_model.output.weight.dtype
            self.boundaries = BoundaryState(entropy_model, batch, cached, in_place=kernels.entropy_in_place)
        encoder_layers, decoder_layers = len(model.encoder.layers), len(model.decoder.layers)
        self.encoder_cache = self.cache(encoder_layers, batch, config.tokens - 1)
        self.patch_cache = self.cache(len(model.patch_transformer.layers), self.rows, config.tokens)
        self.decoder_cache = self.cache(decoder_layers, self.rows, config.tokens)
        # rotations of patches of one token each; those of longer patches take from the last token what depends on it
        cells = torch.arange(config.tokens, device=device)
        self.patch_rope = model.patch_rope(cells, cells)
        self.by_last = (model.patch_rope(cells[:1], cells[1:2]) != self.patch_rope[:1]).any(-1).view(-1, 1)
        # of each image and a scratch one: states after each encoder layer, the patch's first token, whether one opens
        self.states = [like.new_zeros(batch + 1, config.tokens - 1, config.width) for _ in range(encoder_layers)]
        self.first = torch.zeros(batch + 1, dtype=torch.long, device=device)
        self.patches = torch.zeros_like(self.first)
        self.opens = torch.ones(batch, dtype=torch.bool, device=device)
        self.starts = torch.zeros(batch, config.tokens, dtype=torch.bool, device=device)
        # the row of each image and the scratch image in each branch
        self.images = torch.arange(batch + 1, device=device)
        rows = [torch.where(self.images < batch, self.images + b * batch, self.rows) for b in range(self.branches)]
        self.row_table = torch.stack(rows)
        # the decoder's input, and what each of its layers adds to the tokens of a patch
        self.x = like.new_zeros(batch, config.width)
        self.added = [like.new_zeros(self.rows + 1, config.width) for _ in range(decoder_layers)]
        self.window = torch.arange(self.longest_patch, device=device)
        self.summary = torch.zeros(2, dtype=torch.long, device=device)

    def begin(self, labels: Int[Tensor, " B"], seeds: Int[Tensor, " B"], prefix: Int[Tensor, "B N"] | None) -> None:
        """As of every model; all images open a patch at first."""
        super().begin(labels, seeds, prefix)
        self.opens.fill_(True)
        self.patches.zero_()

    def place(self, first: bool, forced: bool, read_length: int | None) -> None:
        """Entropies e_t, which images open a patch, how many do and the most patches of one (lines 4-6).

        Args:
            first: whether t = 0, before which there is no token.
            forced: whether all must open one.
            read_length: of the entropy model's cache.
        """
        assert self.boundaries is not None
        state = self.boundaries
        entropy = state.entropy(self, first, read_length)
        opens = torch.ones_like(self.opens) if forced else self.rule.opens_unforced(entropy, state.length)
        state.length.copy_(torch.where(opens, 1, state.length + 1))
        self.opens.copy_(opens)
        state.entropies.index_copy_(1, self.position, entropy[:, None])
        self.starts.index_copy_(1, self.position, opens[:, None])
        torch.sum(opens, 0, keepdim=True, out=self.summary[:1])
        if not self.kernels.in_place:
            torch.amax(self.patches[:-1] + opens, 0, keepdim=True, out=self.summary[1:])

    def encode(self, first: bool, read_length: int | None) -> None:
        """The decoder's input at the token (line 7).

        Args:
            first: whether t = 0; then the input is the start vector.
            read_length: of the encoder's cache.
        """
        if first:
            self.x.copy_(self.model.start.expand_as(self.x))
            return
        place = self.position - 1
        slots = self.encoder_cache.lockstep(place, self.batch, read_length)
        x, rope = _embedded(self.model, self.previous, 1), self.rope.index_select(0, self.position)
        new = self.run(steps.encoder_step)(self.model, x, rope, self.encoder_cache.entries, slots)
        for states, some in zip(self.states, new, strict=True):
            states[: self.batch].index_copy_(1, place, some[:, None])
        self.x.copy_(new[-1])

    def open(self, first: bool, count: int, branches: int, read_length: int | None) -> None:
        """The patch transformer for the images that open a patch, whose patches before it end here (lines 8-11).

        Args:
            first: whether t = 0; then the patch transformer reads the class.
            count: images to compute, as many as open a patch or more: the others are scratch.
            branches: of guidance that are run.
            read_length: of the patch transformer's cache.
        """
        model = self.model
        images = torch.nonzero_static(self.opens, size=count, fill_value=self.batch)[:, 0]
        rows = self.row_table[:branches].index_select(1, images).flatten()
        if first:
            x = model.cls_embedding(self.labels[: branches * self.batch])
            rope = zero_rope(len(x), model.config.head_dim, device=x.device, dtype=self.rope.dtype)
        else:
            began = self.first.index_select(0, images)
            x = torch.cat([self._pool(images, began)] * branches)
            last = self.patch_rope.index_select(0, self.position - 1)
            rope = torch.where(self.by_last, last, self.patch_rope.index_select(0, began)).repeat(branches, 1, 1)
        places = self.patches.index_select(0, images).repeat(branches)
        self.first[:-1].copy_(torch.where(self.opens, self.position, self.first[:-1]))
        self.patches[:-1].add_(self.opens)
        slots = self.patch_cache.ragged(rows, places, self._row_lengths(branches), read_length)
        step = self.run(steps.patch_transformer_step)
        for added, some in zip(self.added, step(model, x, rope, self.patch_cache.entries, slots), strict=True):
            added.index_copy_(0, rows, some)

    def _row_lengths(self, branches: int) -> Int[Tensor, " R"]:
        """Patches of every row of the cache; rows of branches that are no longer run have as many as the others."""
        return torch.cat([self.patches[:-1]] * self.branches + [self.patches[-1:] + 1])

    def _pool(self, images: Int[Tensor, " n"], began: Int[Tensor, " n"]) -> Float[Tensor, "n D"]:
        """States of the patches of `images` that began at `began` and end before the token (Eq. 5)."""
        count, length = len(images), self.states[0].shape[1]
        window = began[:, None] + self.window
        inside = window < self.position
        tokens = (images[:, None] * length + torch.where(inside, window, began[:, None])).flatten()
        # tokens of no patch are pooled into one too many
        ids = torch.where(inside, self.images[:count, None], count)
        states = [some.flatten(0, 1).index_select(0, tokens) for some in self.states]
        return self.run(steps.pool_patches)(self.model, states, ids.flatten(), count + 1)[:count]

    def decode(self, branches: int, scale: float, draws: bool, read_length: int | None) -> Float[Tensor, "B V"]:
        """Guided logits of x_t, which is drawn from them (lines 12-13). The arguments are those of `LlamaGenParts`."""
        rows = branches * self.batch
        slots = self.decoder_cache.lockstep(self.position, rows, read_length)
        x, rope = torch.cat([self.x] * branches), self.rope.index_select(0, self.position)
        added = [some[:rows] for some in self.added]
        logits = self.run(steps.decoder_step)(self.model, x, added, rope, self.decoder_cache.entries, slots)
        return self.finish(logits, scale, draws)

    def result(self) -> SampleResult:
        """As of every model, with entropies where there are any."""
        tokens = self.tokens.clone()
        if self.boundaries is None:
            assert self.rule.static_length is not None
            return SampleResult(
                tokens, static_starts(len(tokens), tokens.shape[1], self.rule.static_length, tokens.device), None
            )
        return SampleResult(tokens, self.starts.clone(), self.boundaries.entropies.clone())


class BoundaryState:
    """The entropy model's cache, entropies so far, and tokens of each image's patch."""

    def __init__(self, model: LlamaGen, batch: int, cached: torch.dtype, *, in_place: bool):
        config, like = model.config, model.output.weight
        device, dtype = like.device, at_least_float32(like.dtype)
        self.model, self.rope = model, model.rope()
        self.conditional = config.num_classes is not None
        kept = like.new_empty(like.shape[-1], dtype=cached)
        self.cache = StaticCache(len(model.layers), batch, len(self.rope), config.heads, kept, in_place=in_place)
        self.never = torch.full((batch,), torch.inf, dtype=dtype, device=device)
        self.entropies = torch.zeros(batch, config.tokens, dtype=dtype, device=device)
        self.length = torch.zeros(batch, dtype=torch.long, device=device)

    def read_length(self, position: int) -> int | None:
        """Of the cache, for the prediction of x_t at `position`."""
        return self.cache.read_length(position + self.conditional)

    def entropy(self, parts: TokenParts, first: bool, read_length: int | None) -> Float[Tensor, " B"]:
        """e_t in nats; +inf for x_0, for which a model with classes reads its null class all the same (Eq. 3)."""
        if first and not self.conditional:
            return self.never
        place = parts.position if self.conditional else parts.position - 1
        null = torch.full_like(self.length, self.model.null_label) if first else None
        x = _embedded(self.model, parts.previous, 1) if null is None else self.model.cls_embedding(null)
        slots = self.cache.lockstep(place, len(x), read_length)
        rope = self.rope.index_select(0, place)
        with entropy_products(parts.settings.entropy_precision, place.device):
            entropy = parts.run(steps.token_entropy)(self.model, x, rope, self.cache.entries, slots)
        return self.never if first else entropy


def _embedded(model: DPAR | LlamaGen, tokens: Int[Tensor, " B"], branches: int) -> Float[Tensor, "R D"]:
    return model.tok_embeddings(torch.cat([tokens] * branches))
