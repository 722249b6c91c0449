import torch

from dpar.model.patch_transformer import PatchTransformer, shift_right
from dpar.model.rope import zero_rope
from dpar.patches.packing import PackedLengths
from tests.model.tiny import randomised
from tests.oracles import model as oracle


def test_each_sequence_moves_back_by_one_behind_its_first():
    packed = PackedLengths.from_lengths([3, 1, 2])
    found = shift_right(torch.tensor([[-1.0], [-2.0], [-3.0]]), torch.arange(6.0)[:, None], packed)
    assert found.flatten().tolist() == [-1, 0, 1, -2, -3, 4]


def test_it_is_the_literal_one_for_each_image(float64):
    lengths = [3, 1, 5]
    network, packed = randomised(PatchTransformer(32, 2, 2, dropout=0.1)), PackedLengths.from_lengths(lengths)
    classes, states = torch.randn(3, 32), torch.randn(9, 32)
    angles = torch.rand(9, 8)
    found = network(classes, states, torch.stack((angles.cos(), angles.sin()), -1), packed)
    weights = {f"p.{name}": value for name, value in network.state_dict().items()}
    images = zip(classes, states.split(lengths), angles.split(lengths), found.split(lengths), strict=True)
    for label, own, places, outputs in images:
        x, where = [label, *own[:-1]], [None, *places[:-1].tolist()]
        for i in range(2):
            x = oracle.block(x, where, weights, f"p.layers.{i}", heads=2)
        torch.testing.assert_close(outputs, torch.stack(x))


def test_an_output_depends_on_its_class_and_earlier_patches_of_its_image_only(float64):
    network, packed = randomised(PatchTransformer(32, 2, 2, dropout=0.0)), PackedLengths.from_lengths([3, 4])
    classes, states = torch.randn(2, 32, requires_grad=True), torch.randn(7, 32, requires_grad=True)
    found = network(classes, states, zero_rope(7, 16, dtype=torch.float64), packed)
    by_class, by_state = torch.autograd.grad(found[5].sum(), [classes, states])  # serves patch 2 of image 1
    assert by_class.any(-1).tolist() == [False, True]
    assert by_state.any(-1).tolist() == [False, False, False, True, True, False, False]


def test_dropout_is_on_the_input_of_class_and_patches():
    network, packed = PatchTransformer(64, 4, 1, dropout=0.5), PackedLengths.from_lengths([8, 8])
    seen = []
    network.layers[0].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    network(torch.ones(2, 64), torch.ones(16, 64), zero_rope(16, 16), packed)
    assert set(seen[0].unique().tolist()) == {0.0, 2.0}
