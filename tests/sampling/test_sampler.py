"""The cached, ragged engine draws what Algorithm 2 draws, one image at a time, with nothing cached (float64)."""

import copy
from dataclasses import replace
from hashlib import sha256

import pytest
import torch

from dpar.errors import InputError
from dpar.experiment.settings import Patchify
from dpar.model.dpar import DPAR
from dpar.model.entropy import token_entropies
from dpar.model.entropy_regressor import EntropyRegressor
from dpar.model.llamagen import LlamaGen
from dpar.patches.rule import PatchRule
from dpar.sampling import cache, sampler, steps
from dpar.sampling.guidance import DrawSettings
from dpar.sampling.literal import literal
from dpar.sampling.noise import image_seed
from dpar.sampling.sampler import sample

SIZES = {"vocab_size": 40, "grid": (3, 4), "width": 32, "heads": 2}
CLASSES = 3
RULE = PatchRule(grid_width=4, threshold=2.75, max_length=3)
GUIDED = {"rule": RULE, "settings": DrawSettings(2.0)}
STATIC = PatchRule(grid_width=4, static_length=1.81)


def with_random_weights(model):
    """Weights large enough that predictions, entropies and boundaries vary (a new head is zero)."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.25, generator=generator)
    return model.eval().double()


@pytest.fixture(scope="module")
def dpar():
    return with_random_weights(
        DPAR(DPAR.Config(num_classes=CLASSES, layers=2, encoder_layers=2, decoder_layers=2, **SIZES))
    )


@pytest.fixture(scope="module")
def entropy_model():
    return with_random_weights(LlamaGen(LlamaGen.Config(layers=2, **SIZES)))


@pytest.fixture(scope="module")
def null_class():
    return with_random_weights(LlamaGen(LlamaGen.Config(layers=1, num_classes=7, **SIZES)))


@pytest.fixture(scope="module")
def llamagen():
    return with_random_weights(LlamaGen(LlamaGen.Config(layers=2, num_classes=CLASSES, **SIZES)))


def request(count: int) -> dict:
    """Labels and seeds of `count` images."""
    return {
        "labels": torch.arange(count) % CLASSES,
        "seeds": torch.tensor([image_seed(0, image) for image in range(count)]),
    }


def assert_literal(model, entropy_model, images, *, rule, settings, compile=False):
    """The engine on all images at once equals the literal algorithm on each alone, in all that a step has."""
    seen = []
    if compile:
        settings = replace(settings, compile=True)
    result = sample(model, entropy_model, **images, rule=rule, settings=settings, observe=seen.append)
    for i in range(len(images["labels"])):
        alone = {name: None if value is None else value[i : i + 1] for name, value in images.items()}
        expected = literal(model, entropy_model, **alone, rule=rule, settings=settings)
        for t, (step, reference) in enumerate(zip(seen, expected, strict=True)):
            where = f"image {i}, token {t}"
            assert torch.equal(step.opens[i], reference.opens[0]), where
            assert torch.equal(step.tokens[i], reference.tokens[0]), where
            torch.testing.assert_close(step.logits[i], reference.logits[0], msg=where)
            if reference.entropy is None:
                assert step.entropy is None
            else:
                assert step.entropy is not None
                torch.testing.assert_close(step.entropy[i], reference.entropy[0].to(step.entropy), msg=where)
    assert torch.equal(result.tokens, torch.stack([step.tokens for step in seen], 1))
    return result


@pytest.mark.parametrize(
    ("rule", "cfg_scale"),
    [
        (RULE, 2.5),
        (RULE, 1.0),
        (RULE, 0.0),
        (PatchRule(grid_width=4, threshold=2.6, row_boundary=False), 2.5),
        (PatchRule.of(Patchify(p_avg=1.8, max_length=4), 2.9, 4), 2.5),
        (STATIC, 2.5),
        (PatchRule.of(Patchify(strategy="static", p_avg=4), None, 4), 1.0),
    ],
    ids=["all_rules", "class_alone", "null_alone", "entropy_only", "calibrated", "static_fraction", "static"],
)
def test_equals_the_literal_algorithm(dpar, entropy_model, rule, cfg_scale):
    result = assert_literal(dpar, entropy_model, request(4), rule=rule, settings=DrawSettings(cfg_scale))
    if rule.is_dynamic:
        some = result.starts.any(0) & ~result.starts.all(0)
        assert some.sum() >= 3, "all images open patches together: nothing is ragged"


GUIDED_FIRST = {"rule": RULE, "settings": DrawSettings(2.5, (0.0, 0.75))}


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_caches_that_grow_and_are_read_in_pieces(dpar, entropy_model, monkeypatch, rows):
    """Row by row, some rows at a time, and all; over room that is made anew in the middle of rows and images."""
    monkeypatch.setattr(cache, "GROWTH", 5)
    monkeypatch.setattr(cache, "GATHER_BYTES", rows * 10 * 2 * SIZES["width"] * 8)  # keys and values of 8 bytes
    assert_literal(dpar, entropy_model, request(5), **GUIDED_FIRST)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Full capacity from the start, and PyTorch's attention over the part that is filled."""
    monkeypatch.setattr(cache, "on_cpu", lambda like: False)


def test_growing_caches_under_attention_of_pytorch(dpar, entropy_model, monkeypatch):
    """As in bfloat16 on a CPU."""
    monkeypatch.setattr(cache, "GROWTH", 5)
    monkeypatch.setattr(cache, "GATHER_BYTES", 2 * 10 * 2 * SIZES["width"] * 8)
    monkeypatch.setattr(cache, "by_products", lambda like: False)
    assert_literal(dpar, entropy_model, request(5), **GUIDED_FIRST)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_caches_of_a_gpu(dpar, entropy_model, llamagen):
    """Static patches begin in all rows at once, which are then read without a mask."""
    assert_literal(dpar, entropy_model, request(5), **GUIDED_FIRST)
    assert_literal(dpar, None, request(3), rule=STATIC, settings=DrawSettings(2.5))
    assert_literal(llamagen, None, request(2), rule=None, settings=DrawSettings(2.5))


@pytest.fixture
def graphs(monkeypatch):
    """The functions that PyTorch's compiler took, each time it did; what it gives is computed as it is written."""
    taken: list[str] = []

    def compiled(step, **how):
        def backend(graph, inputs):
            taken.append(step.__name__)
            return graph

        return torch_compile(step, backend=backend, **how)

    torch_compile = torch.compile
    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(steps, "try_compiler", lambda device: None)
    monkeypatch.setattr(cache, "GROWTH", 5)
    torch._dynamo.reset()
    steps.compiled.cache_clear()
    yield taken
    torch._dynamo.reset()
    steps.compiled.cache_clear()


PARTS = ["decoder_step", "encoder_step", "patch_transformer_step", "pool_patches", "token_entropy"]


def test_compiles_once_for_all_steps_and_batches(dpar, entropy_model, null_class, llamagen, graphs):
    """Twice where patches open: among all rows, and among those that are gathered."""
    for count in (5, 7):
        assert_literal(dpar, entropy_model, request(count), compile=True, **GUIDED_FIRST)
        assert sorted(graphs) == sorted([*PARTS, "patch_transformer_step"])
    graphs.clear()
    plain = {"rule": RULE, "settings": DrawSettings(1.0)}
    assert_literal(dpar, null_class, request(5), compile=True, **plain)
    begun = sample(dpar, entropy_model, **request(5), **plain).tokens[:, :5]
    whole = sample(dpar, entropy_model, **request(5), rule=RULE, settings=DrawSettings(1.0, compile=True), prefix=begun)
    assert torch.equal(whole.tokens, sample(dpar, entropy_model, **request(5), **plain).tokens)
    others = {"token_entropy", "patch_transformer_step", "pool_patches"}
    assert set(graphs) <= others, "the other gate, or one row, which is for itself"
    graphs.clear()
    assert_literal(llamagen, None, request(3), rule=None, settings=DrawSettings(2.5), compile=True)
    assert graphs == ["token_logits"]


@pytest.mark.usefixtures("as_on_a_gpu")
def test_compiles_once_as_on_a_gpu(dpar, entropy_model, graphs):
    for count in (5, 7):
        assert_literal(dpar, entropy_model, request(count), compile=True, **GUIDED_FIRST)
        assert sorted(graphs) == sorted([*PARTS, "patch_transformer_step"]), "where all rows enter, and where some do"


def test_compiled_code_draws_the_same_images(monkeypatch):
    monkeypatch.setattr(cache, "GROWTH", 5)
    layers = {"layers": 1, "encoder_layers": 1, "decoder_layers": 1}
    model = with_random_weights(DPAR(DPAR.Config(num_classes=CLASSES, **layers, **SIZES)))
    gate = with_random_weights(LlamaGen(LlamaGen.Config(layers=1, **SIZES)))
    torch._dynamo.reset()
    with steps.compiling(torch.device("cpu")):  # compiles something small, once in a process
        torch._dynamo.utils.counters["stats"].clear()
    assert_literal(model, gate, request(5), compile=True, **GUIDED_FIRST)
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert compiled == len(PARTS) + 1
    assert_literal(model, gate, request(7), compile=True, **GUIDED_FIRST)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled, "another batch, the same code"
    torch._dynamo.reset()


def test_a_machine_without_a_compiler_is_told(dpar, entropy_model, graphs, monkeypatch):
    def broken(device):
        raise InputError("PyTorch cannot compile here")

    monkeypatch.setattr(steps, "try_compiler", broken)
    with pytest.raises(InputError, match="cannot compile here"):
        sample(dpar, entropy_model, **request(2), rule=RULE, settings=DrawSettings(2.5, compile=True))


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [False, True], ids=["called", "compiled"])
def test_on_a_gpu_as_on_a_cpu(dpar, entropy_model, compile):
    """All rows of a call at once, and numbers that are sent from pinned memory."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    expected = sample(dpar, entropy_model, **request(5), **GUIDED_FIRST)
    models = [copy.deepcopy(model).cuda() for model in (dpar, entropy_model)]
    found = assert_literal(
        *models, {name: value.cuda() for name, value in request(5).items()}, compile=compile, **GUIDED_FIRST
    )
    assert torch.equal(found.tokens.cpu(), expected.tokens)
    assert torch.equal(found.starts.cpu(), expected.starts)


@pytest.mark.parametrize("position", ["2d", "dynamic_no_redundancy"])
def test_position_schemes(entropy_model, position):
    model = DPAR(DPAR.Config(num_classes=CLASSES, layers=1, decoder_layers=1, position=position, **SIZES))
    assert_literal(with_random_weights(model), entropy_model, request(2), rule=RULE, settings=DrawSettings(1.5))


def test_entropy_through_the_null_class(dpar, null_class):
    assert_literal(dpar, null_class, request(3), rule=RULE, settings=DrawSettings(1.5))


@pytest.fixture(scope="module")
def distilled():
    return with_random_weights(
        EntropyRegressor(EntropyRegressor.Config(layers=1, **{**SIZES, "width": 16, "heads": 1}))
    )


@pytest.mark.parametrize("threshold", [2.6, 3.7, 5.0])
def test_a_distilled_gate_places_the_patches(dpar, distilled, threshold):
    """Algorithm 2 with the gate's entropies, which are those of one pass of the gate over the drawn image."""
    rule = replace(RULE, threshold=threshold)
    result = assert_literal(dpar, distilled, request(4), rule=rule, settings=DrawSettings(2.5))
    some = result.starts.any(0) & ~result.starts.all(0)
    assert some.sum() >= 3, "all images open patches together: nothing is ragged"
    with torch.no_grad():
        entropy = distilled(result.tokens)[..., 0]
    torch.testing.assert_close(result.entropy[:, 1:], entropy)
    for found, nats in zip(result.starts.tolist(), entropy.tolist(), strict=True):
        length, expected = 0, []
        for t in range(12):  # Algorithm 3
            opens = t <= 1 or nats[t - 1] > threshold or length == 3 or t % 4 == 0
            length = 1 if opens else length + 1
            expected.append(opens)
        assert found == expected


def test_a_gate_of_other_sizes_than_the_model(dpar):
    gate = with_random_weights(LlamaGen(LlamaGen.Config(layers=1, **{**SIZES, "width": 64, "heads": 1})))
    assert_literal(dpar, gate, request(3), rule=RULE, settings=DrawSettings(1.5))


def test_llamagen(llamagen):
    result = assert_literal(llamagen, None, request(3), rule=None, settings=DrawSettings(3.0))
    assert result.entropy is None
    assert result.starts.all()


@pytest.mark.parametrize("cfg_interval", [(0.0, 0.5), (0.3, 0.7), (0.5, 1.0)])
@pytest.mark.parametrize("cfg_scale", [3.0, 0.0])
def test_guidance_of_a_part_of_the_sequence(dpar, entropy_model, llamagen, cfg_scale, cfg_interval):
    settings = DrawSettings(cfg_scale, cfg_interval)
    assert_literal(dpar, entropy_model, request(4), rule=RULE, settings=settings)
    assert_literal(llamagen, None, request(2), rule=None, settings=settings)


def test_after_the_interval_the_null_class_is_not_run(dpar, entropy_model):
    rows = []
    handle = dpar.decoder.output.register_forward_hook(lambda _, args, out: rows.append(len(args[0])))
    try:
        sample(dpar, entropy_model, **request(3), rule=RULE, settings=DrawSettings(2.0, (0.25, 0.75)))
    finally:
        handle.remove()
    assert rows == [6] * 9 + [3] * 3


def test_temperature_and_truncation(dpar, entropy_model):
    settings = DrawSettings(2.0, temperature=0.8, top_k=12, top_p=0.9)
    assert_literal(dpar, entropy_model, request(3), rule=RULE, settings=settings)


@pytest.mark.parametrize("given_tokens", [1, 5, 12])
def test_prefix_is_kept_and_continued(dpar, entropy_model, given_tokens):
    prefix = torch.randint(0, 40, (3, given_tokens), generator=torch.Generator().manual_seed(3))
    images = {**request(3), "prefix": prefix}
    result = assert_literal(dpar, entropy_model, images, rule=RULE, settings=DrawSettings(2.0))
    assert torch.equal(result.tokens[:, :given_tokens], prefix)


def test_completing_an_images_own_beginning_gives_the_image(dpar, entropy_model):
    how = GUIDED
    whole = sample(dpar, entropy_model, **request(3), **how)
    again = sample(dpar, entropy_model, **request(3), **how, prefix=whole.tokens[:, :7])
    assert torch.equal(whole.tokens, again.tokens)


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_an_image_does_not_depend_on_its_company(dpar, entropy_model, batch, monkeypatch):
    """The same image in any batch, at any place, next to any others; with noise made in other pieces."""
    how = {"rule": RULE, "settings": DrawSettings(2.0, top_k=20)}
    images, steps = request(7), []
    whole = sample(dpar, entropy_model, **images, **how, observe=steps.append)
    assert len(set(map(tuple, whole.tokens.tolist()))) == 7
    monkeypatch.setattr(sampler, "NOISE_AT_ONCE", 300)
    for chosen in torch.randperm(7, generator=torch.Generator().manual_seed(batch)).split(batch):
        alone = []
        some = {name: value[chosen] for name, value in images.items()}
        part = sample(dpar, entropy_model, **some, **how, observe=alone.append)
        for step, other in zip(steps, alone, strict=True):
            torch.testing.assert_close(other.logits, step.logits[chosen])
        assert torch.equal(part.tokens, whole.tokens[chosen])
        assert torch.equal(part.starts, whole.starts[chosen])


def test_boundaries_are_those_of_the_drawn_tokens(dpar, entropy_model):
    """Scored as the training set is scored, a drawn image has the entropies and patches that it was drawn with."""
    result = sample(dpar, entropy_model, **request(5), rule=RULE, settings=DrawSettings(2.0))
    with torch.no_grad():
        entropy = token_entropies(entropy_model, result.tokens, "unconditional")
    torch.testing.assert_close(result.entropy, entropy)
    assert torch.equal(result.starts, RULE.starts(entropy))


def test_logits_are_those_of_training(dpar, entropy_model):
    """One pass of the trainer's forward over the drawn image gives the logits that it was drawn from."""
    steps = []
    images = request(4)
    result = sample(dpar, entropy_model, **images, rule=RULE, settings=DrawSettings(1.0), observe=steps.append)
    with torch.no_grad():
        expected = dpar(result.tokens, images["labels"], result.starts)
    torch.testing.assert_close(torch.stack([step.logits for step in steps], 1), expected)


def test_patch_transformer_runs_for_the_images_that_open_a_patch_only(dpar, entropy_model):
    rows = []
    handle = dpar.patch_transformer.layers[0].register_forward_hook(lambda _, args, out: rows.append(len(args[0])))
    try:
        result = sample(dpar, entropy_model, **request(6), rule=RULE, settings=DrawSettings(2.0))
    finally:
        handle.remove()
    assert rows == [2 * n for n in result.starts.sum(0).tolist() if n]
    assert sum(rows) == 2 * result.starts.sum() < 2 * result.starts.numel()


@pytest.mark.parametrize(
    ("kind", "digest"),
    [("dynamic", "e34f9d1c38d0681d"), ("static", "7d0a1d4b794799fa"), ("llamagen", "720f4c4e6e34d5c4")],
)
def test_draws_are_those_of_the_first_version(kind, digest):
    """Tokens and boundaries of 32 images, to the digit; from before a GPU had a path of its own."""
    torch.manual_seed(0)  # of the start vector, the one weight that is not drawn anew
    dpar = with_random_weights(
        DPAR(DPAR.Config(num_classes=CLASSES, layers=2, encoder_layers=2, decoder_layers=2, **SIZES))
    )
    gate = with_random_weights(LlamaGen(LlamaGen.Config(layers=2, **SIZES)))
    llamagen = with_random_weights(LlamaGen(LlamaGen.Config(layers=2, num_classes=CLASSES, **SIZES)))
    networks, rule = {
        "dynamic": ((dpar, gate), RULE),
        "static": ((dpar, None), STATIC),
        "llamagen": ((llamagen, None), None),
    }[kind]
    found = sample(*networks, **request(32), rule=rule, settings=DrawSettings(2.5))
    assert sha256(found.tokens.numpy().tobytes() + found.starts.numpy().tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_other_precisions_draw_valid_images(precision):
    model = with_random_weights(DPAR(DPAR.Config(num_classes=CLASSES, layers=1, decoder_layers=1, **SIZES)))
    entropy_model = with_random_weights(LlamaGen(LlamaGen.Config(layers=1, **SIZES)))
    steps = []
    result = sample(
        model.to(precision),
        entropy_model.to(precision),
        **request(3),
        **GUIDED,
        observe=steps.append,
    )
    assert result.tokens.shape == (3, 12)
    assert result.tokens.min() >= 0
    assert result.tokens.max() < 40
    assert result.entropy is not None
    assert all(step.logits.dtype == torch.float32 and step.logits.isfinite().all() for step in steps)
    assert result.entropy.dtype == torch.float32


def test_bad_requests(dpar, entropy_model, llamagen):
    how = GUIDED
    with pytest.raises(InputError, match=r"label 3 is out of range.* 0 to 2"):
        sample(dpar, entropy_model, labels=torch.tensor([3]), seeds=torch.tensor([0]), **how)
    with pytest.raises(InputError, match="label -1"):
        sample(dpar, entropy_model, labels=torch.tensor([-1]), seeds=torch.tensor([0]), **how)
    with pytest.raises(InputError, match="give the entropy model"):
        sample(dpar, None, **request(2), **how)
    with pytest.raises(InputError, match="no classes"):
        sample(entropy_model, None, **request(2), **how)
    with pytest.raises(InputError, match="prefix has the shape"):
        sample(dpar, entropy_model, **request(2), **how, prefix=torch.zeros(2, 13, dtype=torch.long))
    with pytest.raises(InputError, match="outside of the codebook, 0 to 39"):
        sample(dpar, entropy_model, **request(2), **how, prefix=torch.full((2, 1), 40))
    with pytest.raises(InputError, match="there are no labels"):
        sample(dpar, entropy_model, **request(0), **how)
    other = LlamaGen(LlamaGen.Config(layers=1, **{**SIZES, "grid": (4, 4)})).eval()
    with pytest.raises(InputError, match=r"grid is \(4, 4\), the model's is \(3, 4\)"):
        sample(dpar, other, **request(2), **how)
    assert sample(llamagen, other, **request(1), **how).tokens.shape == (1, 12)
