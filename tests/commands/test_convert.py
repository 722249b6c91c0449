"""`dpar convert`: official files become folders from which `dpar sample` draws."""

import numpy as np
import pytest
import torch
from PIL import Image

from dpar import cli
from dpar.commands import convert
from dpar.errors import InputError
from dpar.experiment.settings import TOKENIZERS, VARIANTS
from dpar.files import sha256_file
from dpar.weights import load_model, model_config
from tests.model.test_official import CLASSES, HEADS, LAYERS, VOCAB, WIDTH, published_tensors
from tests.oracles import tokenizer as oracle
from tests.oracles.model import llamagen_logits

SIZES = {"vocab_size": VOCAB, "code_dim": 5, "channels": 32, "residual_blocks": 1, "z_channels": 6}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A published tokenizer and transformer of sizes that a test can hold."""
    transformer = {"architecture": "llamagen", "width": WIDTH, "heads": HEADS, "layers": LAYERS}
    monkeypatch.setitem(VARIANTS, "LlamaGen-T", transformer)
    monkeypatch.setitem(TOKENIZERS, "VQ-2", {**SIZES, "multipliers": (1, 2)})
    monkeypatch.setattr(convert, "VOCAB_SIZE", VOCAB)
    monkeypatch.setattr(convert, "DOWNSAMPLE", 2)
    state = oracle.official_state(
        channels=32, multipliers=(1, 2), blocks=1, z_channels=6, vocab_size=VOCAB, code_dim=5, seed=2
    )
    torch.save({"model": {name: tensor.float() for name, tensor in state.items()}}, tmp_path / "vq_ds2_c2i.pt")
    torch.save({"module": published_tensors()}, tmp_path / "c2i_T_32.pt")
    return tmp_path, state


def flags(folder, name, variant, *more):
    return [str(folder / name), "--variant", variant, "--out", str(folder / "ours" / variant), *more]


@pytest.fixture
def converted(files, capsys):
    folder, state = files
    assert cli.main(["convert", *flags(folder, "vq_ds2_c2i.pt", "VQ-2")]) == 0
    assert cli.main(["convert", *flags(folder, "c2i_T_32.pt", "LlamaGen-T", "--resolution", "4")]) == 0
    assert f"dpar sample --checkpoint {folder / 'ours' / 'LlamaGen-T'}" in capsys.readouterr().out
    return folder, state


def test_what_stands_in_the_folders(converted):
    folder, state = converted
    model, published = load_model(folder / "ours" / "LlamaGen-T", "llamagen"), published_tensors()
    assert model.config.num_classes == CLASSES
    assert model.config.grid == (2, 2)
    assert set(model.state_dict()) == set(published) - {"freqs_cis"}
    assert all(torch.equal(tensor, published[name]) for name, tensor in model.state_dict().items())
    tokenizer = load_model(folder / "ours" / "VQ-2", "tokenizer").state_dict()
    assert set(tokenizer) == set(state) - {"quantize.codebook_used"}
    origin = model_config(folder / "ours" / "VQ-2")["provenance"]["weights"]
    assert origin == {"file": "vq_ds2_c2i.pt", "sha256": sha256_file(folder / "vq_ds2_c2i.pt")}
    assert {path.name for path in (folder / "ours" / "VQ-2").iterdir()} == {"config.json", "model.safetensors"}


def test_imagenets_classes_go_by_their_names(files, monkeypatch):
    folder, _ = files
    names = [f"name {i}" for i in range(CLASSES)]
    monkeypatch.setattr(convert, "imagenet_names", lambda: {f"n{i}": name for i, name in enumerate(names)})
    for name, variant, more in (("c2i_T_32.pt", "LlamaGen-T", ("--resolution", "4")), ("vq_ds2_c2i.pt", "VQ-2", ())):
        convert.main(flags(folder, name, variant, *more))
    assert model_config(folder / "ours" / "LlamaGen-T")["provenance"]["classes"] == names
    assert "classes" not in model_config(folder / "ours" / "VQ-2")["provenance"]


@pytest.mark.parametrize("cfg", [1.0, 2.5])
def test_a_picture_is_that_of_the_literal_networks(converted, cfg):
    """The likeliest code of each position, so that nothing of ours stands between the files' tensors and the pixels."""
    folder, state = converted
    out, weights = folder / "grid.png", published_tensors()
    ours = ["--checkpoint", str(folder / "ours" / "LlamaGen-T"), "--tokenizer", str(folder / "ours" / "VQ-2")]
    drawing = ["--labels", "2", "--n", "1", "--top-k", "1", "--cfg", str(cfg), "--out", str(out)]
    assert cli.main(["sample", *ours, *drawing]) == 0
    codes = []
    for _ in range(4):
        known, null = (llamagen_logits(weights, [*codes, 0], label, 2, HEADS)[-1] for label in (2, CLASSES))
        codes.append(int((null + cfg * (known - null)).argmax()))
    assert len(set(codes)) > 1
    pixels = (127.5 * oracle.decode(state, torch.tensor(codes).view(1, 2, 2)) + 128).clamp(0, 255).floor()
    np.testing.assert_allclose(np.asarray(Image.open(out)), pixels[0].permute(1, 2, 0).numpy(), atol=1)  # fp32 decoder
    assert pixels.std() > 5


@pytest.mark.parametrize(
    ("name", "variant", "more", "message"),
    [
        (
            "c2i_T_32.pt",
            "LlamaGen-M",
            ["--resolution", "4"],
            "nobody published weights of 'LlamaGen-M'; there are VQ-16",
        ),
        ("c2i_T_32.pt", "DPAR-B", ["--resolution", "4"], "nobody published weights of 'DPAR-B'"),
        ("c2i_T_32.pt", "LlamaGen-T", [], "--resolution is None; give the pixels"),
        ("c2i_T_32.pt", "LlamaGen-T", ["--resolution", "5"], "--resolution is 5"),
        ("vq_ds2_c2i.pt", "VQ-2", ["--resolution", "4"], "leave --resolution away"),
        ("c2i_T_32.pt", "VQ-2", [], "holds a transformer of LlamaGen (cls_embedding.embedding_table.weight"),
        ("vq_ds2_c2i.pt", "VQ-8", [], "of another shape"),
        ("absent.pt", "VQ-2", [], "does not exist; download the weights"),
        ("vq_ds2_c2i.pt", "VQ-2", ["--sha256", "0" * 64], "but the settings say 0000"),
    ],
)
def test_what_cannot_be_converted_is_said_and_nothing_written(files, capsys, name, variant, more, message):
    assert cli.main(["convert", *flags(files[0], name, variant, *more)]) == 2
    assert message in capsys.readouterr().err
    assert not (files[0] / "ours").exists()


@pytest.mark.parametrize(("name", "variant"), [("vq_ds2_c2i.pt", "VQ-2"), ("c2i_T_32.pt", "LlamaGen-T")])
def test_weights_that_are_not_finite_are_refused_and_nothing_written(files, capsys, name, variant):
    content = torch.load(files[0] / name, weights_only=True)
    next(tensor for tensor in next(iter(content.values())).values() if tensor.ndim == 2)[0, 0] = torch.nan
    torch.save(content, files[0] / name)
    more = ["--resolution", "4"] if variant == "LlamaGen-T" else []
    assert cli.main(["convert", *flags(files[0], name, variant, *more)]) == 2
    assert "has weights that are not finite" in capsys.readouterr().err
    assert not (files[0] / "ours").exists()


def test_a_model_is_never_written_over(converted):
    folder, _ = converted
    with pytest.raises(InputError, match="holds a model already"):
        convert.main(flags(folder, "vq_ds2_c2i.pt", "VQ-2"))


def test_a_tokenizer_of_as_many_codes_for_tokens_of_another_size_is_refused(converted, monkeypatch, capsys):
    folder, _ = converted
    monkeypatch.setitem(TOKENIZERS, "VQ-4", {**SIZES, "multipliers": (1, 2, 2)})
    state = oracle.official_state(
        channels=32, multipliers=(1, 2, 2), blocks=1, z_channels=6, vocab_size=VOCAB, code_dim=5, seed=2
    )
    torch.save({name: tensor.float() for name, tensor in state.items()}, folder / "vq_ds4_c2i.pt")
    assert cli.main(["convert", *flags(folder, "vq_ds4_c2i.pt", "VQ-4")]) == 0
    ours = ["--checkpoint", str(folder / "ours" / "LlamaGen-T"), "--tokenizer", str(folder / "ours" / "VQ-4")]
    assert cli.main(["sample", *ours, "--labels", "2", "--n", "1", "--out", str(folder / "grid.png")]) == 2
    said = capsys.readouterr().err
    assert "makes a token of 4 x 4 pixels" in said
    assert "was trained on tokens of 2 x 2" in said
