"""The stage that continues held-out images."""

import numpy as np
import pytest
import torch
from PIL import Image

from dpar.data.images import ImageIndex, open_images
from dpar.errors import InputError
from dpar.files import read_json, write_json
from dpar.sampling.drawing import ImageSampler
from dpar.sampling.networks import load_networks
from dpar.stages import complete_images
from tests.stages.sampled import CLASSES, write_results

COLUMNS = 4  # of tokens


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    results = write_results(tmp_path_factory.mktemp("results"), cfg_interval=[0.0, 0.9])
    random = np.random.default_rng(0)
    for label in range(CLASSES):
        path = results / "real" / f"class{label}" / "0.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    index = ImageIndex.build(open_images("folder", str(results / "real")), resolution=8, num_classes=CLASSES)
    index.save(results / "val.json")
    return results


def complete(results, model="dpar", cell=None):
    flags = {
        "cell": cell or model,
        "experiment": results / "experiment.json",
        "index": results / "val.json",
        "model-folder": results / "models" / model / "step1",
        "entropy-model": results / "entropy_model",
        "tokenizer": results / "tokenizer",
        "output": results / "figures" / f"{model}.png",
    }
    complete_images.main([word for flag, value in flags.items() for word in (f"--{flag}", str(value))])


@pytest.mark.parametrize("model", ["dpar", "llamagen"])
def test_the_upper_half_is_kept_and_the_rest_drawn_for_several_classes(results, model, monkeypatch):
    drawn, shown, draw = [], {}, ImageSampler.draw

    def remember(self, request):
        result = draw(self, request)
        drawn.extend(zip(request.labels.tolist(), request.prefix, result.tokens, strict=True))
        assert self.settings.cfg_interval == (0.0, 0.9)
        assert (self.rule is None) == (model == "llamagen")
        return result

    def keep(columns, names, layout=complete_images.sample_columns):
        shown.update(columns)
        return layout(columns, names)

    monkeypatch.setattr(ImageSampler, "draw", remember)
    monkeypatch.setattr(complete_images, "sample_columns", keep)
    complete(results, model)
    assert [label for label, _, _ in drawn] == [0, 0, 0, 0, 1, 2, 1, 1, 1, 1, 2, 0, 2, 2, 2, 2, 0, 1]
    for _, prefix, tokens in drawn:
        assert len(prefix) == 2 * COLUMNS
        assert (tokens[: 2 * COLUMNS] == prefix).all()
    for image in range(CLASSES):
        rests = {tuple(tokens[2 * COLUMNS :].tolist()) for _, _, tokens in drawn[6 * image : 6 * image + 6]}
        assert len(rests) == 6
    assert [block.shape[:2] for block in shown.values()] == [(3, 1), (3, 1), (3, 4), (3, 2)]
    assert np.array_equal(shown["kept"][:, :, :4], shown["held out"][:, :, :4])
    assert (shown["kept"][:, :, 4:] == 255).all()
    assert (results / "figures" / f"{model}.png").read_bytes().startswith(b"\x89PNG")


def test_pictures_of_another_size_are_refused(results):
    networks = load_networks(
        results / "models/llamagen/step1", None, results / "tokenizer", precision="float32", device=torch.device("cpu")
    )
    with pytest.raises(InputError, match="the images have 16 x 16 pixels, the model draws 8 x 8"):
        networks.tokens(np.zeros((1, 16, 16, 3), np.uint8))


def test_the_guidance_is_the_cells_own(results, monkeypatch):
    experiment = read_json(results / "experiment.json")
    experiment["tables"]["main"]["rows"].append({"model": "dpar", "sampling.cfg_scale": 3.5})
    write_json(results / "experiment.json", experiment)
    scales, draw = set(), ImageSampler.draw

    def remember(self, request):
        scales.add(self.settings.cfg_scale)
        return draw(self, request)

    monkeypatch.setattr(ImageSampler, "draw", remember)
    complete(results, cell="dpar-cfg3.5")
    assert scales == {3.5}
    with pytest.raises(InputError, match="no such set of samples; there are dpar,"):
        complete(results, cell="dpar-cfg9")
