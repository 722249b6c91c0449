"""Our metrics beside independent ones (torch-fidelity, prdc, clean-fid), where these can be imported.

They are not among the dependencies: each imports torchvision, whose registry wheel is built for CUDA. To run these
tests: `pip install --no-deps torchvision torch-fidelity prdc clean-fid scikit-learn joblib threadpoolctl requests`.
"""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from dpar.evaluation.frechet import fit_gaussian, frechet_distance
from dpar.evaluation.inception import Inception
from dpar.evaluation.inception_score import inception_score
from dpar.evaluation.kernel_distance import kernel_distance
from dpar.evaluation.precision_recall import precision_recall


@pytest.fixture(scope="module", autouse=True)
def operators():
    """The two operators that a CUDA build of torchvision looks for when it is imported beside a CPU build of torch."""
    if find_spec("torchvision") is None or torch.cuda.is_available():
        yield
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    yield library


@pytest.fixture(scope="module")
def features():
    generator = torch.Generator().manual_seed(0)
    samples, reference = torch.randn(600, 32, generator=generator), torch.randn(500, 32, generator=generator)
    return samples, 1.1 * reference + 0.1


def test_torch_fidelity_computes_the_same_numbers(features):
    pytest.importorskip("torch_fidelity")
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

    samples, reference = features
    statistics = [metric_fid.fid_features_to_statistics(x.double()) for x in features]
    theirs = metric_fid.fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
    ours = frechet_distance(fit_gaussian(samples), fit_gaussian(reference))
    assert ours == pytest.approx(theirs, rel=1e-6)  # it keeps a float32 mean

    logits = 3 * samples[:, :10]
    score, splits = inception_score(logits, 60), metric_isc.isc_features_to_metric(logits, splits=10, shuffle=False)
    assert score.mean == pytest.approx(splits["inception_score_mean"], rel=1e-9)
    assert score.std == pytest.approx(splits["inception_score_std"], rel=1e-9)

    settings = {"kid_degree": 3, "kid_gamma": None, "kid_coef0": 1, "rng_seed": 0, "verbose": False}
    subsets = metric_kid.kid_features_to_metric(*features, kid_subsets=200, kid_subset_size=400, **settings)
    mean, spread = subsets["kernel_inception_distance_mean"], subsets["kernel_inception_distance_std"]
    assert abs(kernel_distance(samples, reference) - mean) < spread  # theirs is of random subsets

    settings = {"prc_neighborhood": 3, "prc_batch_size": 1000, "save_cpu_ram": False, "verbose": False}
    theirs = metric_prc.prc_features_to_metric(samples, reference, **settings)
    ours = precision_recall(samples, reference)
    assert (ours.precision, ours.recall) == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-6)


def test_torch_fidelitys_inception_is_the_same_network(tmp_path):
    pytest.importorskip("torch_fidelity")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    network = Inception().eval()
    for name, tensor in network.state_dict().items():
        if name.endswith(("bn.bias", "running_mean")):
            tensor.normal_(0, 0.1)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    theirs = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(tmp_path / "weights.pth")
    )
    images = torch.randint(0, 256, (2, 3, 64, 48), dtype=torch.uint8)
    with torch.inference_mode():
        pool, logits = theirs.eval()(images)
        ours = network(images.float())
    torch.testing.assert_close(ours.pool, pool, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.logits, logits, rtol=1e-5, atol=1e-5)


def test_prdc_finds_the_same_precision_and_recall(features):
    prdc = pytest.importorskip("prdc")
    samples, reference = (x.double().numpy() for x in features)
    theirs = prdc.compute_prdc(real_features=reference, fake_features=samples, nearest_k=3)
    ours = precision_recall(*features)
    assert (ours.precision, ours.recall) == (theirs["precision"], theirs["recall"])


def test_clean_fid_finds_the_same_distance(features):
    pytest.importorskip("cleanfid")
    from cleanfid import fid

    samples, reference = (x.double().numpy() for x in features)
    moments = [part for x in (samples, reference) for part in (x.mean(0), np.cov(x, rowvar=False))]
    try:
        theirs = fid.frechet_distance(*moments)
    except TypeError:
        pytest.skip("clean-fid calls scipy's sqrtm in a form that SciPy 1.18 has dropped")
    assert frechet_distance(*map(fit_gaussian, features)) == pytest.approx(theirs, rel=1e-9)
