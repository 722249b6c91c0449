"""Inception v3: its tensors, its pools and resize, both forms of its weights, and files that are not weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dpar.errors import InputError
from dpar.evaluation.inception import (
    KNOWN_FILES,
    Inception,
    InceptionA,
    InceptionE,
    WeightFile,
    load_inception,
    resize_tf1,
    script_names,
)
from dpar.files import sha256_file
from tests.oracles import metrics as oracle


@pytest.fixture(scope="module")
def network():
    """A network with random weights and statistics, in eval mode."""
    generator = torch.Generator().manual_seed(0)
    model = Inception().eval().requires_grad_(False)
    for name, tensor in model.state_dict().items():
        if name.endswith(("bn.bias", "running_mean")):
            tensor.normal_(0, 0.1, generator=generator)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=generator)
    return model


@pytest.fixture(scope="module")
def images():
    return 255 * torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def activations(network, images):
    return network(images)


pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # the file exists in no other form


def known(path, *, script=False):
    return {sha256_file(path): WeightFile("a test's", script)}


def test_it_has_the_566_tensors_of_the_published_state_dicts(network):
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert len(shapes) == 566
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == 94
    assert shapes["Conv2d_1a_3x3.conv.weight"] == (32, 3, 3, 3)
    assert shapes["Mixed_5b.branch5x5_2.conv.weight"] == (64, 48, 5, 5)
    assert shapes["Mixed_6a.branch3x3dbl_3.bn.running_mean"] == (96,)
    assert shapes["Mixed_6b.branch7x7dbl_5.conv.weight"] == (192, 128, 1, 7)
    assert shapes["Mixed_6e.branch7x7_2.conv.weight"] == (192, 192, 1, 7)
    assert shapes["Mixed_7a.branch7x7x3_3.conv.weight"] == (192, 192, 7, 1)
    assert shapes["Mixed_7c.branch3x3dbl_3b.conv.weight"] == (384, 384, 3, 1)
    assert shapes["Mixed_7c.branch_pool.bn.num_batches_tracked"] == ()
    assert (shapes["fc.weight"], shapes["fc.bias"]) == ((1008, 2048), (1008,))
    assert {module.eps for module in network.modules() if isinstance(module, nn.BatchNorm2d)} == {1e-3}


def test_one_pass_gives_pooled_and_spatial_features_and_logits_without_bias(network, images, activations):
    found = {}
    handles = [
        network.Mixed_6d.branch1x1.register_forward_hook(lambda *call: found.update(branch=call[2])),
        network.Mixed_7c.register_forward_hook(lambda *call: found.update(last=call[2])),
    ]
    again = network(images)
    for handle in handles:
        handle.remove()
    assert found["last"].shape == (1, 2048, 8, 8)
    assert found["branch"].shape == (1, 192, 17, 17)
    torch.testing.assert_close(again.pool, found["last"].mean((2, 3)))
    torch.testing.assert_close(again.logits, again.pool @ network.fc.weight.T)
    expected = torch.stack([found["branch"][:, c] for c in range(7)], -1).reshape(1, 2023)
    torch.testing.assert_close(again.spatial, expected, rtol=0, atol=0)
    torch.testing.assert_close(again.pool, activations.pool)


def test_average_pools_leave_padding_out_and_the_last_block_takes_maxima(network):
    block = InceptionA(8, 32).eval()
    means = []
    block.branch_pool.register_forward_hook(lambda module, inputs, output: means.append(inputs[0]))
    block(torch.ones(1, 8, 5, 5))
    torch.testing.assert_close(means[0], torch.ones(1, 8, 5, 5))

    x = torch.randn(1, 4, 6, 6)
    padded = F.pad(x, (1, 1, 1, 1), value=float("-inf")).unfold(2, 3, 1).unfold(3, 3, 1)
    for maximum in (True, False):
        block, seen = InceptionE(4, maximum).eval(), []
        block.branch_pool.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(inputs[0]))
        block(x)
        assert torch.equal(seen[0], padded.amax((4, 5))) == maximum
    assert (network.Mixed_7b.maximum, network.Mixed_7c.maximum) == (False, True)


@pytest.mark.parametrize("size", [1, 5, 32, 40, 299, 320])
def test_images_are_resized_as_tensorflow_1_did(size):
    image = torch.rand(size, size, generator=torch.Generator().manual_seed(0))
    side = 299 if size >= 299 else 47
    found = resize_tf1(255 * image.expand(1, 2, size, size), side)
    expected = torch.from_numpy(oracle.resize_tf1(255 * image.numpy().astype(float), side))
    position = 2 * torch.finfo(torch.float32).eps * size  # a place in float32, as in TensorFlow, on either axis
    torch.testing.assert_close(found, expected.float().expand(1, 2, side, side), rtol=0, atol=255 * position + 1e-4)


def test_pixels_are_centred_on_128(network):
    seen = []
    handle = network.Conv2d_1a_3x3.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    network(torch.full((1, 3, 8, 8), 255.0))
    handle.remove()
    assert seen[0].shape == (1, 3, 299, 299)
    torch.testing.assert_close(seen[0], torch.full_like(seen[0], 127 / 128))


def test_pieces_of_a_batch_change_nothing_and_come_in_order(network, monkeypatch):
    monkeypatch.setattr("dpar.evaluation.inception.STEM", 1)
    monkeypatch.setattr("dpar.evaluation.inception.BODY", 2)
    images = 255 * torch.rand(3, 3, 20, 20, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        for ours, expected in zip(network(images), zip(*map(network, images.split(1)), strict=True), strict=True):
            torch.testing.assert_close(ours, torch.cat(expected), rtol=1e-5, atol=1e-5)


def test_every_convolution_has_one_name_in_the_torchscript_file(network):
    names = script_names(network)
    assert len(names) == len(set(names.values())) == 94 * 4 + 2
    left = set(network.state_dict()) - set(names)
    assert {name.rsplit(".", 2)[1] + "." + name.rsplit(".", 2)[2] for name in left} == {
        "bn.weight",
        "bn.num_batches_tracked",
    }
    assert names["Conv2d_4a_3x3.conv.weight"] == "layers.conv_4.weight"
    assert names["Mixed_5b.branch1x1.bn.running_var"] == "layers.mixed.conv.var"
    assert names["Mixed_7c.branch3x3dbl_3b.bn.bias"] == "layers.mixed_10.tower_1_mixed_conv_1.beta"


@pytest.mark.parametrize("form", ["zip", "pickle", "script"])
def test_both_state_dicts_and_the_torchscript_file_give_the_same_network(form, network, images, activations, tmp_path):
    path = tmp_path / "weights"
    if form == "script":
        save_script(network, path)
    else:
        torch.save(network.state_dict(), path, _use_new_zipfile_serialization=form == "zip")
    loaded, sha256 = load_inception(path, known(path, script=form == "script"))
    assert sha256 == sha256_file(path)
    with torch.inference_mode():
        found = loaded(images)
    for ours, expected in zip(found, activations, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)  # folded normalisation rounds differently


def save_script(network, path):
    """The weights as the TorchScript file names them: nested modules, no weight of a normalisation."""
    root, own = nn.Module(), network.state_dict()
    for ours, name in script_names(network).items():
        *parents, leaf = name.split(".")
        place = root
        for parent in parents:
            if not hasattr(place, parent):
                place.add_module(parent, nn.Module())
            place = getattr(place, parent)
        place.register_buffer(leaf, own[ours])
    torch.jit.script(root).save(path)


def test_a_torchscript_file_with_other_names_is_refused(tmp_path):
    module = nn.Module()
    module.register_buffer("weight", torch.zeros(1))
    torch.jit.script(module).save(tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"other.pt lacks 378 tensors such as layers.conv.beta.*\.pth"):
        load_inception(tmp_path / "other.pt", known(tmp_path / "other.pt", script=True))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\n <!DOCTYPE html><html>Sign in</html>", "a web page of 37 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:67", "a Git LFS pointer"),
        (b"PK\x03\x04 and then nothing", "a truncated zip archive"),
        (b"\x80\x02\x8a\nl\xfc\x9cF", "a pickle of 8 bytes, truncated or other weights"),
        (b"\x89HDF\r\n", "no file of weights"),
        (b"", "no file of weights (0 bytes"),
    ],
)
def test_what_is_no_weights_is_named_for_what_it_is(content, said, tmp_path):
    path = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        load_inception(path)
    assert said in str(error.value)
    assert "sha256 6726825d..." in str(error.value)
    assert str(path) in str(error.value)


def test_other_weights_and_a_missing_file_are_refused(tmp_path):
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"a zip archive of \d+ bytes, perhaps other weights"):
        load_inception(tmp_path / "other.pth")
    for path in (tmp_path / "missing.pth", tmp_path):
        with pytest.raises(InputError, match="is not a file"):
            load_inception(path)


def test_the_published_files_are_known_by_their_digests():
    assert sorted((sha256[:8], file.script) for sha256, file in KNOWN_FILES.items()) == [
        ("6726825d", False),
        ("f58cb9b6", True),
    ]
