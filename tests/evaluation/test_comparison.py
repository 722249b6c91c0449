"""All metrics together: what is measured, under which conditions, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dpar.errors import InputError
from dpar.evaluation.comparison import Comparison, class_agreement, comparable, compare, metric_name, noise_floor
from dpar.evaluation.features import Features
from dpar.evaluation.frechet import fit_gaussian, frechet_distance
from dpar.evaluation.inception_score import inception_score
from dpar.evaluation.kernel_distance import kernel_distance, subset_kernel_distance
from dpar.evaluation.precision_recall import precision_recall
from tests.evaluation.tiny import CLASSES, gaussian_features


def test_it_gathers_each_metric_with_its_conditions():
    samples, reference = gaussian_features(90), gaussian_features(120, 1, shift=0.5)
    found = compare(samples, reference, split_size=30, k=4)
    a, b = torch.from_numpy(samples.features), torch.from_numpy(reference.features)
    nearest, score = precision_recall(a, b, 4), inception_score(torch.from_numpy(samples.logits), 30)
    assert found.values == {
        "frechet_distance": frechet_distance(fit_gaussian(a), fit_gaussian(b)),
        "spatial_frechet_distance": None,
        "kernel_distance": kernel_distance(a, b),
        "precision": nearest.precision,
        "recall": nearest.recall,
        "inception_score": score.mean,
        "inception_score_sd": score.std,
        "class_agreement": pytest.approx(2 / 3),
    }
    assert found.conditions == {
        "samples": 90,
        "reference_samples": 120,
        "reference_statistics": "of the reference images",
        "dims": 4,
        "k": 4,
        "kernel": "all pairs",
        "dtype": "float64",
        "splits": 3,
        "split_size": 30,
        "order": "as in the file",
    }
    assert found.warnings == []


def test_features_alone_have_no_score_and_no_agreement():
    samples = Features(gaussian_features(60).features)
    found = compare(samples, Features(gaussian_features(60, 1).features), split_size=30)
    assert (found.values["inception_score"], found.values["class_agreement"]) == (None, None)
    assert "splits" not in found.conditions


def test_a_sorted_file_is_shuffled_with_a_recorded_seed_or_warned_of():
    mixed, reference = gaussian_features(300), gaussian_features(300, 1)
    ordered = mixed.take(np.argsort(mixed.labels, kind="stable"))
    plain, shuffled = (compare(x, reference, split_size=50, seed=7) for x in (mixed, ordered))
    warned = compare(ordered, reference, split_size=50, shuffle=False)
    assert shuffled.conditions["order"] == "shuffled with seed 7, because the file is sorted by class"
    assert shuffled.values["inception_score"] == pytest.approx(plain.values["inception_score"], rel=0.05)
    assert warned.values["inception_score"] < 0.7 * plain.values["inception_score"]
    assert "sorted by class" in warned.warnings[0]
    unlabelled = compare(replace(ordered, labels=None), reference, split_size=50)
    assert unlabelled.conditions["order"].startswith("shuffled")
    once = compare(ordered, reference, split_size=300)
    assert once.conditions["order"] == "as in the file"


def test_copies_within_a_set_and_of_the_reference_are_warned_of():
    samples, reference = gaussian_features(90), gaussian_features(120, 1)
    again = np.r_[np.arange(80), np.arange(10)]
    (said,) = compare(samples.take(again), reference, split_size=30).warnings
    assert said == "10 of 90 samples are copies of others by their features, and count again"
    (said,) = compare(samples, reference.take(np.arange(120) % 60), split_size=30).warnings
    assert said == "60 of 120 reference images are copies of others by their features, and count again"
    (said,) = compare(reference.take(np.arange(60)), reference, split_size=30).warnings
    assert said == "60 of 60 samples are reference images too by their features: no new images"


def test_classes_of_other_shares_are_warned_of_beyond_the_chance_of_a_draw():
    samples, reference = gaussian_features(900), gaussian_features(900, 1)
    many = reference.take(np.flatnonzero((reference.labels != 0) | (np.arange(900) % 2 == 0)))
    (said,) = compare(samples, many, split_size=300).warnings
    assert said.startswith("the classes have other shares: 13% of the samples would have to be of another class")
    assert "`sampling.labels: training`" in said
    assert compare(samples.take(np.arange(30)), many, split_size=30).warnings == [
        "30 samples are few for features of 4 dimensions: 10 times as many are advised"
    ]
    assert compare(samples, replace(many, labels=None), split_size=300).warnings == []
    large = replace(samples, labels=samples.labels * 2**29)  # as a foreign file may count them
    assert len(compare(large, many, split_size=300).warnings) == 1
    rows = np.random.default_rng(0).permutation(len(many))
    assert compare(many.take(rows[:400]), many.take(rows[400:]), split_size=300).warnings == []


def test_stored_statistics_stand_for_the_set_that_they_are_of():
    samples, large = gaussian_features(60), gaussian_features(500, 1, shift=1.0)
    statistics = {"features": fit_gaussian(torch.from_numpy(large.features))}
    found = compare(samples, replace(large.take(np.arange(40)), statistics=statistics), split_size=30)
    assert found.values["frechet_distance"] == compare(samples, large, split_size=30).values["frechet_distance"]
    assert found.conditions["reference_samples"] == 40
    assert found.conditions["reference_statistics"] == "stored in the reference"


def test_spatial_features_have_a_distance_of_their_own():
    samples = replace(gaussian_features(60), spatial=gaussian_features(60, 2, 3).features)
    reference = replace(gaussian_features(60, 1), spatial=gaussian_features(60, 3, 3).features)
    expected = (fit_gaussian(torch.from_numpy(x.spatial)) for x in (samples, reference))
    assert compare(samples, reference, split_size=30).values["spatial_frechet_distance"] == frechet_distance(*expected)


def test_sets_too_large_for_all_pairs_have_kid_from_subsets(monkeypatch):
    monkeypatch.setattr("dpar.evaluation.comparison.ALL_PAIRS", 1e4)
    samples, reference = gaussian_features(90), gaussian_features(120, 1)
    found = compare(samples, reference, split_size=30, seed=3)
    assert found.conditions["kernel"] == "100 random subsets of 1000, seed 3"
    a, b = torch.from_numpy(samples.features), torch.from_numpy(reference.features)
    assert found.values["kernel_distance"] == subset_kernel_distance(a, b, seed=3)


def test_few_images_are_warned_of_and_too_few_refused():
    found = compare(gaussian_features(30), gaussian_features(50, 1), split_size=30)
    assert found.warnings == ["30 samples are few for features of 4 dimensions: 10 times as many are advised"]
    with pytest.raises(InputError, match="seed 0: 4 samples are too few"):
        compare(gaussian_features(4), gaussian_features(50, 1), split_size=4)


def test_a_network_that_tells_no_images_apart_is_warned_of():
    same = [replace(gaussian_features(60, i), features=np.ones((60, 4), np.float32)) for i in (0, 1)]
    told = [f"the features of all {side} are equal" for side in ("samples", "reference images")]
    assert [w.partition(":")[0] for w in compare(*same, split_size=60).warnings] == told
    assert compare(gaussian_features(60), gaussian_features(60, 1), split_size=60).warnings == []


@pytest.mark.parametrize(
    ("sampling", "warnings"),
    [
        ({"shards": 4}, ["3 of the 4 shards of these samples: the rest is not drawn or named"]),
        ({"shards": 3}, []),
        ({}, []),
        (None, []),
    ],
)
def test_a_part_of_a_set_of_samples_is_said(sampling, warnings):
    samples = gaussian_features(50, shards=3, drawn={"sampling": sampling, "seed": 0})
    assert compare(samples, gaussian_features(50, 1), split_size=50).warnings == warnings


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        ({"extractor_sha256": "cd" * 32}, "extractor_sha256 of the samples"),
        ({"resolution": 32}, "resolution of the"),
        ({"resize": "Pillow's bicubic"}, "resize of the samples .* is none, that of the reference .* is Pillow"),
    ],
)
def test_other_networks_and_resolutions_are_not_compared(conditions, said):
    with pytest.raises(InputError, match=said):
        compare(gaussian_features(50), gaussian_features(50, 1, **conditions), split_size=50)


def test_other_dimensions_are_not_compared():
    with pytest.raises(InputError, match="of 4 dimensions and the reference of 5"):
        compare(gaussian_features(60), gaussian_features(60, 1, 5), split_size=60)


def test_the_noise_floor_is_of_disjoint_real_halves_and_fixed_by_its_seed():
    reference = gaussian_features(600)
    floor = noise_floor(reference, size=300, halvings=3, splits=2, seed=1)
    assert set(floor) == {
        "frechet_distance",
        "kernel_distance",
        "precision",
        "recall",
        "inception_score",
        "inception_score_sd",
        "class_agreement",
    }
    distance = floor["frechet_distance"]
    assert len(set(distance["values"])) == 3
    assert distance["mean"] == pytest.approx(np.mean(distance["values"]))
    assert distance["sd"] == pytest.approx(np.std(distance["values"], ddof=1))
    assert 0 < distance["mean"] < 0.1
    assert floor["recall"]["mean"] > 0.9
    assert noise_floor(reference, size=300, halvings=3, splits=2, seed=1) == floor
    assert noise_floor(reference, size=300, halvings=3, splits=2, seed=2) != floor
    smaller = noise_floor(reference, size=100, halvings=3, splits=2, seed=1)
    assert smaller["frechet_distance"]["mean"] > distance["mean"]


def test_the_halves_of_a_noise_floor_share_no_image(monkeypatch):
    compared = []
    monkeypatch.setattr(
        "dpar.evaluation.comparison.compare", lambda a, b, **_: compared.append((a, b)) or Comparison({}, {})
    )
    reference = gaussian_features(99)
    noise_floor(reference, size=45, halvings=3, splits=2)
    for first, second in compared:
        rows = {row.tobytes() for half in (first, second) for row in half.features}
        assert (len(first), len(second), len(rows)) == (45, 45, 90)
        assert rows <= {row.tobytes() for row in reference.features}
        assert [np.bincount(half.labels).tolist() for half in (first, second)] == [[15, 15, 15]] * 2
        assert len(set(first.labels[:20])) == 3
    assert len(compared) == 3


def test_only_inceptions_distance_is_called_fid():
    assert metric_name(gaussian_features(9)) == "FD[classifier,4]"
    assert metric_name(gaussian_features(9, extractor="inception")) == "FID"
    assert metric_name(Features(np.zeros((9, 4), np.float32))) == "FD[features,4]"


def test_class_agreement_is_the_classifiers_alone():
    samples = gaussian_features(90)
    assert class_agreement(samples) == pytest.approx(2 / 3)
    assert class_agreement(replace(samples, labels=(samples.labels + 1) % CLASSES)) == pytest.approx(1 / 3)
    assert class_agreement(gaussian_features(90, extractor="inception")) is None
    assert class_agreement(replace(samples, labels=None)) is None


def test_folders_of_other_classes_than_the_classifiers_have_no_agreement():
    few = gaussian_features(90, class_folders=CLASSES - 1)
    assert class_agreement(few) is None
    (said,) = compare(few, gaussian_features(50, 1), split_size=50).warnings
    assert said.startswith(f"no class agreement: the samples lie in {CLASSES - 1} class folders, and the classifier")
    moved = gaussian_features(90, class_folders=CLASSES, class_order="10 is class 2")
    assert class_agreement(moved) == pytest.approx(2 / 3)
    (said,) = compare(moved, gaussian_features(50, 1), split_size=50).warnings
    assert "in the order of their names (10 is class 2)" in said
    assert not compare(gaussian_features(90, class_folders=CLASSES), gaussian_features(50, 1), split_size=50).warnings


def test_classes_of_other_names_have_no_agreement():
    other = gaussian_features(90, other_classes="FOLDER holds 1 classes that the training images lack")
    assert class_agreement(other) is None
    (said,) = compare(other, gaussian_features(50, 1), split_size=50).warnings
    assert said == "no class agreement: FOLDER holds 1 classes that the training images lack"


def test_only_adms_protocol_is_comparable_to_published_numbers():
    usual = {"split_size": 5000, "k": 3}
    yes, reason = comparable(gaussian_features(60), gaussian_features(60), usual)
    assert not yes
    assert reason == (
        "the feature network is classifier, not Inception v3 of 2015-12-05; the reference is a set of images, "
        "not ADM's file of training-set statistics; 60 samples, not 50,000; images of 16 pixels, not 256"
    )
    samples = gaussian_features(50_000, extractor="inception", resolution=256)
    reference = replace(samples.take(np.arange(100)), statistics={"features": fit_gaussian(torch.randn(9, 4))})
    assert comparable(samples, reference, usual)[0]
    for other, said in (
        ({"k": 5}, "with k = 5, not 3"),
        ({"split_size": 500}, "splits of 500, not 5,000"),
    ):
        yes, reason = comparable(samples, reference, usual | other)
        assert not yes
        assert reason.endswith(said)
    clean = replace(samples, conditions=samples.conditions | {"profile": "clean", "resize": "Pillow"})
    assert comparable(clean, reference, usual) == (False, "images were resized by Pillow, not as ADM does")
    own = replace(reference, conditions={"drawn": {"made_from": "my/photos"}})
    assert comparable(samples, own, usual) == (False, "the reference was made from my/photos, not by ADM")
