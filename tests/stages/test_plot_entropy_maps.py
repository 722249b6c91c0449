"""The stage that draws entropy maps with patches."""

import numpy as np
from PIL import Image

from dpar.data.images import ImageIndex, open_images
from dpar.data.manifest import Manifest
from dpar.data.shards import CodeMetadata, CodeRows, write_shard
from dpar.experiment.loading import parse_experiment
from dpar.files import write_json
from dpar.stages import plot_entropy_maps
from tests.experiment.test_settings import demo


def test_images_run_from_few_patches_to_many_in_different_classes():
    patches, labels = np.array([9, 1, 5, 3, 7, 2]), np.array([0, 0, 1, 1, 2, 2])
    chosen = plot_entropy_maps.spread(patches, labels, 3)
    assert len(set(chosen)) == 3
    assert list(patches[chosen]) == sorted(patches[chosen])
    assert len({int(labels[i]) for i in chosen}) == 3


def test_the_outlines_are_those_of_the_calibrated_threshold(tmp_path, monkeypatch):
    experiment = parse_experiment(demo(images__resolution=32, images__num_classes=2), "test")
    grid = experiment.grid
    assert grid == (4, 4)
    count, length = 4, 16
    for number in range(count):
        path = tmp_path / "real" / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((32, 32, 3), 50 * number, np.uint8)).save(path)
    index = ImageIndex.build(open_images("folder", str(tmp_path / "real")), resolution=32, num_classes=2)
    index.save(tmp_path / "val.json")
    entropy = np.full((count, length), 1.0, np.float32)
    entropy[:, 0] = np.inf
    entropy[:, 6] = 3.0  # the second token of the second row opens a patch in addition to those of Algorithm 3
    metadata = CodeMetadata(
        grid=grid, vocab_size=256, resolution=32, views=1, tokenizer="t" * 64, entropy_model="e" * 64
    )
    rows = CodeRows(
        tokens=np.zeros((count, length), np.uint16),
        entropy=entropy,
        labels=np.asarray(index.labels, np.int32),
        images=np.arange(count, dtype=np.int32),
        views=np.zeros(count, np.int16),
        metadata=metadata,
    )
    write_shard(tmp_path / "scored" / "00000.parquet", rows)
    Manifest.build([tmp_path / "scored" / "00000.parquet"], tmp_path / "scored" / "manifest.json").save()
    write_json(tmp_path / "thresholds.json", {"p_avg": {"1.8": {"threshold": 2.0, "achieved": 1.8}}})
    write_json(tmp_path / "experiment.json", experiment.model_dump(mode="json"))
    drawn = {}

    def remember(images, entropies, ids, threshold, draw=plot_entropy_maps.entropy_maps):
        drawn.update(images=images, ids=ids, threshold=threshold)
        return draw(images, entropies, ids, threshold)

    monkeypatch.setattr(plot_entropy_maps, "entropy_maps", remember)
    plot_entropy_maps.main(
        [
            *("--experiment", str(tmp_path / "experiment.json"), "--index", str(tmp_path / "val.json")),
            *("--manifest", str(tmp_path / "scored" / "manifest.json")),
            *("--thresholds", str(tmp_path / "thresholds.json"), "--output", str(tmp_path / "maps.png")),
        ]
    )
    assert drawn["threshold"] == 2.0
    # P_max is 4 and rows have 4 tokens: {0} {1 2 3} | {4 5} {6 7} | {8 ..} | {12 ..}
    assert drawn["ids"][0].tolist() == [[0, 1, 1, 1], [2, 2, 3, 3], [4] * 4, [5] * 4]
    assert drawn["images"].shape == (4, 32, 32, 3)
    assert (tmp_path / "maps.png").read_bytes().startswith(b"\x89PNG")
