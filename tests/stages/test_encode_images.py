"""The stage that turns images into codes."""

import numpy as np
import pytest
import torch

from dpar.data.crops import to_model_input, to_uint8, views
from dpar.data.images import ImageIndex, open_images
from dpar.data.shards import read_shard
from dpar.errors import InputError
from dpar.stages.encode_images import encode, images_of_shard, main
from dpar.tokenizer.autoencoder import VQAutoencoder
from dpar.weights import load_model, model_config, save_model
from tests.data.samples import image_bytes, parquet_of_images, sample_image
from tests.oracles.data import adm_center_crop
from tests.stages.experiments import TOKENIZER, write_experiment


@pytest.fixture
def inputs(tmp_path):
    """Flags that encode ten images of several sizes with a random tokenizer."""
    experiment = write_experiment(tmp_path)
    files = [image_bytes(sample_image(i, 70 + 9 * i, 150 - 8 * i)) for i in range(10)]
    parquet_of_images(tmp_path / "x.parquet", files, [i % 8 for i in range(10)])
    source = open_images("parquet", str(tmp_path / "x.parquet"))
    ImageIndex.build(source, resolution=64, num_classes=8).save(tmp_path / "index.json")
    torch.manual_seed(0)
    save_model(tmp_path / "tokenizer", VQAutoencoder(VQAutoencoder.Config.model_validate(TOKENIZER)), {})
    return ["--experiment", str(experiment), "--index", str(tmp_path / "index.json"), "--tokenizer",
            str(tmp_path / "tokenizer")]  # fmt: skip


def run(inputs, split, shard, output):
    main([*inputs, "--split", split, "--shard", str(shard), "--output", str(output)])
    return read_shard(output)


def assert_tokens_of(tokens, tmp_path, pixels):
    """The tokens are those of one image at a time; sums differ in the last bit with the batch, so one may flip."""
    tokenizer = load_model(tmp_path / "tokenizer", "tokenizer")
    with torch.inference_mode():
        expected = torch.cat([tokenizer.encode(to_model_input(p[None])).reshape(1, -1) for p in pixels]).numpy()
    assert tokens.shape == expected.shape
    assert (tokens != expected).sum() <= 1


def test_a_tokenizer_that_can_compute_nothing_encodes_nothing(tmp_path, inputs):
    tokenizer = VQAutoencoder(VQAutoencoder.Config.model_validate(TOKENIZER))
    tokenizer.quantize.embedding.weight.data[3, 1] = torch.nan
    save_model(tmp_path / "tokenizer", tokenizer, {})
    with pytest.raises(InputError, match="tokenizer has weights that are not finite"):
        run(inputs, "train", 0, tmp_path / "0.parquet")
    assert not (tmp_path / "0.parquet").exists()


@pytest.mark.parametrize("suffix", ["parquet", "tar"])
def test_encodes_every_view_of_a_shard_of_training_images(tmp_path, inputs, suffix):
    index = ImageIndex.load(tmp_path / "index.json")
    shards = [run(inputs, "train", shard, tmp_path / f"{shard}.{suffix}") for shard in range(3)]
    assert [shard.num_images for shard in shards] == [3, 3, 4]
    assert np.concatenate([shard.images[::10] for shard in shards]).tolist() == list(range(10))
    assert np.concatenate([shard.labels[::10] for shard in shards]).tolist() == index.labels.tolist()
    meta = shards[0].metadata
    assert (meta.grid, meta.vocab_size, meta.resolution, meta.views) == ((8, 8), 32, 64, 10)
    assert meta.tokenizer == model_config(tmp_path / "tokenizer")["sha256"]
    assert meta.images == index.digest
    assert meta.entropy_model is None
    pixels = views(index.read(4), 64, (1.1,), ten_crop=True)
    assert_tokens_of(shards[1].tokens[10:20], tmp_path, pixels)
    assert len(np.unique(shards[1].tokens)) > 5


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_image_has_the_same_tokens_in_shards_of_any_size(tmp_path, inputs, split, monkeypatch):
    whole = {}
    for count in (1, 3):
        write_experiment(tmp_path, codes={f"{split}_shards": count})
        parts = [run(inputs, split, shard, tmp_path / f"{count}-{shard}.parquet") for shard in range(count)]
        whole[count] = [np.concatenate([getattr(part, name) for part in parts]) for name in ("images", "tokens")]
    for one, three in zip(whole[1], whole[3], strict=True):
        assert np.array_equal(one, three)


@pytest.mark.parametrize("size", [1, 3, 4])
def test_every_batch_has_the_same_shape(tmp_path, inputs, size):
    index, shapes = ImageIndex.load(tmp_path / "index.json"), []

    def encoder(pixels):
        shapes.append(pixels.shape)
        return pixels.mean((1, 2)).round().long()

    def cut(image):
        return torch.stack([to_uint8(image.resize((8, 8)))] * 2)

    blocks = list(encode(index, range(2, 9), cut, encoder, size, torch.device("cpu")))
    assert set(shapes) == {(2 * size, 3, 8, 8)}
    assert [len(block) for block in blocks] == [2 * min(size, 7 - first) for first in range(0, 7, size)]


def test_encodes_the_centre_of_held_out_images(tmp_path, inputs):
    rows = run(inputs, "val", 0, tmp_path / "0.parquet")
    assert rows.metadata.views == 1
    index = ImageIndex.load(tmp_path / "index.json")
    pixels = torch.stack([to_uint8(adm_center_crop(index.read(i), 64)) for i in range(10)])
    assert_tokens_of(rows.tokens, tmp_path, pixels)


def test_the_same_work_gives_the_same_bytes(tmp_path, inputs):
    for name in "ab":
        run(inputs, "train", 1, tmp_path / f"{name}.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolution": 128}, r"index\.json was made for another experiment: resolution is 64, expected 128"),
        ({"num_classes": 7}, r"index\.json was made for another experiment: num_classes is 8, expected 7"),
    ],
)
def test_refuses_an_index_of_another_experiment(tmp_path, inputs, change, message):
    write_experiment(tmp_path, **change)
    with pytest.raises(InputError, match=message):
        run(inputs, "train", 0, tmp_path / "0.parquet")
    assert not (tmp_path / "0.parquet").exists()


@pytest.mark.parametrize(("key", "value"), [("vocab_size", 64), ("multipliers", (1, 1, 1))])
def test_refuses_a_tokenizer_of_another_experiment(tmp_path, inputs, key, value):
    config = VQAutoencoder.Config.model_validate(TOKENIZER | {key: value})
    save_model(tmp_path / "tokenizer", VQAutoencoder(config), {})
    with pytest.raises(InputError, match=r"tokenizer was made for another experiment"):
        run(inputs, "train", 0, tmp_path / "0.parquet")


def test_names_an_image_that_has_gone_bad(tmp_path, inputs):
    parquet_of_images(tmp_path / "x.parquet", [b"bad"] * 10, [0] * 10)
    with pytest.raises(InputError, match="image key0 of"):
        run(inputs, "train", 0, tmp_path / "0.parquet")
    assert not (tmp_path / "0.parquet").exists()


def test_refuses_an_image_that_has_changed(tmp_path, inputs):
    files = [image_bytes(sample_image(i, 70 + 9 * i, 150 - 8 * i)) for i in (0, 1, 2, 3, 5, 4, 6, 7, 8, 9)]
    parquet_of_images(tmp_path / "x.parquet", files, [i % 8 for i in range(10)])
    run(inputs, "train", 0, tmp_path / "0.parquet")
    with pytest.raises(InputError, match=r"image key[45] of .*changed since it was indexed"):
        run(inputs, "train", 1, tmp_path / "1.parquet")
    assert not (tmp_path / "1.parquet").exists()


def test_shards_divide_the_images():
    for count, shards in ((10, 3), (10, 10), (1_281_167, 256), (7, 1)):
        parts = [images_of_shard(count, shard, shards, "codes.train_shards") for shard in range(shards)]
        assert [i for part in parts for i in part] == list(range(count))
        assert {len(part) for part in parts} <= {count // shards, count // shards + 1}
    with pytest.raises(InputError, match=r"no shard 3; `codes\.train_shards` is 3"):
        images_of_shard(10, 3, 3, "codes.train_shards")
    with pytest.raises(InputError, match=r"2 images cannot be divided over 3 shards; lower `codes\.val_shards`"):
        images_of_shard(2, 0, 3, "codes.val_shards")
