"""Our metrics compared with independent ones (torch-fidelity, prdc, clean-fid), where these can be imported.

They are not among the dependencies: each imports torchvision, whose registry wheel is built for CUDA. `make test` puts
them next to the environment; anywhere else: `pip install --no-deps torchvision torch-fidelity prdc clean-fid`.
"""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

from dpar.commands import evaluate
from dpar.evaluation.comparison import gaussian_of
from dpar.evaluation.features import Extractor
from dpar.evaluation.frechet import fit_gaussian, frechet_distance
from dpar.evaluation.image_sets import open_set
from dpar.evaluation.inception import Inception
from dpar.evaluation.inception_score import inception_score
from dpar.evaluation.kernel_distance import kernel_distance
from dpar.evaluation.passes import describe, resize_clean
from dpar.evaluation.precision_recall import precision_recall


@pytest.fixture(scope="module", autouse=True)
def operators():
    """The two operators that a CUDA build of torchvision looks for when it is imported with a CPU build of torch."""
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


@pytest.mark.parametrize("shape", [(64, 64), (256, 256), (299, 299), (500, 375), (31, 700)])
def test_clean_fids_resize_is_the_same_to_the_bit(shape):
    pytest.importorskip("cleanfid")
    from cleanfid.resize import build_resizer

    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    theirs = build_resizer("clean")(pixels)
    np.testing.assert_array_equal(resize_clean(torch.from_numpy(pixels).permute(2, 0, 1)).permute(1, 2, 0), theirs)


@pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning")
def test_clean_fid_finds_the_same_between_two_folders(tmp_path):
    pytest.importorskip("cleanfid")
    from cleanfid import fid

    def network(images):
        """Six features that only the right resize, range and order of colours give."""
        return torch.cat([images.mean((2, 3)), images[:, :, ::2, ::3].std((2, 3))], 1)

    random = np.random.default_rng(0)
    for folder, light in (("a", 30), ("b", 60)):
        (tmp_path / folder).mkdir()
        for number in range(20):
            pixels = random.integers(0, 128, (40 + number, 50, 3)) + random.integers(0, light, 3)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / folder / f"{number:02d}.png")
    settings = {"mode": "clean", "num_workers": 0, "device": torch.device("cpu"), "verbose": False}
    try:
        theirs = fid.compute_fid(
            str(tmp_path / "a"), str(tmp_path / "b"), custom_feat_extractor=network, use_dataparallel=False, **settings
        )
    except TypeError:
        pytest.skip("clean-fid calls scipy's sqrtm in a form that SciPy 1.18 has dropped")
    extractor = Extractor("inception", "ab" * 32, None, lambda images: (network(images),))
    samples, reference = (describe(open_set([tmp_path / name]), extractor, profile="clean") for name in "ab")
    ours = frechet_distance(gaussian_of(samples), gaussian_of(reference))
    assert ours == pytest.approx(theirs, rel=1e-5)  # float32 features, whose batches differ
    found = evaluate.clean_fid(samples, reference)
    assert found["frechet_distance"] == pytest.approx(ours, rel=1e-6)


@pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning")
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
