import hashlib

import pytest
import torch

from dpar.errors import InputError
from dpar.experiment.settings import Autoencoder
from dpar.tokenizer.official import import_tokenizer
from tests.oracles.tokenizer import official_state

SIZES = Autoencoder(vocab_size=24, code_dim=5, channels=32, multipliers=(1, 2), residual_blocks=1, z_channels=6)


@pytest.fixture
def state():
    state = official_state(channels=32, multipliers=(1, 2), blocks=1, z_channels=6, vocab_size=24, code_dim=5, seed=2)
    return {name: tensor.float() for name, tensor in state.items()}


@pytest.mark.parametrize("wrap", [lambda state: {"model": state, "steps": 5}, lambda state: state])
def test_every_tensor_finds_its_place(tmp_path, state, wrap):
    torch.save(wrap(state), tmp_path / "vq_ds16_c2i.pt")
    model = import_tokenizer(tmp_path / "vq_ds16_c2i.pt", SIZES)
    assert not model.training
    found = model.state_dict()
    assert set(found) == set(state) - {"quantize.codebook_used"}
    for name, tensor in found.items():
        assert torch.equal(tensor, state[name])


def test_the_moving_average_of_a_training_is_taken_and_what_is_left_is_said(tmp_path, state, capsys):
    others = {name: tensor + 1 for name, tensor in state.items()}
    content = {"model": others, "ema": state, "discriminator": {"w": torch.ones(1)}, "optimizer": {"state": {}}}
    torch.save(content, tmp_path / "vq.pt")
    found = import_tokenizer(tmp_path / "vq.pt", SIZES).state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.items())
    said = capsys.readouterr().err
    assert "vq.pt: took the weights under 'ema', left those under model, discriminator" in said
    torch.save({"model": state, "ema": {}}, tmp_path / "vq.pt")  # one that kept no average
    assert torch.equal(import_tokenizer(tmp_path / "vq.pt", SIZES).quantize.embedding.weight,
                       state["quantize.embedding.weight"])  # fmt: skip
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s["quantize.embedding.weight"][3].fill_(torch.nan),
            r"vq\.pt has weights that are not finite: .* \(5 of the 120 numbers of quantize\.embedding\.weight are NaN",
        ),
        (
            lambda s: s.update({"decoder.conv_out.bias": torch.tensor([0.0, 1e300, 0.0], dtype=torch.float64)}),
            r"1 of the 3 numbers of decoder\.conv_out\.bias",
        ),
        (lambda s: s.pop("decoder.mid.0.conv1.bias"), "1 missing: decoder.mid.0.conv1.bias"),
        (lambda s: s.update({"loss.weight": torch.zeros(1)}), "1 not of this model: loss.weight"),
        (
            lambda s: s.update({"quantize.embedding.weight": torch.zeros(16, 5)}),
            r"1 of another shape: quantize.embedding.weight \[16, 5\] instead of \[24, 5\]",
        ),
    ],
)
def test_a_file_of_other_sizes_is_refused_by_name(tmp_path, state, change, message):
    change(state)
    torch.save({"model": state}, tmp_path / "vq.pt")
    with pytest.raises(InputError, match=message):
        import_tokenizer(tmp_path / "vq.pt", SIZES)


def _page(path, whole):
    path.write_bytes(b"<!DOCTYPE html><html>404</html>")


def _pointer(path, whole):
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 287920306\n")


def _cut(path, whole):
    path.write_bytes(whole[: len(whole) // 2])


def _digest(path, whole):
    path.write_bytes(whole)
    path.with_name(path.name + ".sha256").write_text("0" * 64 + "  vq.pt\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [(_page, "web page"), (_pointer, "git-lfs pointer.*287920306"), (_cut, "cut off"), (_digest, "SHA-256")],
)
def test_a_file_that_is_no_download_is_refused_with_what_it_is(tmp_path, state, damage, message):
    path = tmp_path / "vq.pt"
    torch.save({"model": state}, path)
    damage(path, path.read_bytes())
    with pytest.raises(InputError, match=message):
        import_tokenizer(path, SIZES)


def test_a_digest_beside_the_file_is_checked(tmp_path, state):
    path = tmp_path / "vq.pt"
    torch.save({"model": state}, path)
    path.with_name("vq.pt.sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest() + "  vq.pt\n")
    import_tokenizer(path, SIZES)
