"""The sampler as on a GPU: the tokens of the CPU, at most one wait per token, none where nothing is to be decided."""

import pytest
import torch

from dpar.experiment.loading import load_experiment
from dpar.model.dpar import DPAR
from dpar.model.llamagen import LlamaGen
from dpar.patches.rule import PatchRule
from dpar.sampling import steps
from dpar.sampling.guidance import DrawSettings
from dpar.sampling.preview import previewer
from dpar.sampling.sampler import sample
from dpar.weights import load_model
from tests.rehearsal import Log, on_gpu, on_host, rehearsing
from tests.sampling.test_sampler import CLASSES, RULE, SIZES, STATIC, request, with_random_weights
from tests.stages.sampled import THRESHOLD, write_results

LAYERS = {"layers": 2, "encoder_layers": 2, "decoder_layers": 2}
DYNAMIC = {"rule": RULE, "settings": DrawSettings(2.5)}
PREFIX = torch.randint(0, 40, (5, 4), generator=torch.Generator().manual_seed(3))
MODES = {
    "dynamic": DYNAMIC,
    "class alone": DYNAMIC | {"settings": DrawSettings(1.0)},
    "interval": DYNAMIC | {"settings": DrawSettings(2.5, (0.25, 0.75))},
    "truncated": DYNAMIC | {"settings": DrawSettings(2.5, temperature=0.9, top_k=20, top_p=0.9)},
    "completion": DYNAMIC | {"prefix": PREFIX},
    "no rows": DYNAMIC | {"rule": PatchRule(grid_width=4, threshold=2.6, row_boundary=False)},
    "static": {"rule": STATIC, "settings": DrawSettings(2.5)},
    "llamagen": {"rule": None, "settings": DrawSettings(2.5, top_k=20)},
    "llamagen completion": {"rule": None, "settings": DrawSettings(2.5, (0.25, 0.75)), "prefix": PREFIX},
}
ASKED = {name for name, mode in MODES.items() if mode["rule"] is not None and mode["rule"].is_dynamic}


def networks(rule: PatchRule | None) -> tuple[DPAR | LlamaGen, LlamaGen | None]:
    """A model of the kind that such patches need, and its entropy model."""
    if rule is None:
        return with_random_weights(LlamaGen(LlamaGen.Config(layers=2, num_classes=CLASSES, **SIZES))), None
    model = with_random_weights(DPAR(DPAR.Config(num_classes=CLASSES, **LAYERS, **SIZES)))
    return model, with_random_weights(LlamaGen(LlamaGen.Config(layers=2, **SIZES))) if rule.is_dynamic else None


def rehearse(mode: str) -> list[Log]:
    """A log of each token; an AssertionError if the tokens, entropies or boundaries are not the CPU's."""
    how, here = MODES[mode], networks(MODES[mode]["rule"])
    expected = sample(*here, **request(5), **how)
    logs: list[Log] = []
    with rehearsing() as gpu:
        there, given = [on_gpu(network) for network in here], on_gpu(request(5) | how)
        logging = gpu.logging()
        log = logging.__enter__()

        def next_log(step: object) -> None:
            nonlocal logging, log
            logging.__exit__(None, None, None)
            logs.append(log)
            logging = gpu.logging()
            log = logging.__enter__()

        found = sample(*there, **given, observe=next_log)
        logging.__exit__(None, None, None)
    assert all(tensor.is_cuda for tensor in found if tensor is not None)
    assert torch.equal(on_host(found.tokens), expected.tokens)
    assert torch.equal(on_host(found.starts), expected.starts)
    if expected.entropy is not None:
        assert found.entropy is not None
        torch.testing.assert_close(on_host(found.entropy), expected.entropy)
    return logs


def assert_few_waits(mode: str, logs: list[Log]) -> None:
    """At most one wait per token; none where patches do not depend on entropies; before the first, more."""
    assert len(logs) == 12
    most = 1 if mode in ASKED else 0
    for position, log in enumerate(logs[1:], 1):
        waits = log.waits + log.hidden
        assert waits.total() <= most, f"token {position}: {waits}"


@pytest.mark.parametrize("mode", MODES)
def test_tokens_of_the_cpu_and_few_waits(float64, mode):
    assert_few_waits(mode, rehearse(mode))


def test_previews_draw_on_the_gpu(tmp_path):
    results = write_results(tmp_path)
    experiment = load_experiment(results / "experiment.json")
    rule = PatchRule.of(experiment.patchify, THRESHOLD, 4)

    def preview() -> bytes:
        draw = previewer(
            results / "tokenizer", results / "entropy_model", rule=rule, sampling=experiment.sampling, seed=7
        )
        return draw(load_model(results / "models/dpar/step1", "dpar"))

    expected = preview()
    with rehearsing() as gpu, gpu.logging() as log:
        assert preview() == expected
    assert log.launches > 1000


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_tf32_is_for_the_products_of_the_entropy_model_alone(monkeypatch, precision):
    """Where it is asked for; those of the model and, in another thread, of the tokenizer keep their 24 bits."""
    seen: dict[str, set[bool]] = {"token_entropy": set(), "decoder_step": set(), "encoder_step": set()}
    for name in seen:
        step = getattr(steps, name)

        def noted(*given, name=name, step=step):
            seen[name].add(torch.backends.cuda.matmul.allow_tf32)
            return step(*given)

        monkeypatch.setattr(steps, name, noted)
    how = DYNAMIC | {"settings": DrawSettings(2.5, entropy_precision=precision)}
    with rehearsing():
        sample(*[on_gpu(network) for network in networks(RULE)], **on_gpu(request(2)), **how)
    assert seen == {"token_entropy": {precision == "tf32"}, "decoder_step": {False}, "encoder_step": {False}}
    assert not torch.backends.cuda.matmul.allow_tf32
