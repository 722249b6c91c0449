"""The classifier: its shapes, its half of the images, that it learns, and that a seed fixes it."""

import pytest
import torch

from dpar.evaluation.classifier import ImageClassifier, augment, fit_classifier, training_half

CPU = torch.device("cpu")


def pictures(count, classes=3, side=16, seed=0):
    """Noise with a bright block whose place is the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    images = torch.randint(0, 120, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    for image, label in zip(images, labels, strict=True):
        image[label % 3, :, :] += 100
    return images, labels


def fit(images, labels, steps=30, seed=0, **more):
    config = ImageClassifier.Config(resolution=16, num_classes=3, channels=8, dims=6)
    return fit_classifier(
        images, labels, config, steps=steps, batch_size=16, learning_rate=1e-2, seed=seed, device=CPU, **more
    )


@pytest.mark.parametrize("resolution", [8, 12, 16, 28, 64, 256])
def test_features_and_logits_have_their_dimensions_at_any_resolution(resolution):
    model = ImageClassifier(ImageClassifier.Config(resolution=resolution, num_classes=5, channels=4, dims=7)).eval()
    seen = []
    model.body.register_forward_hook(lambda module, inputs, output: seen.append(output))
    features, logits = model(torch.rand(2, 3, resolution, resolution))
    assert features.shape == (2, 7)
    assert logits.shape == (2, 5)
    assert 4 <= seen[0].shape[-1] <= 8
    torch.testing.assert_close(logits, features @ model.head.weight.T)
    assert model.head.bias is None


def test_it_learns_from_half_of_each_class_rounded_up():
    labels = torch.tensor([0] * 10 + [2] * 5 + [7])
    half = training_half(labels, 0)
    assert [int(half[labels == label].sum()) for label in (0, 2, 7)] == [5, 3, 1]
    assert torch.equal(half, training_half(labels, 0))
    assert not torch.equal(half, training_half(labels, 1))


@pytest.mark.parametrize("steps", [*range(1, 12), 15, 20, 25])
def test_any_number_of_steps_can_be_trained(steps):
    said = []
    model = fit(*pictures(16), steps=steps, report=lambda step, loss: said.append(step))
    assert said == list(range(1, steps + 1))
    assert all(weights.isfinite().all() for weights in model.state_dict().values())


def test_it_learns_and_reports_each_step():
    images, labels = pictures(96)
    said = []
    model = fit(images, labels, report=lambda step, loss: said.append((step, loss)))
    assert [step for step, _ in said] == list(range(1, 31))
    assert said[-1][1] < 0.5 * said[0][1]
    others, theirs = pictures(60, seed=1)
    with torch.inference_mode():
        assigned = model(others.float() / 127.5 - 1)[1].argmax(1)
    assert (assigned == theirs).float().mean() > 0.8
    assert not model.training


def test_a_seed_fixes_the_classifier_and_nothing_outside_it():
    images, labels = pictures(32)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = fit(images, labels, steps=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    again, other = fit(images, labels, steps=3), fit(images, labels, steps=3, seed=1)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert not torch.equal(first.head.weight, other.head.weight)


def test_fewer_images_than_a_batch_are_enough():
    images, labels = pictures(5)
    assert fit(images, labels, steps=2).config.num_classes == 3


def test_augmentation_mirrors_moves_and_lights_but_keeps_the_picture():
    ramp = torch.arange(32, dtype=torch.uint8).expand(1, 3, 32, 32) * 4  # brighter to the right
    batch = augment(ramp.expand(200, 3, 32, 32), torch.Generator().manual_seed(0))
    assert batch.shape == (200, 3, 32, 32)
    slope = batch[:, 0, 0, 20] - batch[:, 0, 0, 10]
    assert 60 < (slope > 0).sum() < 140
    step = 4 * 10 / 127.5
    assert (slope.abs() / step).min() >= 0.8 - 1e-4
    assert (slope.abs() / step).max() <= 1.2 + 1e-4
    assert batch.min() > -1.5
    assert batch.max() < 1.5
    black, white = (torch.full((50, 3, 32, 32), value, dtype=torch.uint8) for value in (0, 255))
    generator = torch.Generator().manual_seed(1)
    assert augment(black, generator).max() < augment(white, generator).min()
