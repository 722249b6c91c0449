import contextlib

import numpy as np
import pytest
import torch
from PIL import Image

from dpar.data.crops import to_uint8
from dpar.data.images import ImageIndex, open_images
from dpar.errors import InputError
from dpar.tokenizer.discriminator import PatchGAN
from dpar.tokenizer.trainer import UNUSED, TokenizerTrainer, random_crop, train_tokenizer
from dpar.train.checkpoint import newest_checkpoint
from dpar.train.distributed import Ranks
from tests.tokenizer.tiny import SIDE, SIZES, Recorder, image_index, tiny_task

ALONE = Ranks(torch.device("cpu"))


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(a, b) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize(
    "changes", [{"cooldown": 0.5}, {"adversarial_weight": 0.5, "adversarial_start": 3}], ids=["plain", "critic"]
)
def test_broken_off_and_run_again_equals_uninterrupted_to_the_bit(tmp_path, monkeypatch, changes):
    monkeypatch.setattr(PatchGAN, "WIDTHS", (8, 8, 8, 8))
    changes = {"steps": 23, **changes}
    whole = Recorder()
    expected = weights(train_tokenizer(tiny_task(tmp_path / "a", **changes), tmp_path / "whole", ALONE, whole))
    with pytest.raises(RuntimeError, match="broken off"):
        train_tokenizer(tiny_task(tmp_path / "b", **changes), tmp_path / "state", ALONE, Recorder(break_at=20))
    assert newest_checkpoint(tmp_path / "state") == 15
    resumed = Recorder()
    found = weights(train_tokenizer(tiny_task(tmp_path / "c", **changes), tmp_path / "state", ALONE, resumed))
    assert_same(found, expected)
    assert resumed.committed == [15, 20, 23]
    assert resumed.rows == {step: row for step, row in whole.rows.items() if step > 15}
    assert set(whole.rows) == {5, 10, 15, 20, 23}


def test_a_finished_training_is_not_trained_again(tmp_path):
    expected = weights(train_tokenizer(tiny_task(tmp_path), tmp_path / "state", ALONE, Recorder()))
    again = Recorder()
    assert_same(weights(train_tokenizer(tiny_task(tmp_path), tmp_path / "state", ALONE, again)), expected)
    assert not again.rows


def test_more_steps_go_on_and_fewer_are_refused(tmp_path):
    train_tokenizer(tiny_task(tmp_path, steps=6), tmp_path / "state", ALONE, Recorder())
    more = Recorder()
    found = weights(train_tokenizer(tiny_task(tmp_path, steps=12), tmp_path / "state", ALONE, more))
    assert set(more.rows) == {10, 12}
    assert_same(found, weights(train_tokenizer(tiny_task(tmp_path, steps=12), tmp_path / "new", ALONE, Recorder())))
    with pytest.raises(InputError, match="stands at step 12, past the 6 steps"):
        train_tokenizer(tiny_task(tmp_path, steps=6), tmp_path / "state", ALONE, Recorder())


def test_the_rate_falls_to_zero_over_the_last_share_of_the_steps(tmp_path):
    constant, cooling = tiny_task(tmp_path, steps=10), tiny_task(tmp_path, steps=10, cooldown=0.4)
    assert [constant.learning_rate(step) for step in range(10)] == [1e-3] * 10
    rates = [cooling.learning_rate(step) for step in range(10)]
    assert rates == pytest.approx([1e-3] * 7 + [0.75e-3, 0.5e-3, 0.25e-3])
    train_tokenizer(cooling, tmp_path / "state", ALONE, Recorder())
    with pytest.raises(InputError, match="cooldown_until 10, now 20"):
        train_tokenizer(tiny_task(tmp_path, steps=20, cooldown=0.4), tmp_path / "state", ALONE, Recorder())


def test_a_state_of_other_settings_is_refused_or_set_aside(tmp_path):
    train_tokenizer(tiny_task(tmp_path, steps=2), tmp_path / "state", ALONE, Recorder())
    other = tiny_task(tmp_path, steps=2, learning_rate=2e-3)
    with pytest.raises(InputError, match="--restart"):
        train_tokenizer(other, tmp_path / "state", ALONE, Recorder())
    train_tokenizer(other, tmp_path / "state", ALONE, Recorder(), restart=True)
    assert (tmp_path / "state.1").is_dir()


def test_training_makes_reconstructions_better_and_reports_it(tmp_path):
    job = Recorder()
    task = tiny_task(tmp_path, seed=1, steps=60, checkpoint_every=30, learning_rate=3e-3)
    train_tokenizer(task, tmp_path / "s", ALONE, job)
    assert {"train/loss", "train/psnr", "train/codebook_use"} <= job.rows[60].keys()
    assert job.rows[60]["train/psnr"] > job.rows[10]["train/psnr"] + 1
    assert job.rows[60]["val/psnr"] > 8
    assert 0 < job.rows[60]["train/codebook_use"] <= 1
    assert job.images == [("reconstructions", 30), ("reconstructions", 60)]


def test_epochs_are_turned_into_steps_and_too_few_images_are_refused(tmp_path):
    assert tiny_task(tmp_path, steps=None, epochs=3).steps == 6
    with pytest.raises(InputError, match="10 training images do not fill one batch of 11"):
        _ = tiny_task(tmp_path, steps=None, epochs=3, batch_size=11).steps


def test_every_image_is_seen_once_per_epoch(tmp_path):
    task = tiny_task(tmp_path, batch_size=5, crop_range=1.0)
    crops = TokenizerTrainer(task, tmp_path / "state", ALONE, Recorder())._crops()
    seen = torch.cat([next(crops), next(crops)])
    crops.close()
    known = {to_uint8(task.train.read(i).crop((2, 0, SIDE + 2, SIDE))).numpy().tobytes() for i in range(10)}
    assert {image.numpy().tobytes() for image in seen} == known  # the images are their own mirror images


def test_codes_out_of_use_become_latents_of_the_batch(tmp_path):
    trainer = TokenizerTrainer(tiny_task(tmp_path), tmp_path / "state", ALONE, Recorder())
    crops = trainer._crops()
    trainer.idle.zero_()
    embedding = trainer.model.quantize.embedding.weight
    trainer._advance(next(crops))
    moments = trainer.trained["autoencoder"][1].state[embedding]
    moments["exp_avg"].fill_(1)
    before = embedding.detach().clone()
    unused = torch.tensor([3, 11])
    trainer.idle[unused] = UNUSED * SIZES.vocab_size
    latents = torch.nn.functional.normalize(torch.randn(2, SIZES.code_dim, 3, 3), dim=1)
    trainer._restart_codes(latents)
    crops.close()
    changed = (embedding != before).any(1).nonzero().flatten()
    assert changed.tolist() == unused.tolist()
    candidates = latents.movedim(1, -1).reshape(-1, SIZES.code_dim)
    for code in unused:
        assert (candidates == embedding[code]).all(1).any()
        assert not moments["exp_avg"][code].any()
    assert moments["exp_avg"][0].all()
    assert not trainer.idle[unused].any()


def test_codes_are_restarted_from_the_first_step_and_only_if_asked(tmp_path):
    for asked in (True, False):
        trainer = TokenizerTrainer(
            tiny_task(tmp_path, restart_unused_codes=asked), tmp_path / f"{asked}", ALONE, Recorder()
        )
        crops = trainer._crops()
        before = trainer.model.quantize.embedding.weight.detach().clone()
        trainer._advance(next(crops))
        crops.close()
        moved = ((trainer.model.quantize.embedding.weight - before).norm(dim=1) > 0.1).sum().item()
        assert (moved >= SIZES.vocab_size // 2) if asked else (moved == 0)


def test_a_loss_that_is_not_finite_stops_with_advice(tmp_path):
    task = tiny_task(tmp_path)
    with torch.no_grad():
        task.model.decoder.conv_out.bias.fill_(float("nan"))
    with pytest.raises(InputError, match=r"loss is nan.*none yet.*learning_rate"):
        train_tokenizer(task, tmp_path / "state", ALONE, Recorder())
    assert newest_checkpoint(tmp_path / "state") is None


def test_a_crop_depends_on_seed_epoch_and_image_alone(tmp_path):
    index = image_index(tmp_path, 4)
    rng = np.random.default_rng(0)
    for key in index.keys:  # images whose every crop differs
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(tmp_path / key)
    index = ImageIndex.build(open_images("folder", str(tmp_path)), resolution=SIDE, num_classes=2)
    one = random_crop(index, 1, SIDE, 1.25, 0, 0)
    assert one.shape == (3, SIDE, SIDE)
    assert torch.equal(one, random_crop(index, 1, SIDE, 1.25, 0, 0))
    for image, seed, epoch in ((2, 0, 0), (1, 1, 0), (1, 0, 1)):
        assert not torch.equal(one, random_crop(index, image, SIDE, 1.25, seed, epoch))


def coordinates(folder, width, height):
    """An index of one image whose red and green channels are the pixel's column and row."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    (folder / "class0").mkdir(parents=True)
    Image.fromarray(np.stack([columns, rows, 0 * rows], -1).astype(np.uint8)).save(folder / "class0/a.png")
    return ImageIndex.build(open_images("folder", str(folder)), resolution=SIDE, num_classes=1)


@pytest.mark.parametrize(("width", "height"), [(SIDE + 6, SIDE), (SIDE, SIDE + 6)])
def test_crops_come_from_anywhere_in_the_image(tmp_path, width, height):
    index = coordinates(tmp_path / "images", width, height)
    found = [random_crop(index, 0, SIDE, 1.0, 0, epoch) for epoch in range(100)]
    places = {(int(crop[0].min()), int(crop[1].min())) for crop in found}
    assert places == {(left, top) for left in range(width - SIDE + 1) for top in range(height - SIDE + 1)}
    for crop in found:  # whole squares, as they are or mirrored
        columns = crop[0, 0] if crop[0, 0, 0] < crop[0, 0, -1] else crop[0, 0].flip(0)
        assert torch.equal(columns - columns[0], torch.arange(SIDE, dtype=torch.uint8))
        assert torch.equal(crop[1, :, 0] - crop[1, 0, 0], torch.arange(SIDE, dtype=torch.uint8))


def test_crops_reach_the_corners_of_an_image_at_every_scale(tmp_path):
    index = coordinates(tmp_path / "images", 3 * SIDE, 2 * SIDE)
    found = torch.stack([random_crop(index, 0, SIDE, 1.25, 0, epoch) for epoch in range(400)]).flatten(2)
    spans = (found.amax(-1) - found.amin(-1))[:, 1].unique()
    assert len(spans) > 3  # sizes vary
    for channel, last in ((0, 3 * SIDE - 1), (1, 2 * SIDE - 1)):
        assert found[:, channel].min() <= 2
        assert found[:, channel].max() >= last - 2


def test_gradients_of_autoencoder_and_critic_are_clipped_each_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(PatchGAN, "WIDTHS", (8, 8, 8, 8))

    def norms(grad_clip):
        task = tiny_task(tmp_path, adversarial_weight=0.5, adversarial_start=0, grad_clip=grad_clip)
        trainer = TokenizerTrainer(task, tmp_path / "state", ALONE, Recorder())
        with contextlib.closing(trainer._crops()) as crops:
            trainer._advance(next(crops))
        return {
            name: torch.nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None]).item()
            for name, (network, _) in trainer.trained.items()
        }

    free = norms(1e9)
    assert set(free) == {"autoencoder", "critic"}
    bound = min(free.values()) / 2
    assert norms(bound) == pytest.approx(dict.fromkeys(free, bound), rel=1e-4)
    loose = 2 * max(free.values())
    assert norms(loose) == pytest.approx(free, rel=1e-5)
