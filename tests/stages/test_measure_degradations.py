"""The stage measure_degradations: distances of images made worse, from a reference that knows the network."""

import numpy as np
import pytest
import torch

from dpar import tracking
from dpar.data.images import ImageIndex
from dpar.errors import InputError
from dpar.evaluation.degradations import STRENGTHS
from dpar.evaluation.features import extract, index_batches, open_extractor, save_features
from dpar.evaluation.frechet import fit_gaussian, frechet_distance
from dpar.report.tables import with_spread
from dpar.stages import measure_degradations
from dpar.stages.measure_degradations import Degrader, measure
from dpar.tokenizer.autoencoder import VQAutoencoder
from dpar.weights import save_model
from tests.evaluation.tiny import SIDE, gaussian_features, read, write_classifier, write_experiment, write_index

SIZES = {"vocab_size": 16, "code_dim": 4, "channels": 8, "groups": 4, "multipliers": [1], "pixel_shuffle": 2}
SIZES |= {"residual_blocks": 1, "z_channels": 8, "attention": False}


@pytest.fixture
def flags(tmp_path):
    """Flags that measure 20 of 60 pictures through random networks."""
    torch.manual_seed(0)
    training = {"steps": 1, "perceptual_weight": 0}
    experiment = write_experiment(tmp_path, sampling__num_images=20, tokenizer=SIZES | {"training": training})
    save_model(tmp_path / "tokenizer", VQAutoencoder(VQAutoencoder.Config.model_validate(SIZES)), {})
    extractor = open_extractor(write_classifier(tmp_path / "classifier"), torch.device("cpu"))
    save_features(tmp_path / "reference.npz", gaussian_features(90, extractor_sha256=extractor.sha256))
    return [
        "--experiment", str(experiment), "--index", str(write_index(tmp_path, "val", 20)),
        "--tokenizer", str(tmp_path / "tokenizer"), "--extractor", str(tmp_path / "classifier"),
        "--reference", str(tmp_path / "reference.npz"), "--output", str(tmp_path / "found.json"),
        "--markdown", str(tmp_path / "found.md"),
    ]  # fmt: skip


def test_it_writes_distances_of_all_kinds_and_their_conditions(tmp_path, flags):
    measure_degradations.main(flags)
    found = read(tmp_path / "found.json")
    assert found["metric"] == "FD[classifier,4]"
    assert (found["conditions"]["samples"], found["conditions"]["draws"]) == (20, 3)
    for kind, strengths in STRENGTHS.items():
        assert [row["strength"] for row in found["kinds"][kind]] == [0, *strengths]
        assert all(row["mean"] > 0 and row["sd"] > 0 for row in found["kinds"][kind])
        means = [row["mean"] for row in found["kinds"][kind]]
        assert found["ordered"][kind] == (means == sorted(means) and len(set(means)) == len(means))
    plain = [found["kinds"][kind][0]["mean"] for kind in STRENGTHS]
    assert plain[0] == plain[1] == plain[2] != plain[3]  # the tokenizer is one

    index = ImageIndex.load(tmp_path / "index/val.json")
    extractor = open_extractor(tmp_path / "classifier", torch.device("cpu"))
    goal, values = fit_gaussian(torch.from_numpy(gaussian_features(90).features)), []
    for draw in range(3):
        generator = torch.Generator().manual_seed(draw)
        torch.randperm(3, generator=generator)
        rows = torch.randperm(60, generator=generator)[:20].numpy()
        features = extract(extractor, index_batches(index, rows, SIDE))[0]
        values.append(frechet_distance(goal, fit_gaussian(torch.from_numpy(features))))
    assert plain[0] == pytest.approx(np.mean(values))
    text = (tmp_path / "found.md").read_text()
    assert text.count("\n| ") == 5
    assert f"| 0: {with_spread(float(np.mean(values)), float(np.std(values, ddof=1)))} |" in text


def test_a_set_depends_on_kind_strength_and_draw_alone(tmp_path):
    index = ImageIndex.load(write_index(tmp_path, "val", 20))
    torch.manual_seed(0)
    worse = Degrader(index, SIDE, VQAutoencoder(VQAutoencoder.Config.model_validate(SIZES)).eval(), 24, seed=0)

    def draw_set(kind, strength, draw=0):
        return torch.cat(list(worse(kind, strength, draw)))

    for kind, strengths in STRENGTHS.items():
        strong = draw_set(kind, strengths[-1])
        assert strong.dtype == torch.uint8
        assert torch.equal(strong, draw_set(kind, strengths[-1]))
        assert not torch.equal(strong, draw_set(kind, 0.0))
        assert not torch.equal(strong, draw_set(kind, strengths[-1], 1))
    assert torch.equal(draw_set("blur", 0.0), draw_set("noise", 0.0))


def test_kinds_are_ordered_where_every_mean_is_above_the_one_before():
    def distance(kind, strength, draw):
        return draw - (strength if kind == "noise" else -strength)

    found = measure(distance)
    assert found["ordered"] == {kind: kind != "noise" for kind in STRENGTHS}
    assert found["kinds"]["blur"][1] == {"strength": 0.4, "mean": pytest.approx(1.4), "sd": pytest.approx(1.0)}


def test_a_reference_of_another_network_is_refused(tmp_path, flags):
    save_features(tmp_path / "reference.npz", gaussian_features(90))
    with pytest.raises(InputError, match=r"was made by another network \(sha256 abababababab\.\.\.\)"):
        measure_degradations.main(flags)
    assert not (tmp_path / "found.json").exists()


def test_images_too_few_for_the_features_are_refused(tmp_path, flags):
    few = write_index(tmp_path / "few", "val", 4)
    with pytest.raises(InputError, match=r"sets of 4 images are too few for features of 4 .* has 4 of its 12 images"):
        measure_degradations.main([*flags, "--index", str(few)])
    assert not (tmp_path / "found.json").exists()


@pytest.mark.parametrize(
    ("path", "maker", "wanted"),
    [
        ("index/val.json", "index_images[train]", r"index_images\[val\]"),
        ("tokenizer/model.safetensors", "train_classifier", "train_tokenizer"),
        ("classifier/config.json", "evaluate_tokenizer", "train_classifier"),
        ("reference.npz", "extract_features[dpar/seed0]", r"extract_features\[features/reference\]"),
    ],
)
def test_what_another_job_has_made_is_refused(tmp_path, flags, path, maker, wanted):
    rule = maker.partition("[")[0]
    outputs = [tmp_path / path]
    with tracking.job(rule=rule, experiment=tmp_path / "experiment.json", name=maker, inputs=[], outputs=outputs):
        pass
    with pytest.raises(InputError, match=f"expected is what {wanted}"):
        measure_degradations.main(flags)
    assert not (tmp_path / "found.json").exists()
