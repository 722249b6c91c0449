import argparse
import hashlib
import pickle
import random
import zipfile
from io import BytesIO

import pytest
import torch

from dpar.errors import InputError
from dpar.model.llamagen import LlamaGen
from dpar.model.official import fill, import_llamagen, read_official
from tests.model.tiny import tiny_batch, tiny_llamagen
from tests.oracles.model import llamagen_logits

WIDTH, HEADS, VOCAB, CLASSES, LAYERS = 32, 2, 13, 3, 2
CONFIG = LlamaGen.Config(grid=(3, 4), vocab_size=VOCAB, num_classes=CLASSES, width=WIDTH, heads=HEADS, layers=LAYERS)


def published_tensors() -> dict[str, torch.Tensor]:
    """Random values under the names and in the shapes of c2i_B_256.pt, written out by hand."""
    generator = torch.Generator().manual_seed(1)

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    tensors = {
        "cls_embedding.embedding_table.weight": values(CLASSES + 1, WIDTH),
        "tok_embeddings.weight": values(VOCAB, WIDTH),
        "norm.weight": values(WIDTH),
        "output.weight": values(VOCAB, WIDTH),
        "freqs_cis": values(1 + 12, WIDTH // HEADS // 2, 2),
    }
    for i in range(LAYERS):
        tensors |= {
            f"layers.{i}.attention.wqkv.weight": values(3 * WIDTH, WIDTH),
            f"layers.{i}.attention.wo.weight": values(WIDTH, WIDTH),
            f"layers.{i}.feed_forward.w1.weight": values(256, WIDTH),
            f"layers.{i}.feed_forward.w3.weight": values(256, WIDTH),
            f"layers.{i}.feed_forward.w2.weight": values(WIDTH, 256),
            f"layers.{i}.attention_norm.weight": values(WIDTH),
            f"layers.{i}.ffn_norm.weight": values(WIDTH),
        }
    return tensors


LAYOUTS = {
    "model": lambda tensors: {"model": tensors, "optimizer": {"step": torch.tensor(3)}, "steps": 3},
    "module": lambda tensors: {"module": tensors, "lr": 1e-4},
    "state_dict": lambda tensors: {"state_dict": tensors, "epoch": 300},
    "flat": lambda tensors: tensors,
    "training script": lambda tensors: {"model": tensors, "args": argparse.Namespace(gpt_model="GPT-B")},
}


def test_another_network_is_named(tmp_path):
    torch.save({"quantize.embedding.weight": torch.zeros(2, 2)}, tmp_path / "vq.pt")
    with pytest.raises(InputError, match=r"holds a VQ tokenizer \(quantize.*, expected a transformer of LlamaGen"):
        import_llamagen(tmp_path / "vq.pt", CONFIG)
    with pytest.raises(InputError, match=r"holds a transformer of LlamaGen \(.*, expected another network \(weight"):
        fill(torch.nn.Linear(2, 2), published_tensors(), "c2i_B_256.pt")


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("zipped", [True, False])
def test_every_layout_gives_the_literal_logits(float64, tmp_path, layout, zipped):
    path, tensors = tmp_path / "c2i_T_256.pt", {name: value.double() for name, value in published_tensors().items()}
    torch.save(layout(tensors), path, _use_new_zipfile_serialization=zipped)
    model = import_llamagen(path, CONFIG)
    assert not model.training
    loaded = model.state_dict()
    tensors.pop("freqs_cis")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], value) for name, value in tensors.items())
    tokens, labels = tiny_batch(2)
    for image, label, logits in zip(tokens.tolist(), labels.tolist(), model(tokens, labels), strict=True):
        torch.testing.assert_close(logits, llamagen_logits(tensors, image, label, columns=4, heads=HEADS))


def test_half_precision_files_become_fp32_models(tmp_path):
    tensors = {name: value.bfloat16() for name, value in published_tensors().items()}
    torch.save(tensors, tmp_path / "half.pt")
    loaded = import_llamagen(tmp_path / "half.pt", CONFIG).state_dict()
    assert {value.dtype for value in loaded.values()} == {torch.float32}
    assert torch.equal(loaded["output.weight"], tensors["output.weight"].float())


def test_the_file_says_how_many_classes_it_knows(tmp_path):
    torch.save(published_tensors(), tmp_path / "c2i.pt")
    model = import_llamagen(tmp_path / "c2i.pt", CONFIG.model_copy(update={"num_classes": None}))
    assert model.config.num_classes == model.null_label == CLASSES
    with pytest.raises(InputError, match=r"cls_embedding\.embedding_table\.weight \[4, 32\] instead of \[11, 32\]"):
        import_llamagen(tmp_path / "c2i.pt", CONFIG.model_copy(update={"num_classes": 10}))


def test_a_file_for_another_grid_is_noticed_where_it_says_so(tmp_path):
    """All its tensors fit; only the rotations, which are made anew, have the size of its grid."""
    tensors = published_tensors() | {"freqs_cis": torch.zeros(1 + 24 * 24, 8, 2)}
    torch.save(tensors, tmp_path / "c2i_B_384.pt")
    with pytest.raises(InputError, match=r"was made for 24 x 24 tokens per image, not for 3 x 4"):
        import_llamagen(tmp_path / "c2i_B_384.pt", CONFIG)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("0300000.pt", {"image_size": 384}, r"24 x 24 tokens .* by the options of its training \(image_size 384\)"),
        ("c2i_B_384.pt", {"image_size": 256, "downsample_size": 8}, "32 x 32 tokens .* the options of its training"),
    ],
)
def test_a_file_without_rotations_for_another_grid_is_noticed_by_its_options(tmp_path, name, options, said):
    tensors = published_tensors()
    del tensors["freqs_cis"]
    torch.save({"model": tensors, "args": argparse.Namespace(**options)}, tmp_path / name)
    with pytest.raises(InputError, match=said):
        import_llamagen(tmp_path / name, CONFIG)
    torch.save({"model": tensors, "args": argparse.Namespace(image_size=32)}, tmp_path / name)
    import_llamagen(tmp_path / name, CONFIG.model_copy(update={"grid": (2, 2)}))


def test_a_file_named_after_another_resolution_is_warned_of_where_nothing_in_it_says(tmp_path, capsys):
    tensors = published_tensors()
    del tensors["freqs_cis"]
    torch.save({"model": tensors}, tmp_path / "c2i_B_384.pt")
    import_llamagen(tmp_path / "c2i_B_384.pt", CONFIG)
    assert "c2i_B_384.pt is called after 384 pixels, and is read for 3 x 4 tokens" in capsys.readouterr().err
    import_llamagen(tmp_path / "c2i_B_384.pt", CONFIG.model_copy(update={"grid": (24, 24)}))
    assert capsys.readouterr().err == ""


def test_a_transformer_is_taken_as_it_was_trained_and_the_average_that_is_left_is_named(tmp_path, capsys):
    """LlamaGen draws from `model`, whatever average the file also holds."""
    tensors = published_tensors()
    average = {name: tensor + 1 for name, tensor in tensors.items()}
    torch.save({"ema": average, "model": tensors, "args": argparse.Namespace(lr=1e-4)}, tmp_path / "c2i.pt")
    assert torch.equal(import_llamagen(tmp_path / "c2i.pt", CONFIG).output.weight, tensors["output.weight"])
    assert "c2i.pt: took the weights under 'model', left those under ema\n" in capsys.readouterr().err


def saved(tmp_path, content) -> str:
    torch.save(content, tmp_path / "weights.pt")
    return str(tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("norm.weight"), r"1 missing: norm\.weight"),
        (
            lambda t: t.update({"norm.weight": torch.full((32,), torch.inf)}),
            r"weights\.pt has weights that are not finite: .* \(32 of the 32 numbers of norm\.weight",
        ),
        (lambda t: t.update(extra=torch.zeros(1)), r"1 not of this model: extra"),
        (
            lambda t: t.update({"norm.weight": torch.zeros(3)}),
            r"1 of another shape: norm\.weight \[3\] instead of \[32\]",
        ),
        (lambda t: [t.pop(name) for name in list(t) if name.startswith("layers.1")], r"7 missing: .* \.\.\."),
        (
            lambda t: t.update({"norm.weight": torch.ones(32, dtype=torch.int8)}),
            r"1 not floating-point: norm\.weight int8",
        ),
        (
            lambda t: t.update({"output.weight": t["output.weight"].to_sparse()}),
            r"1 sparse or without numbers: output\.weight",
        ),
        (
            lambda t: t.update({"norm.weight": torch.ones(32, device="meta")}),
            r"1 sparse or without numbers: norm\.weight",
        ),
    ],
    ids=["missing", "infinite", "extra", "shape", "depth", "quantised", "sparse", "meta"],
)
def test_loading_is_strict_and_says_what_differs(tmp_path, change, message):
    tensors = published_tensors()
    change(tensors)
    path = saved(tmp_path, {"model": tensors})
    model = tiny_llamagen(layers=LAYERS)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match=message):
        import_llamagen(path, CONFIG)
    with pytest.raises(InputError):
        fill(model, {name: t for name, t in read_official(path).items() if name != "freqs_cis"}, path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 443714000\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (LFS, "git-lfs pointer of .* to a file of 443714000 bytes.*git lfs pull"),
        (b"<!DOCTYPE html><html><head><title>Sign in</title>", "is a web page .*<!DOCTYPE html>.*download link"),
        (b"\n  <?xml version='1.0'?><Error>", "is a web page"),
        (b"\xef\xbb\xbf<html>", "is a web page .*beginning '<html>'"),
        (b'{"error": "not found"}', "no PyTorch file: its 22 bytes begin 7b 22 65 72"),
        (b"\x80\x02garbage", "damaged|more than tensors"),
        (b"PK\x03\x04" + bytes(2000), "cut off after 2004 bytes"),
    ],
    ids=["empty", "git-lfs", "html", "xml", "html with a byte-order mark", "json", "broken pickle", "cut off"],
)
def test_what_a_failed_download_leaves_is_told_apart(tmp_path, content, message):
    path = tmp_path / "c2i_B_256.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_official(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, zipped, share):
    path = tmp_path / "weights.pt"
    torch.save({"model": published_tensors()}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"cut off|damaged|more than tensors"):
        read_official(path)


def test_a_file_of_the_old_format_is_refused_wherever_it_is_cut(tmp_path):
    """It has no index and no checksums, so torch's reader stumbles at many places, in many ways."""
    path, whole = tmp_path / "weights.pt", BytesIO()
    torch.save({"model": {"a": torch.ones(2, 3)}}, whole, _use_new_zipfile_serialization=False)
    for length in range(1, len(whole.getvalue()), 3):
        path.write_bytes(whole.getvalue()[:length])
        with pytest.raises(InputError, match=r"damaged|more than tensors"):
            read_official(path)


def test_a_file_of_the_old_format_with_changed_bytes_is_read_or_refused(tmp_path):
    path, whole, draw = tmp_path / "weights.pt", BytesIO(), random.Random(0)
    torch.save({"model": {"a": torch.ones(2, 3)}}, whole, _use_new_zipfile_serialization=False)
    refused = 0
    for _ in range(100):
        changed = bytearray(whole.getvalue())
        for _ in range(3):
            changed[draw.randrange(2, len(changed))] = draw.randrange(256)
        path.write_bytes(changed)
        try:
            read_official(path)
        except InputError:
            refused += 1
    assert refused > 50


def test_a_flipped_bit_among_the_weights_is_noticed(tmp_path):
    """`torch.load` does not look at the checksums."""
    path = tmp_path / "weights.pt"
    torch.save({"model": published_tensors()}, path)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=r"the checksum of its part weights/data/\d+ does not fit"):
        read_official(path)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_official(tmp_path / "absent.pt")
    with pytest.raises(InputError, match="is a folder"):
        read_official(tmp_path)


class Explosive:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code in the file was run')",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_not_run(tmp_path, zipped):
    path = tmp_path / "weights.pt"
    torch.save({"model": published_tensors(), "extra": Explosive()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        InputError, match=r"more than tensors.* asks for the code of \w*\.?exec .*keep the tensors alone"
    ):
        read_official(path)
    path.write_bytes(pickle.dumps(Explosive()))
    with pytest.raises(InputError, match=r"more than tensors|damaged"):
        read_official(path)


@pytest.mark.parametrize(
    "content",
    [torch.zeros(3), [torch.zeros(3)], {}, {"model": {}}, {"epoch": 3}, {"model": {"a": 1}}, {0: torch.ones(1)}],
)
def test_files_without_tensors_by_name_are_refused(tmp_path, content):
    with pytest.raises(InputError, match="tensors by name"):
        read_official(saved(tmp_path, content))


def test_a_digest_beside_the_file_is_checked(tmp_path):
    path, checksum = saved(tmp_path, published_tensors()), tmp_path / "weights.pt.sha256"
    right = hashlib.sha256((tmp_path / "weights.pt").read_bytes()).hexdigest()
    checksum.write_text(f"{right}  weights.pt\n")
    assert read_official(path)
    assert read_official(path, right.upper())
    with pytest.raises(InputError, match=f"has SHA-256 {right}, but the settings say 1111"):
        read_official(path, "1" * 64)
    checksum.write_text(f"{'0' * 64}  weights.pt\n")
    with pytest.raises(InputError, match=f"has SHA-256 {right}, but weights.pt.sha256 says 0000"):
        read_official(path)


@pytest.mark.parametrize("rows", [0, 1])
def test_a_file_without_classes_is_not_taken_for_one_with_some(tmp_path, rows):
    tensors = published_tensors()
    name = "cls_embedding.embedding_table.weight"
    torch.save(tensors | {name: tensors[name][:rows].clone()}, tmp_path / "weights.pt")
    with pytest.raises(InputError, match=f"knows no classes: its table of them has {rows} rows"):
        import_llamagen(tmp_path / "weights.pt", CONFIG.model_copy(update={"num_classes": None}))


def test_archives_of_something_else_are_not_called_damaged(tmp_path):
    with zipfile.ZipFile(tmp_path / "arrays.pt", "w") as archive:
        archive.writestr("weight.npy", b"")
    with pytest.raises(InputError, match="is a ZIP archive of other files"):
        read_official(tmp_path / "arrays.pt")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "program.pt")
    with pytest.raises(InputError, match=r"is a TorchScript program.*state_dict"):
        read_official(tmp_path / "program.pt")
