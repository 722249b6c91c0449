import pytest
import torch
import torch.nn.functional as F

from dpar.errors import InputError
from dpar.tokenizer.perceptual import load_lpips

CONVOLUTIONS = {
    0: 64,
    2: 64,
    5: 128,
    7: 128,
    10: 256,
    12: 256,
    14: 256,
    17: 512,
    19: 512,
    21: 512,
    24: 512,
    26: 512,
    28: 512,
}
SLICES = (4, 9, 16, 23, 30)


@pytest.fixture(scope="module")
def state():
    """Random weights named as the package `lpips` saves them."""
    generator = torch.Generator().manual_seed(0)
    state, channels = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1)}, 3
    for i, width in CONVOLUTIONS.items():
        part = next(k for k, end in enumerate(SLICES, 1) if i < end)
        scale = (2 / (9 * channels)) ** 0.5
        state[f"net.slice{part}.{i}.weight"] = torch.randn(width, channels, 3, 3, generator=generator) * scale
        state[f"net.slice{part}.{i}.bias"] = torch.randn(width, generator=generator) * 0.1
        channels = width
    for k, width in enumerate((64, 128, 256, 512, 512)):
        state[f"lin{k}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=generator)
        state[f"lins.{k}.model.1.weight"] = state[f"lin{k}.model.1.weight"]
    return state


@pytest.fixture(scope="module")
def path(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("lpips") / "lpips_vgg.pth"
    torch.save(state, path)
    return path


def literal(state, a, b):
    """LPIPS by its definition: five layers, unit vectors, squared differences, weights, means."""
    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))
    xs, total = [(a - shift) / scale, (b - shift) / scale], 0
    for i in range(30):
        for part in range(1, 6):
            if f"net.slice{part}.{i}.weight" in state:
                weight, bias = (state[f"net.slice{part}.{i}.{n}"] for n in ("weight", "bias"))
                xs = [F.relu(F.conv2d(x, weight, bias, padding=1)) for x in xs]
        if i in (4, 9, 16, 23):
            xs = [F.max_pool2d(x, 2, 2) for x in xs]
        if i in (3, 8, 15, 22, 29):
            x, y = (x / (x.norm(dim=1, keepdim=True) + 1e-10) for x in xs)
            weight = state[f"lin{(3, 8, 15, 22, 29).index(i)}.model.1.weight"]
            total = total + ((x - y) ** 2 * weight).sum(1).mean((1, 2))
    return total


def test_distance_is_that_of_the_definition(path, state):
    a, b = torch.rand(2, 2, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    found = load_lpips(path)(a, b)
    assert found.shape == (2,)
    torch.testing.assert_close(found, literal(state, a, b))


def test_a_picture_is_no_distance_from_itself_and_gradients_reach_it_alone(path):
    network = load_lpips(path)
    a = torch.rand(1, 3, 16, 16)
    b = torch.rand(1, 3, 16, 16, requires_grad=True)
    assert network(a, a).item() == 0
    network(a, b).sum().backward()
    assert b.grad.abs().sum() > 0
    assert not [parameter for parameter in network.parameters() if parameter.requires_grad]


def test_torchvisions_names_are_understood(path, state, tmp_path):
    renamed = {f"features.{n.split('.', 2)[2]}" if n.startswith("net.") else n: t for n, t in state.items()}
    torch.save(renamed, tmp_path / "vgg.pth")
    a, b = torch.rand(2, 1, 3, 16, 16)
    torch.testing.assert_close(load_lpips(tmp_path / "vgg.pth")(a, b), load_lpips(path)(a, b))


def test_weights_of_the_distance_alone_are_refused(state, tmp_path):
    torch.save({n: t for n, t in state.items() if n.startswith("lin")}, tmp_path / "vgg.pth")
    with pytest.raises(InputError, match=r"26 missing: features\.0\.weight"):
        load_lpips(tmp_path / "vgg.pth")
