"""The VQ autoencoder that turns images into codes and back (LlamaGen's VQ-16 and VQ-8; Section 3.1)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from dpar.experiment.settings import Autoencoder
from dpar.tokenizer.quantizer import Quantizer


def normalization(groups: int, channels: int) -> nn.GroupNorm:
    """Group normalisation, eps 1e-6."""
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Twice normalise, swish, convolve; added to the input."""

    def __init__(self, channels_in: int, channels_out: int, groups: int):
        super().__init__()
        self.norm1 = normalization(groups, channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = normalization(groups, channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        if channels_in != channels_out:
            self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class SpatialAttention(nn.Module):
    """One attention head over all positions of the grid; added to the input."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = normalization(groups, channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        h = self.norm(x)
        q, k, v = (projection(h).movedim(1, -1).flatten(1, 2).unsqueeze(1) for projection in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        return x + self.proj_out(out.unflatten(1, x.shape[2:]).movedim(-1, 1))


class Downsample(nn.Module):
    """Half the side: a zero row below and a zero column on the right, then a convolution of stride 2."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the side: each pixel repeated, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C H W"]:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The residual blocks at one resolution, each followed by attention if asked, and the way to the next one."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        blocks: int,
        groups: int,
        attention: bool,
        resample: type[Downsample] | type[Upsample] | None,
    ):
        super().__init__()
        self.res = nn.ModuleList(
            ResidualBlock(channels_out if i else channels_in, channels_out, groups) for i in range(blocks)
        )
        self.attn = nn.ModuleList(SpatialAttention(channels_out, groups) for _ in range(blocks if attention else 0))
        if resample is Downsample:
            self.downsample = Downsample(channels_out)
        elif resample is Upsample:
            self.upsample = Upsample(channels_out)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H2 W2"]:
        for i, block in enumerate(self.res):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        if hasattr(self, "downsample"):
            return self.downsample(x)
        return self.upsample(x) if hasattr(self, "upsample") else x


def middle(channels: int, groups: int, attention: bool) -> nn.ModuleList:
    """Residual block, attention, residual block."""
    return nn.ModuleList(
        [
            ResidualBlock(channels, channels, groups),
            SpatialAttention(channels, groups) if attention else nn.Identity(),
            ResidualBlock(channels, channels, groups),
        ]
    )


class Encoder(nn.Module):
    """Images to `z_channels` features per cell: levels from the highest resolution to the lowest, then the middle."""

    def __init__(self, config: Autoencoder):
        super().__init__()
        widths = [config.channels * multiplier for multiplier in config.multipliers]
        last = len(widths) - 1
        self.unshuffle = nn.PixelUnshuffle(config.pixel_shuffle)
        self.conv_in = nn.Conv2d(3 * config.pixel_shuffle**2, config.channels, 3, padding=1)
        self.conv_blocks = nn.ModuleList(
            Level(
                widths[i - 1] if i else config.channels,
                width,
                config.residual_blocks,
                groups=config.groups,
                attention=config.attention and i == last,
                resample=None if i == last else Downsample,
            )
            for i, width in enumerate(widths)
        )
        self.mid = middle(widths[-1], config.groups, config.attention)
        self.norm_out = normalization(config.groups, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B Z h w"]:
        h = self.conv_in(self.unshuffle(images))
        for block in (*self.conv_blocks, *self.mid):
            h = block(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """Features to images: the middle, then levels from the lowest resolution to the highest, one block more each."""

    def __init__(self, config: Autoencoder):
        super().__init__()
        widths = [config.channels * multiplier for multiplier in reversed(config.multipliers)]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.z_channels, widths[0], 3, padding=1)
        self.mid = middle(widths[0], config.groups, config.attention)
        self.conv_blocks = nn.ModuleList(
            Level(
                widths[max(i - 1, 0)],
                width,
                config.residual_blocks + 1,
                groups=config.groups,
                attention=config.attention and i == 0,
                resample=None if i == last else Upsample,
            )
            for i, width in enumerate(widths)
        )
        self.norm_out = normalization(config.groups, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 3 * config.pixel_shuffle**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(config.pixel_shuffle)

    def forward(self, latents: Float[Tensor, "B Z h w"]) -> Float[Tensor, "B 3 H W"]:
        h = self.conv_in(latents)
        for block in (*self.mid, *self.conv_blocks):
            h = block(h)
        return self.shuffle(self.conv_out(F.silu(self.norm_out(h))))


class Autoencoded(NamedTuple):
    """A training pass: the reconstructed images, their codes and latents, and the codebook's two losses."""

    images: Float[Tensor, "B 3 H W"]
    codes: Int[Tensor, "B h w"]
    latents: Float[Tensor, "B C h w"]
    codebook_loss: Float[Tensor, ""]
    commitment_loss: Float[Tensor, ""]


class VQAutoencoder(nn.Module):
    """Encoder, codebook and decoder; tensors are named as in LlamaGen's files."""

    Config = Autoencoder

    def __init__(self, config: Autoencoder):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Quantizer(config.vocab_size, config.code_dim)
        self.quant_conv = nn.Conv2d(config.z_channels, config.code_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.code_dim, config.z_channels, 1)

    def latents(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """The encoder's output before the codebook; images in [-1, 1], sides multiples of the downsampling.

        Deviation: the paper's number of tokens rounds a side up to whole tokens; here other sides are refused.

        Raises:
            ValueError: a side that is not such a multiple.
        """
        if images.shape[-1] % self.config.downsample or images.shape[-2] % self.config.downsample:
            raise ValueError(
                f"images of {images.shape[-2]} x {images.shape[-1]} pixels cannot be cut into tokens of "
                f"{self.config.downsample} x {self.config.downsample}; crop or resize them first"
            )
        return self.quant_conv(self.encoder(images.contiguous(memory_format=torch.channels_last)))

    def encode(self, images: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B h w"]:
        """Codes of images in [-1, 1]; flattened row by row they are the tokens (I_tok)."""
        return self.quantize.encode(self.latents(images))

    def decode(self, codes: Int[Tensor, "B h w"]) -> Float[Tensor, "B 3 H W"]:
        """Images of codes, about [-1, 1] and not clamped."""
        latents = self.quantize.decode(codes).contiguous(memory_format=torch.channels_last)
        return self.decoder(self.post_quant_conv(latents))

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Autoencoded:
        """Images through the codebook and back, differentiable."""
        quantized = self.quantize(self.latents(images))
        return Autoencoded(
            images=self.decoder(self.post_quant_conv(quantized.rows)),
            codes=quantized.codes,
            latents=quantized.latents,
            codebook_loss=quantized.codebook_loss,
            commitment_loss=quantized.commitment_loss,
        )


def to_bytes(images: Float[Tensor, "*B 3 H W"]) -> UInt8[Tensor, "*B 3 H W"]:
    """Images in [-1, 1] as bytes: clamp(127.5 x + 128, 0, 255), truncated."""
    return (127.5 * images + 128).clamp(0, 255).to(torch.uint8)
