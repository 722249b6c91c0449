import pytest
import torch

from dpar.experiment.settings import Autoencoder
from dpar.tokenizer.autoencoder import VQAutoencoder, to_bytes
from tests.oracles import tokenizer as oracle

SMALL = Autoencoder(vocab_size=24, code_dim=5, channels=32, multipliers=(1, 2, 1), residual_blocks=1, z_channels=6)


@pytest.mark.parametrize(("multipliers", "parameters"), [((1, 1, 2, 2, 4), 71_883_403), ((1, 2, 2, 4), 70_109_835)])
def test_tensors_are_named_and_shaped_as_in_the_official_files(multipliers, parameters):
    expected = oracle.official_state(
        channels=128, multipliers=multipliers, blocks=2, z_channels=256, vocab_size=16384, code_dim=8, seed=None
    )
    del expected["quantize.codebook_used"]
    with torch.device("meta"):
        model = VQAutoencoder(Autoencoder(multipliers=multipliers))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert {name: t.shape for name, t in model.state_dict().items()} == {name: t.shape for name, t in expected.items()}


def official_pair(**changes) -> tuple[VQAutoencoder, oracle.State]:
    """A float64 autoencoder with random weights, and the weights as an official file names them."""
    config = SMALL.model_copy(update=changes)
    state = oracle.official_state(
        channels=config.channels,
        multipliers=config.multipliers,
        blocks=config.residual_blocks,
        z_channels=config.z_channels,
        vocab_size=config.vocab_size,
        code_dim=config.code_dim,
        seed=1,
    )
    model = VQAutoencoder(config).double().eval()
    model.load_state_dict({name: t for name, t in state.items() if name != "quantize.codebook_used"}, strict=True)
    return model, state


@pytest.mark.parametrize("size", [(16, 16), (8, 20)])
@torch.no_grad()
def test_codes_and_pictures_equal_the_literal_network(size):
    model, state = official_pair()
    images = torch.rand(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codes = model.encode(images)
    assert codes.shape == (2, size[0] // 4, size[1] // 4)
    assert len(codes.unique()) > 2
    assert torch.equal(codes, oracle.encode(state, images))
    torch.testing.assert_close(model.decode(codes), oracle.decode(state, codes))


@torch.no_grad()
def test_the_training_pass_is_encoding_and_decoding():
    model, _ = official_pair()
    images = torch.rand(2, 3, 12, 8, dtype=torch.float64) * 2 - 1
    out = model(images)
    codes = model.encode(images)
    assert torch.equal(out.codes, codes)
    torch.testing.assert_close(out.images, model.decode(codes))
    torch.testing.assert_close(out.latents.norm(dim=1), torch.ones(2, 3, 2, dtype=torch.float64))


@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch():
    model, _ = official_pair()
    images = torch.rand(3, 3, 16, 16, dtype=torch.float64) * 2 - 1
    codes = model.encode(images)
    decoded = model.decode(codes)
    for i in range(3):
        assert torch.equal(model.encode(images[i : i + 1]), codes[i : i + 1])
        torch.testing.assert_close(model.decode(codes[i : i + 1]), decoded[i : i + 1])


@pytest.mark.parametrize(
    ("shuffle", "multipliers", "cells"), [(1, (1, 1, 1), 4), (2, (1, 1), 4), (4, (1,), 4), (4, (1, 1), 2)]
)
@pytest.mark.parametrize("attention", [True, False])
def test_every_shape_of_network_gives_its_grid_back_as_pictures(shuffle, multipliers, cells, attention):
    config = Autoencoder(
        vocab_size=8, code_dim=4, channels=32, multipliers=multipliers, residual_blocks=1, z_channels=8,
        attention=attention, pixel_shuffle=shuffle,
    )  # fmt: skip
    assert config.downsample == 16 // cells
    out = VQAutoencoder(config)(torch.rand(2, 3, 16, 32))
    assert out.codes.shape == (2, cells, 2 * cells)
    assert out.images.shape == (2, 3, 16, 32)


def test_attention_is_only_at_the_lowest_resolution_and_can_be_left_out():
    names = VQAutoencoder(SMALL).state_dict()
    levels = {name.split(".attn.")[0] for name in names if ".attn." in name}
    assert levels == {"encoder.conv_blocks.2", "decoder.conv_blocks.0"}
    without = VQAutoencoder(SMALL.model_copy(update={"attention": False})).state_dict()
    assert not [name for name in without if ".attn." in name or "mid.1" in name]


def test_a_side_that_is_no_multiple_of_the_downsampling_is_refused():
    with pytest.raises(ValueError, match="18 x 16 pixels cannot be cut into tokens of 4 x 4"):
        VQAutoencoder(SMALL).encode(torch.zeros(1, 3, 18, 16))


def test_bytes_are_clamped_and_truncated():
    values = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.5, 0.99, 1.0, 3.0])
    assert to_bytes(values.expand(1, 3, 1, 8))[0, 0, 0].tolist() == [0, 0, 64, 128, 191, 254, 255, 255]
    bytes_ = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    assert torch.equal(to_bytes((bytes_.float() / 255 - 0.5) / 0.5), bytes_)
