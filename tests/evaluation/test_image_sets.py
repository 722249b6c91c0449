"""Sets of images: each form gives the same pictures, and what cannot be compared is named."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dpar import tracking
from dpar.data.crops import center_crop, to_uint8
from dpar.errors import InputError
from dpar.evaluation.features import Extractor
from dpar.evaluation.image_sets import open_set
from dpar.evaluation.passes import batches, describe, resize_clean, unseen
from tests.data.samples import image_bytes, tar_of_images
from tests.evaluation.tiny import CLASSES, SIDE, picture, write_experiment, write_index, write_samples

COUNT = 7


def mean_colours(images):
    """Three features, and two that stand for the spatial ones."""
    means = images.float().mean((2, 3))
    return means, 2 * means, means[:, :2]


def fake(name="inception", resolution=None, **provenance):
    """An extractor that needs no weights."""
    return Extractor(name, "ab" * 32, resolution, mean_colours, provenance)


@pytest.fixture
def pictures():
    return [picture(n % CLASSES, n) for n in range(COUNT)]


def folder_of(path, pictures, name="{:03d}.png"):
    for number, pixels in enumerate(pictures):
        file = path / name.format(number)
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    return path


def test_every_form_gives_the_same_pictures(tmp_path, pictures):
    labels = np.arange(COUNT) % CLASSES
    (tmp_path / "array").mkdir()
    np.savez(tmp_path / "array" / "all.npz", arr_0=np.stack(pictures), labels=labels)
    (tmp_path / "shards").mkdir()
    for shard, rows in enumerate((range(4), range(4, COUNT))):
        np.savez(tmp_path / "shards" / f"{shard:05d}.npz", arr_0=np.stack([pictures[i] for i in rows]))
    Image.fromarray(pictures[0]).save(tmp_path / "shards" / "00000.png")  # the contact sheet next to the samples
    columns = {"key": [str(i) for i in range(COUNT)], "image": list(map(image_bytes, map(Image.fromarray, pictures)))}
    (tmp_path / "rows").mkdir()
    pq.write_table(pa.table(columns | {"label": labels}), tmp_path / "rows" / "set.parquet")
    forms = {
        "npz": [tmp_path / "array" / "all.npz"],
        "shards": sorted((tmp_path / "shards").glob("*.npz")),
        "folder of shards": [tmp_path / "shards"],
        "flat folder": [folder_of(tmp_path / "flat", pictures)],
        "parquet": [tmp_path / "rows" / "set.parquet"],
        "pattern": [tmp_path / "r*" / "s*.parquet"],
        "pattern of shards": [tmp_path / "sh*" / "*.npz"],
        "folder with parquet": [tmp_path / "rows"],
        "text": str(tmp_path / "array" / "all.npz"),
        "one path": tmp_path / "rows",
    }
    found = {}
    for form, paths in forms.items():
        images = found[form] = open_set(paths)
        assert len(images) == COUNT, form
        (batch,) = batches(images, np.arange(COUNT), side=None)
        np.testing.assert_array_equal(batch.permute(0, 2, 3, 1), np.stack(pictures), form)
    assert found["flat folder"].labels is None
    assert found["shards"].labels is None
    for form in ("npz", "parquet", "folder with parquet"):
        np.testing.assert_array_equal(found[form].labels, labels)


def test_a_folder_a_class_has_labels_and_an_index_its_crop(tmp_path):
    path = write_index(tmp_path, "train", 2)
    with pytest.raises(InputError, match=r"20 x 16 pixels, expected squares.*--resolution N.*--profile clean"):
        describe(open_set([tmp_path / "train"]), fake())
    folder, index = open_set([tmp_path / "train"]), open_set([path])
    np.testing.assert_array_equal(folder.labels, [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(index.labels, folder.labels)
    a, b = describe(folder, fake(), side=SIDE), describe(index, fake())
    np.testing.assert_array_equal(a.features, b.features)
    assert (a.conditions["resolution"], b.conditions["resolution"]) == (SIDE, SIDE)
    assert a.conditions["crop"] == b.conditions["crop"] == "centre square, halved by averages, then bicubic (ADM)"
    assert b.conditions["source_digest"] == index.index.digest
    smaller = describe(folder, fake(), side=8)
    square = to_uint8(center_crop(index.index.read(3), 8)).float().mean((1, 2))
    torch.testing.assert_close(torch.from_numpy(smaller.features[3]), square)


def test_some_rows_of_every_form(tmp_path, pictures):
    np.savez(tmp_path / "all.npz", arr_0=np.stack(pictures), labels=np.arange(COUNT))
    rows = np.array([1, 4, 6])
    whole = describe(open_set([tmp_path / "all.npz"]), fake())
    for path in (tmp_path / "all.npz", folder_of(tmp_path / "flat", pictures)):
        some = describe(open_set([path]), fake(), rows=rows)
        np.testing.assert_array_equal(some.features, whole.features[rows])
    assert describe(open_set([tmp_path / "all.npz"]), fake(), rows=rows).labels.tolist() == [1, 4, 6]


def test_the_clean_profile_feeds_299_pixels_from_any_size(tmp_path, pictures):
    sizes = [pictures[0], pictures[1][:, :10], pictures[2][:12]]
    images = open_set([folder_of(tmp_path / "flat", sizes)])
    seen = []
    extractor = Extractor("inception", "ab" * 32, None, lambda x: seen.append(x) or mean_colours(x))
    found = describe(images, extractor, profile="clean")
    assert seen[0].shape == (3, 3, 299, 299)
    assert seen[0].dtype == torch.float32
    torch.testing.assert_close(seen[0][1], resize_clean(torch.from_numpy(sizes[1].copy()).permute(2, 0, 1)))
    assert (found.conditions["profile"], found.conditions["resolution"]) == ("clean", None)
    assert "antialiased" in found.conditions["resize"]
    with pytest.raises(InputError, match="--profile clean is a way to feed Inception; classifier takes"):
        describe(images, fake("classifier"), profile="clean")


def test_the_clean_resize_keeps_constants_and_averages_when_it_shrinks():
    flat = resize_clean(torch.full((3, 20, 30), 77, dtype=torch.uint8))
    torch.testing.assert_close(flat, torch.full((3, 299, 299), 77.0))
    stripes = torch.zeros(3, 1196, 1196, dtype=torch.uint8)
    stripes[:, :, ::2] = 200  # every second column: an antialiased resize by four sees their mean
    inner = resize_clean(stripes)[:, 5:-5, 5:-5]
    torch.testing.assert_close(inner, torch.full_like(inner, 100.0), atol=2.0, rtol=0)


def test_statistics_belong_to_the_profile_that_made_them(tmp_path):
    moments = {"mu": np.arange(3.0), "sigma": np.eye(3), "mu_s": np.zeros(2), "sigma_s": np.eye(2)}
    images = open_set([write_samples(tmp_path / "r.npz", 4, **moments)])
    found = describe(images, fake())
    assert found.statistics["features"].mean.tolist() == [0, 1, 2]
    assert found.statistics["spatial"].covariance.shape == (2, 2)
    assert describe(images, fake("classifier")).statistics == {}
    with pytest.raises(InputError, match="holds statistics by ADM's resize"):
        describe(images, fake(), profile="clean")


@pytest.mark.parametrize(
    "moments",
    [{"mu": np.zeros((1, 3))}, {"sigma": np.eye(4)}, {"sigma": np.diag([1, 1, np.inf])}, {"mu": np.float64(1)}],
)
def test_statistics_of_a_wrong_shape_or_not_finite_are_refused(moments, tmp_path):
    path = write_samples(tmp_path / "r.npz", 4, **({"mu": np.zeros(3), "sigma": np.eye(3)} | moments))
    with pytest.raises(InputError, match=r"r\.npz holds `mu` of shape .* and `sigma` of shape .*all finite"):
        describe(open_set([path]), fake())


def test_a_networks_logits_and_spatial_features_are_kept_where_there_are_any(tmp_path):
    images = open_set([write_samples(tmp_path / "s.npz", 4)])
    found = describe(images, fake())
    assert (found.logits.shape, found.spatial.shape) == ((4, 3), (4, 2))
    alone = describe(images, Extractor("mine", "cd" * 32, None, lambda x: (mean_colours(x)[0],)))
    assert (alone.logits, alone.spatial, alone.features.shape) == (None, None, (4, 3))


def test_grey_images_are_counted_and_alpha_refused(tmp_path, pictures):
    folder = folder_of(tmp_path / "flat", pictures)
    Image.fromarray(pictures[0]).convert("L").save(folder / "grey.png")
    found = describe(open_set([folder]), fake())
    assert (len(found), found.conditions["grey_images"]) == (COUNT + 1, 1)
    Image.fromarray(pictures[0]).convert("RGBA").save(folder / "alpha.png")
    with pytest.raises(InputError, match=r"image alpha\.png of .* has an alpha channel \(mode RGBA\)"):
        describe(open_set([folder]), fake())


def test_the_digest_of_a_folder_is_of_its_names_and_bytes(tmp_path, pictures):
    def digest(folder):
        return describe(open_set([folder]), fake()).conditions["source_digest"]

    first = digest(folder_of(tmp_path / "a", pictures))
    assert digest(folder_of(tmp_path / "b", pictures)) == first
    assert digest(folder_of(tmp_path / "c", pictures[::-1])) != first
    assert digest(folder_of(tmp_path / "d", pictures, "x{}.png")) != first


def test_what_the_classifier_has_learnt_from_is_left_out(tmp_path):
    images = open_set([write_index(tmp_path, "train", 4)])
    assert len(unseen(images, fake())) == 12
    rows = unseen(images, fake("classifier", train_digest=images.index.digest, seed=1))
    assert np.bincount(images.labels[rows]).tolist() == [2, 2, 2]
    assert len(unseen(images, fake("classifier", train_digest="other", seed=1))) == 12


def test_what_is_no_set_of_images_is_named(tmp_path, pictures):
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("no image")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"<html>Sign in</html>")
    large = write_samples(tmp_path / "large.npz", 2, side=24)
    small = write_samples(tmp_path / "small.npz", 2)
    for paths, said in (
        ([tmp_path / "nothing"], "nothing does not exist"),
        ([tmp_path / "note.txt"], "is no set of images; expected an npz"),
        ([tmp_path / "empty"], "holds no images, npz, Parquet files or tars"),
        ([small, tmp_path / "note.txt"], "give one index"),
        ([small, large], "holds images of 24 pixels and .*small.npz of 16"),
    ):
        with pytest.raises(InputError, match=said):
            open_set(paths)
    with pytest.raises(InputError, match="holds no images to measure"):
        describe(open_set([write_samples(tmp_path / "none.npz", 1)]), fake(), rows=np.arange(0))
    with pytest.raises(InputError, match=r"image a\.png of .* cannot be read"):
        describe(open_set([tmp_path / "broken"]), fake())
    with pytest.raises(InputError, match="holds images of 24 pixels, 16 are wanted"):
        describe(open_set([large]), fake("classifier", 16))
    with pytest.raises(InputError, match="was trained on images of 32 pixels, these are to be measured at 16"):
        describe(open_set([small]), fake("classifier", 32), side=16)


def test_labels_below_zero_are_none_and_foreign_arrays_are_left_alone(tmp_path, pictures):
    strange = {"labels": np.full(COUNT, -1), "notes": np.array([{"any": "object"}], dtype=object)}
    np.savez(tmp_path / "strange.npz", arr_0=np.stack(pictures), **strange)
    found = open_set([tmp_path / "strange.npz"])
    assert (len(found), found.labels) == (COUNT, None)


def test_shards_may_differ_in_the_sizes_of_their_batches_and_in_nothing_else(tmp_path, pictures):
    def write(shard, **changes):
        stated = {"seed": 0, "shard": shard, "batches": [4] if shard == 0 else [2, 4], **changes}
        np.savez(tmp_path / f"{shard}.npz", arr_0=np.stack(pictures), conditions=json.dumps(stated))

    write(0)
    write(1)
    shards = [tmp_path / "0.npz", tmp_path / "1.npz"]
    assert open_set(shards).conditions()["drawn"] == {"seed": 0, "batches": [2, 4]}
    write(1, seed=1)
    with pytest.raises(InputError, match="were not drawn alike"):
        open_set(shards).conditions()


def test_a_shard_under_two_names_is_refused(tmp_path, pictures):
    for name in ("0", "copy"):
        stated = json.dumps({"seed": 0, "shard": 0})
        np.savez(tmp_path / f"{name}.npz", arr_0=np.stack(pictures), conditions=stated)
    with pytest.raises(InputError, match=r"shard 0 .*0\.npz is there twice"):
        open_set([tmp_path / "0.npz", tmp_path / "copy.npz"]).conditions()


def test_a_truncated_file_is_named_while_it_is_read(tmp_path):
    path = write_samples(tmp_path / "s.npz", 50)
    whole, images = path.read_bytes(), open_set([path])
    path.write_bytes(whole[:5000] + b"\0" * 50 + whole[5050:])
    with pytest.raises(InputError, match="ends too early or is damaged"):
        describe(images, fake())


def tar_of(path, pictures):
    members = {}
    for number, pixels in enumerate(pictures):
        members |= {f"{number}.png": image_bytes(Image.fromarray(pixels)), f"{number}.cls": b"0"}
    return tar_of_images(path, members)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (
            ["a/1.png", "a/b/2.jpeg"],
            r"holds 8 images \(000\.png, 001\.png, .*\) and 1 sub-folder \(a\) with 2 images",
        ),
        (["a/1.png", "b/2.png", "c/notes.txt"], r"holds 8 images .* and 2 sub-folders \(a, b\) with 2 images"),
        (["x.tar"], r"holds 8 images .* and 1 \.tar \(x\.tar\)"),
        (["x.npz", "y.npz"], r"holds 8 images .* and 2 \.npz \(x\.npz, y\.npz\)"),
        (
            ["x.parquet", "a/x.tar"],
            r"images .* and 1 \.parquet \(x\.parquet\) and 1 sub-folder \(a\) with 1 \.tar",
        ),
        (["a/x.npz", "more.txt"], r"with 1 \.npz, .*left alone: 1 \.txt; name one"),
    ],
)
def test_a_folder_of_several_kinds_is_refused_with_its_counts(tmp_path, pictures, extra, said):
    folder_of(tmp_path, [*pictures, pictures[0]])
    for name in extra:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=said):
        open_set([tmp_path])


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a.npz", "b.tar"], r"holds 1 \.npz \(a\.npz\) and 1 \.tar"),
        (["a.parquet", "b.tar"], r"holds 1 \.parquet \(a\.parquet\) and 1 \.tar"),
        (["c/a.npz", "d/b.npz"], r"holds 2 sub-folders \(c, d\) with 2 \.npz"),
        (["c/a.png", "d/b.tar"], r"holds 2 sub-folders \(c, d\) with 1 image and 1 \.tar"),
        (["a.npz", "c/a.npz"], r"holds 1 \.npz \(a\.npz\) and 1 sub-folder \(c\) with 1 \.npz"),
        (["a.heic", "b.HEIC", "c"], r"no images, .*left alone: 2 \.heic, 1 without a suffix"),
        ([".hidden.png", "a/.b.png"], "holds no images"),
        (["x.npz", "y.png"], r"holds 1 \.npz \(x\.npz\) and 1 image \(y\.png\)"),
    ],
)
def test_a_folder_of_no_one_kind_is_refused(tmp_path, names, said):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=said):
        open_set([tmp_path])


def test_whatever_is_an_image_in_training_is_one_here(tmp_path, pictures):
    suffixes = [".jfif", ".jpe", ".avif", ".jp2", ".PNG", ".webp"]
    for number, suffix in enumerate(suffixes):
        form = Image.registered_extensions()[suffix.lower()]
        (tmp_path / f"{number}{suffix}").write_bytes(image_bytes(Image.fromarray(pictures[number]), form))
    found = open_set([tmp_path])
    assert len(found) == len(describe(found, fake())) == 6
    (tmp_path / "class").mkdir()
    for file in [f for f in tmp_path.iterdir() if f.is_file()]:
        file.rename(tmp_path / "class" / file.name)
    assert len(open_set([tmp_path])) == 6


def test_thumbnails_that_a_server_makes_are_not_measured(tmp_path, pictures):
    folder_of(tmp_path / "a", pictures)
    folder_of(tmp_path / "a" / "@eaDir", pictures)
    folder_of(tmp_path / "@eaDir", pictures)
    assert len(open_set([tmp_path])) == len(open_set([tmp_path / "a"])) == len(pictures)


def test_what_is_left_alone_is_counted(tmp_path, pictures, capsys):
    folder_of(tmp_path / "flat", pictures)
    folder_of(tmp_path / "classes" / "a", pictures)
    (tmp_path / "tars").mkdir()
    tar_of(tmp_path / "tars" / "x.tar", pictures)
    for name in ("flat/x.heic", "flat/empty/notes.txt", "classes/a/x.heic", "tars/x.heic"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in ("flat", "classes", "tars"):
        found = open_set([tmp_path / name])
        assert capsys.readouterr().err.endswith(f"{tmp_path / name}: left alone: 1 .heic\n")
        assert describe(found, fake()).conditions["left_alone"] == {".heic": 1}
        assert len(found) == COUNT


def test_class_folders_are_counted_and_numbers_out_of_order_named(tmp_path, pictures):
    for name in ("0", "1", "10", "2"):
        folder_of(tmp_path / "numbers" / name, pictures)
        folder_of(tmp_path / "names" / f"class {name}", pictures)
    numbers, names = (describe(open_set([tmp_path / kind]), fake()).conditions for kind in ("numbers", "names"))
    assert (numbers["class_folders"], numbers["class_order"]) == (4, "10 is class 2")
    assert names["class_folders"] == 4
    assert "class_order" not in names
    assert "class_folders" not in describe(open_set([tmp_path / "names" / "class 0"]), fake()).conditions


def test_classes_are_those_of_the_classifier_by_name(tmp_path, pictures):
    """Folders count their classes in the order of their names, which need not be the classifier's."""
    for name in ("boat", "tree"):
        folder_of(tmp_path / "named" / name, pictures)
    images, count = open_set([tmp_path / "named"]), len(pictures)
    found = describe(images, fake("classifier", classes=["tree", "cat", "boat"]))
    assert found.labels.tolist() == [2] * count + [0] * count
    assert not {"class_folders", "class_order", "other_classes"} & found.conditions.keys()
    other = describe(images, fake("classifier", classes=["tree", "cat"])).conditions["other_classes"]
    assert "holds 1 classes that the training images lack: boat" in other
    nameless = describe(images, fake("classifier"))
    assert nameless.labels.tolist() == [0] * count + [1] * count
    assert nameless.conditions["class_order"] == "boat is class 0"
    assert describe(images, fake(classes=["tree", "boat"])).labels.tolist() == nameless.labels.tolist()
    (tmp_path / "named").rename(tmp_path / "moved")
    for name, number in (("boat", "1"), ("tree", "0")):
        (tmp_path / "moved" / name).rename(tmp_path / "moved" / number)
    assert (
        "other_classes"
        not in describe(open_set([tmp_path / "moved"]), fake("classifier", classes=["a", "b"])).conditions
    )


def test_a_class_folder_without_images_is_counted_and_keeps_its_number(tmp_path, pictures, capsys):
    for label in "ac":
        folder_of(tmp_path / label, pictures)
    (tmp_path / "b").mkdir()
    found = open_set([tmp_path])
    assert "left alone: 1 class folders without images (b)" in capsys.readouterr().err
    assert found.labels is not None
    assert np.unique(found.labels).tolist() == [0, 2], "as a class that has images elsewhere is numbered"
    assert describe(found, fake()).conditions["left_alone"] == {"class folders without images (b)": 1}


def test_links_are_followed_once_and_names_may_be_of_any_bytes(tmp_path, pictures):
    folder_of(tmp_path / "classes" / "a", pictures)
    (tmp_path / "classes" / "a" / "up").symlink_to(tmp_path / "classes")
    (tmp_path / "classes" / "a" / "round").symlink_to("round")
    assert len(open_set([tmp_path / "classes"])) == COUNT
    flat = folder_of(tmp_path / "flat[1]", pictures)
    (flat / "000.png").rename(Path(os.fsdecode(os.fsencode(flat) + b"/\xff.png")))
    assert len(describe(open_set([flat]), fake())) == COUNT
    (flat / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(InputError, match=r"image gone\.png of .* cannot be read"):
        describe(open_set([flat]), fake())
    (flat / "gone.png").unlink()
    os.mkfifo(flat / "pipe.png")
    with pytest.raises(InputError, match=r"pipe\.png is no file but a pipe"):
        open_set([flat])


def test_names_with_brackets_are_no_patterns(tmp_path, pictures):
    (tmp_path / "set[1]").mkdir()
    path = tar_of(tmp_path / "set[1]" / "train[1].tar", pictures)
    for given in (path, path.parent):
        assert len(open_set([given])) == COUNT
    with pytest.raises(InputError, match=r"no set of images, of which there are 1 \.tar, 1 \.txt"):
        (tmp_path / "set[1]" / "a.txt").touch()
        open_set([tmp_path / "set*" / "*"])


def test_half_labelled_shards_are_no_set(tmp_path, pictures):
    np.savez(tmp_path / "0.npz", arr_0=np.stack(pictures), labels=np.arange(COUNT))
    np.savez(tmp_path / "1.npz", arr_0=np.stack(pictures))
    with pytest.raises(InputError, match=r"0\.npz has labels and .*1\.npz has none"):
        open_set([tmp_path])


def test_a_mean_without_its_covariance_is_not_passed_over(tmp_path, pictures):
    for arrays in (
        {"mu": np.zeros(3)},
        {"sigma": np.eye(3)},
        {"mu_s": np.zeros(3), "mu": np.zeros(3), "sigma": np.eye(3)},
    ):
        np.savez(tmp_path / "s.npz", arr_0=np.stack(pictures), **arrays)
        with pytest.raises(InputError, match="a symmetric"):
            describe(open_set([tmp_path / "s.npz"]), fake())


def set_of_a_job(results, pictures):
    """Two shards, image files and an index in a results folder whose jobs have made them."""
    write_experiment(results)
    with tracking.job(rule="draw", experiment=results / "experiment.json", outputs=[results / "made"]):
        for shard in range(2):
            write_samples(results / "made/shards" / f"{shard}.npz", 4, first=4 * shard)
        folder_of(results / "made/files", pictures)
        write_index(results / "made", "train", 2)
    return results / "made"


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ("shards", "shards/1.npz"),
        ("shards/*.npz", "shards/1.npz"),
        ("shards/1.npz", "shards/1.npz"),
        ("files", "files/003.png"),
        ("index/train.json", "index/train.json"),
    ],
)
def test_what_a_job_made_is_opened_as_it_left_it_alone(tmp_path, pictures, given, changed):
    made = set_of_a_job(tmp_path / "results", pictures)
    (tmp_path / "link").symlink_to(made)
    (made / "shards" / "notes").write_text("nobody's")
    places = [made / given, tmp_path / "link" / given]
    assert [len(open_set([place])) for place in places] == [len(open_set([made / given]))] * 2
    content = (made / changed).read_bytes()
    other = content.replace(b'"resolution": 16', b'"resolution": 15') if given.endswith("json") else content + b" "
    (made / changed).write_bytes(other)
    for place in places:
        with pytest.raises(InputError, match="is not what draw left"):
            open_set([place])
    shutil.copytree(made, tmp_path / "copy")  # which is nobody's, but for what seals itself
    if not given.endswith("json"):
        open_set([tmp_path / "copy" / given])


@pytest.mark.parametrize("batches", [5, ["a", {}], [[1]], None])
def test_sizes_of_batches_that_are_none_are_one_line(tmp_path, batches):
    path = tmp_path / "a.npz"
    stated = json.dumps({"seed": 0, "batches": batches})
    np.savez(path, arr_0=np.zeros((2, 8, 8, 3), np.uint8), conditions=stated)
    with pytest.raises(InputError, match=r"a\.npz lacks a field, or has another than expected"):
        open_set([path]).conditions()


def test_statistics_that_another_network_cannot_use_are_said(tmp_path, capsys):
    path = tmp_path / "a.npz"
    np.savez(path, arr_0=np.zeros((2, 8, 8, 3), np.uint8), mu=np.zeros(3), sigma=np.eye(3))
    own = Extractor("classifier", "", None, lambda images: (images.float().flatten(1)[:, :4],))
    assert not describe(open_set([path]), own).statistics
    assert "holds statistics (mu, sigma) of Inception" in capsys.readouterr().err


def test_no_path_at_all_is_refused_in_words():
    with pytest.raises(InputError, match="no path is given"):
        open_set([])
