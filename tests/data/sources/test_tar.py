"""WebDataset tars: every member is used, counted or refused by name."""

import io
import json
import subprocess
import tarfile

import pytest

from dpar.data.images import ImageIndex, open_images
from dpar.errors import InputError
from tests.data.samples import image_bytes, same, sample_image, tar_of_images

PNG = image_bytes(sample_image(1))


def tar_of(path, *names, labels=b"0"):
    """The source of a tar with such members: `.cls` are labels, others the same image."""
    tar_of_images(path, [(name, labels if name.lower().endswith(".cls") else PNG) for name in names])
    return open_images("webdataset", str(path))


def test_files_that_do_not_fit_are_named(tmp_path):
    png, path = image_bytes(sample_image(1)), tmp_path / "a.tar"
    with pytest.raises(InputError, match=r"no tar matches .*a\.tar"):
        open_images("webdataset", str(path))
    for members, message in (
        ({"x.png": png}, r"sample x of .*a\.tar has no label"),
        ({"x.cls": b"1"}, r"sample x of .*a\.tar has no image"),
        ({"x.png": png, "x.jpg": png, "x.cls": b"1"}, r"sample x of .*a\.tar has two images"),
        ({"x.png": png, "x.cls": b"cat"}, r"x\.cls of .*a\.tar holds b'cat', expected a label"),
        ({}, "holds no images"),
    ):
        tar_of_images(path, members)
        with pytest.raises(InputError, match=message):
            open_images("webdataset", str(path))


def test_a_truncated_or_compressed_tar_is_refused(tmp_path):
    members = {"x.cls": b"1", "x.png": image_bytes(sample_image(1))}
    whole = tar_of_images(tmp_path / "a.tar", members).read_bytes()
    for length in (0, 300, 700, 1600):
        (tmp_path / "a.tar").write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"a\.tar is not a whole, uncompressed tar"):
            open_images("webdataset", str(tmp_path / "a.tar"))
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "a.tar", "x")
    with pytest.raises(InputError, match="decompress it"):
        open_images("webdataset", str(tmp_path / "b.tar.gz"))


class TestParts:
    """`_info.json` says which tars there are and how many samples each holds."""

    def made(self, folder, counts, *lost):
        for name in counts:
            if name not in lost:
                members = [
                    (f"{name}{i}.{kind}", b"0" if kind == "cls" else PNG) for i in range(2) for kind in ("cls", "png")
                ]
                tar_of_images(folder / name, members)
        split = {"name": "train", "filenames": [*counts], "shard_lengths": [*counts.values()]}
        (folder / "_info.json").write_text(json.dumps({"splits": {"train": split}}))
        return str(folder / "*.tar")

    def test_whole_ones_are_read(self, tmp_path):
        assert len(open_images("webdataset", self.made(tmp_path, {"a-0.tar": 2, "a-1.tar": 2}))) == 4

    def test_lost_samples_are_refused(self, tmp_path):
        with pytest.raises(InputError, match=r"a-1\.tar holds 2 samples, expected 3, as _info\.json next to it says"):
            open_images("webdataset", self.made(tmp_path, {"a-0.tar": 2, "a-1.tar": 3}))

    def test_lost_tars_are_refused_where_the_pattern_asks_for_them(self, tmp_path):
        pattern = self.made(tmp_path, {"a-0.tar": 2, "a-1.tar": 2, "b-0.tar": 2}, "a-1.tar", "b-0.tar")
        with pytest.raises(InputError, match=r"matches 1 files, and 2 more .* missing: a-1\.tar, b-0\.tar; fetch them"):
            open_images("webdataset", pattern)
        assert len(open_images("webdataset", str(tmp_path / "a-[0].tar"))) == 2
        assert len(open_images("webdataset", str(tmp_path / "a-0.tar"))) == 2

    def test_a_split_that_lies_elsewhere_is_not_missed(self, tmp_path):
        """A list of the whole data set lies next to each of its splits, also where one alone was fetched."""
        pattern = self.made(tmp_path, {"a-0.tar": 2, "a-1.tar": 2})
        splits = json.loads((tmp_path / "_info.json").read_text())["splits"]
        splits["validation"] = {"filenames": ["b-0.tar", "b-1.tar"], "shard_lengths": [2, 2]}
        (tmp_path / "_info.json").write_text(json.dumps({"splits": splits}))
        assert len(open_images("webdataset", pattern)) == 4
        (tmp_path / "a-1.tar").rename(tmp_path / "b-1.tar")
        with pytest.raises(InputError, match=r"matches 2 files, and 2 more .* missing: a-1\.tar, b-0\.tar; fetch them"):
            open_images("webdataset", pattern)

    def test_tars_are_known_by_their_names_in_any_folder(self, tmp_path):
        self.made(tmp_path, {"a-0.tar": 2, "a-1.tar": 2})
        split = {"filenames": ["data/train/a-0.tar", "./a-1.tar"], "shard_lengths": [2, 3]}
        (tmp_path / "_info.json").write_text(json.dumps({"splits": {"train": split}}))
        with pytest.raises(InputError, match=r"a-1\.tar holds 2 samples, expected 3"):
            open_images("webdataset", str(tmp_path / "*.tar"))

    @pytest.mark.parametrize(
        "text",
        [
            "{",
            "[]",
            '{"splits": {"train": {"filenames": ["a-0.tar"]}}}',
            '{"splits": 1}',
            '{"splits": {"train": {"filenames": ["a-0.tar"], "shard_lengths": [1e999]}}}',
            '{"splits": {"train": {"filenames": ["a-{0..3}.tar"], "shard_lengths": [1]}}}',
            '{"splits": {"train": {"filenames": ["t/a-0.tar", "v/a-0.tar"], "shard_lengths": [1, 1]}}}',
        ],
    )
    def test_other_files_of_that_name_say_nothing(self, tmp_path, text):
        pattern = self.made(tmp_path, {"a-0.tar": 9})
        (tmp_path / "_info.json").write_text(text)
        assert len(open_images("webdataset", pattern)) == 2


class TestNames:
    def test_dots_belong_to_the_key_where_image_and_label_share_them(self, tmp_path):
        source = tar_of(
            tmp_path / "a.tar",
            *(
                "photo 0 v2.0.jpg",
                "photo 0 v2.0.cls",
                "n1_0.v1.0.PNG",
                "n1_0.v1.0.cls",
                "n1_0.v1.1.png",
                "n1_0.v1.1.CLS",
            ),
        )
        assert source.keys == ["photo 0 v2.0", "n1_0.v1.0", "n1_0.v1.1"]
        assert source.left_alone == {}

    def test_else_the_key_ends_at_the_first_dot_of_the_name(self, tmp_path):
        source = tar_of(
            tmp_path / "a.tar", "d.1/s0.input.jpg", "d.1/s0.cls", "d.1/s1.png", "d.1/s1.cls", "d.1/s1.mask.png"
        )
        assert source.keys == ["d.1/s0", "d.1/s1"]
        assert source.left_alone == {".mask.png": 1}

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (
                ("s0.input.jpg", "s0.target.jpg", "s0.cls"),
                r"sample s0 .* two images, s0\.input\.jpg and s0\.target\.jpg",
            ),
            (("a.jpg", "a.cls", "a.cls"), r"sample a .* two labels \(\.cls\), the second of them a\.cls"),
            (("a.jpg", "a.png", "a.cls"), r"sample a .* two images, the second of them a\.png"),
            (("a.jpg", "a.cls", "a.CLS"), r"the second of them a\.CLS"),
            (("a.jpg", "a.coarse.cls"), r"sample a of .* has no label"),
            (("a.jpg", "a.cls.txt"), r"sample a of .* has no label \(\.cls; there is a\.cls\.txt, which is none\)"),
            (("a.v1.jpg", "b.cls"), r"sample a\.v1 of .* has no label"),
            (("a.jpg", "a.cls", "b.v1.cls"), r"sample b\.v1 of .* has no image"),
            (("x/a.jpg", "y/a.cls"), r"sample x/a of .* has no label"),
        ],
    )
    def test_what_does_not_belong_together_is_named(self, tmp_path, names, message):
        with pytest.raises(InputError, match=message):
            tar_of(tmp_path / "a.tar", *names)

    def test_one_name_in_two_folders_is_two_samples(self, tmp_path):
        assert tar_of(tmp_path / "a.tar", "x/a.jpg", "x/a.cls", "y/a.jpg", "y/a.cls").keys == ["x/a", "y/a"]

    def test_other_members_are_counted(self, tmp_path):
        source = tar_of(
            tmp_path / "a.tar", "a.jpg", "a.cls", "a.json", "b.TXT", "c.v1.json", "LICENSE", "._a.jpg", "a.fine.cls"
        )
        assert source.left_alone == {".json": 2, ".txt": 1, "without a suffix": 1, "hidden": 1, ".fine.cls": 1}

    @pytest.mark.parametrize("made", [".trash", "@eaDir", "#recycle", "x/@eaDir", "__MACOSX/x"])
    def test_thumbnails_and_deleted_images_are_none(self, tmp_path, made):
        both = "a.jpg", "a.cls", "a.json"
        source = tar_of(tmp_path / "a.tar", *(f"./x/{name}" for name in both), *(f"{made}/{name}" for name in both))
        assert (source.keys, source.left_alone) == (["./x/a"], {"hidden": 3, ".json": 1})
        with pytest.raises(InputError, match=r"a\.tar holds no images; .* left alone: 2 hidden"):
            tar_of(tmp_path / "a.tar", f"{made}/a.jpg", f"{made}/a.cls")

    def test_keys_are_names_and_never_paths(self, tmp_path):
        names = ("../../out", "/etc/out", "$(touch out)", "<script>alert(1)</script>", "n" * 300, "a\x1b[31m\nb")
        (tmp_path / "t").mkdir()
        source = tar_of(tmp_path / "t/a.tar", *(n + suffix for n in names for suffix in (".png", ".cls")))
        index = ImageIndex.build(source, resolution=8, num_classes=1)
        index.save(tmp_path / "t/i.json")
        assert ImageIndex.load(tmp_path / "t/i.json").keys == list(names)
        assert sorted(file.name for file in tmp_path.rglob("*")) == ["a.tar", "i.json", "t"]

    def test_names_that_are_no_text_are_usable(self, tmp_path):
        source = tar_of(tmp_path / "a.tar", "caf\udce9.png", "caf\udce9.cls")
        index = ImageIndex.build(source, resolution=8, num_classes=1)
        index.save(tmp_path / "i.json")
        assert ImageIndex.load(tmp_path / "i.json").keys == ["caf\udce9"]
        with pytest.raises(InputError) as caught:
            tar_of(tmp_path / "a.tar", "caf\udce9.png")
        assert str(caught.value).isprintable()

    def test_a_key_stands_in_several_tars_under_their_names(self, tmp_path):
        for name in "ab":
            tar_of(tmp_path / f"{name}.tar", "1.png", "1.cls")
        assert open_images("webdataset", str(tmp_path / "*.tar")).keys == ["a.tar:1", "b.tar:1"]


class TestLabels:
    @pytest.mark.parametrize("text", [b"", b"cat", b"1.0", b"1_0", b"0x1", b"1 2", b"9" * 100, b"1" + b" " * 100])
    def test_what_is_no_label_is_named(self, tmp_path, text):
        with pytest.raises(InputError, match=r"a\.cls of .* expected a label"):
            tar_of(tmp_path / "a.tar", "a.png", "a.cls", labels=text)

    @pytest.mark.parametrize("text", [b"5000000000", b"-3000000000", b"2147483648", b"999999999999999999"])
    def test_a_label_beyond_all_classes_is_named(self, tmp_path, text):
        with pytest.raises(InputError, match=rf"label out of range: {text.decode()} in a\.cls of"):
            tar_of(tmp_path / "a.tar", "a.png", "a.cls", labels=text)

    @pytest.mark.parametrize("text", [b"-1", b"2"])
    def test_a_label_beyond_these_classes_is_named(self, tmp_path, text):
        source = tar_of(tmp_path / "a.tar", "a.png", "a.cls", labels=text)
        with pytest.raises(InputError, match=rf"label out of range: .* {text.decode()} of image a;"):
            ImageIndex.build(source, resolution=8, num_classes=2, every_class=False)

    @pytest.mark.parametrize("text", [b"1", b"1\n", b" 1\r\n", b"001", b"+1"])
    def test_white_space_and_signs_do_not_matter(self, tmp_path, text):
        assert tar_of(tmp_path / "a.tar", "a.png", "a.cls", labels=text).labels.tolist() == [1]


class TestEnds:
    def tar(self, tmp_path, samples=4):
        members = {f"{i}.{s}": data for i in range(samples) for s, data in (("png", PNG), ("cls", b"0"))}
        return tar_of_images(tmp_path / "a.tar", members)

    def test_a_tar_cut_off_anywhere_is_refused(self, tmp_path):
        path = self.tar(tmp_path)
        with tarfile.open(path) as tar:
            places = [m.offset for m in tar] + [tar.offset]
        whole = path.read_bytes()
        for length in (*places, *(p + 100 for p in places), *(p + 600 for p in places[:-1])):
            path.write_bytes(whole[:length])
            with pytest.raises(InputError, match=r"a\.tar is not a whole, uncompressed tar"):
                open_images("webdataset", str(path))
        path.write_bytes(whole[: places[-1] + 1023])
        with pytest.raises(InputError, match=rf"cut off at byte {places[-1] + 1023}: the two blocks of zeros"):
            open_images("webdataset", str(path))
        path.write_bytes(whole[: places[-1] + 1024])
        assert len(open_images("webdataset", str(path))) == 4

    def test_a_tar_of_which_only_the_beginning_was_written_is_refused(self, tmp_path):
        path = self.tar(tmp_path, samples=8)
        with tarfile.open(path) as tar:
            offset = tar.getmember("4.png").offset
        whole = path.read_bytes()
        path.write_bytes(whole[:offset] + bytes(len(whole) - offset))
        with pytest.raises(InputError, match=rf"from byte {offset} on it is {len(whole) - offset} zeros"):
            open_images("webdataset", str(path))

    @pytest.mark.parametrize(("padding", "reason"), [(0, ""), (512, ""), (9728, ""), (10_239, "in the middle of a")])
    def test_less_than_a_record_follows_the_end(self, tmp_path, padding, reason):
        path = self.tar(tmp_path)
        with tarfile.open(path) as tar:
            offset = [m.offset for m in tar] and tar.offset
        path.write_bytes(path.read_bytes()[:offset] + bytes(1024 + padding))
        if reason:
            with pytest.raises(InputError, match=reason):
                open_images("webdataset", str(path))
        else:
            assert len(open_images("webdataset", str(path))) == 4

    def test_more_zeros_are_those_of_a_larger_record_or_of_what_was_never_written(self, tmp_path):
        path = self.tar(tmp_path)
        with tarfile.open(path) as tar:
            offset = [m.offset for m in tar] and tar.offset
        whole = path.read_bytes()[:offset]
        for size, record in ((2**15, True), (3 * 10_240, False), (5 * 2**15, False), (2**21, False), (37_888, True)):
            path.write_bytes(whole + bytes(size - offset))
            if record:
                assert len(open_images("webdataset", str(path))) == 4
            else:
                with pytest.raises(InputError, match=f"from byte {offset} on it is {size - offset} zeros.*tar -b 20"):
                    open_images("webdataset", str(path))

    @pytest.mark.parametrize("member", ["3.cls", "3.png"])
    def test_the_last_member_does_not_end_in_zeros(self, tmp_path, member):
        """Of a file that was to be written in parts the last is missing: less than a record, and no header with it."""
        path = self.tar(tmp_path)
        with tarfile.open(path) as tar:
            place = tar.getmember(member)
        lost = place.offset_data if member.endswith("cls") else place.offset_data + (place.size - 1) // 512 * 512
        whole = path.read_bytes()
        path.write_bytes(whole[:lost] + bytes(len(whole) - lost))
        with pytest.raises(InputError, match=rf"its last member, {member}, ends in zeros|cls of .* expected a label"):
            open_images("webdataset", str(path))

    @pytest.mark.parametrize("blocks", [1, 2, 7, 20, 64, 128, 2048])
    def test_records_may_have_any_size(self, tmp_path, blocks):
        (tmp_path / "x").mkdir()
        for i in range(7):
            (tmp_path / f"x/{i}.png").write_bytes(PNG)
            (tmp_path / f"x/{i}.cls").write_text("0")
        names = sorted(file.name for file in (tmp_path / "x").iterdir())
        command = ["tar", "-b", str(blocks), "-cf", tmp_path / "a.tar", "-C", tmp_path / "x", *names]
        subprocess.run(command, check=True)
        assert len(open_images("webdataset", str(tmp_path / "a.tar"))) == 7

    @pytest.mark.parametrize("samples", range(1, 21))
    def test_tars_of_gnu_tar_are_whole(self, tmp_path, samples):
        (tmp_path / "x").mkdir()
        for i in range(samples):
            (tmp_path / f"x/{i}.png").write_bytes(PNG)
            (tmp_path / f"x/{i}.cls").write_text("0")
        names = sorted(file.name for file in (tmp_path / "x").iterdir())
        subprocess.run(["tar", "-cf", tmp_path / "a.tar", "-C", tmp_path / "x", *names], check=True)
        assert len(open_images("webdataset", str(tmp_path / "a.tar"))) == samples
        assert len(open_images("webdataset", str(self.tar(tmp_path, samples)))) == samples

    def test_a_damaged_header_does_not_end_the_list(self, tmp_path):
        path = self.tar(tmp_path)
        with tarfile.open(path) as tar:
            places = [m.offset for m in tar]
        whole = path.read_bytes()
        for place in places[1:]:
            for hurt in (b"\x07", b"\0" * 512):
                path.write_bytes(whole[:place] + hurt + whole[place + len(hurt) :])
                with pytest.raises(
                    InputError, match=r"a\.tar is not a whole, uncompressed tar|has no label|has no image"
                ):
                    open_images("webdataset", str(path))

    def test_what_follows_the_end_is_refused(self, tmp_path):
        path = self.tar(tmp_path)
        path.write_bytes(path.read_bytes() * 2)
        with pytest.raises(InputError, match="something follows its end"):
            open_images("webdataset", str(path))

    def test_links_in_a_tar_are_refused_by_name(self, tmp_path):
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            with tarfile.open(tmp_path / "a.tar", "w") as tar:
                tar.addfile(tarfile.TarInfo("folder"))
                link = tarfile.TarInfo("a.png")
                link.type, link.linkname = kind, "/etc/passwd"
                tar.addfile(link)
                label = tarfile.TarInfo("a.cls")
                label.size = 1
                tar.addfile(label, io.BytesIO(b"0"))
            with pytest.raises(InputError, match=r"a\.png of .* is a link"):
                open_images("webdataset", str(tmp_path / "a.tar"))


class TestClassNames:
    @pytest.mark.parametrize(
        "listed",
        [["cat", "dog"], [{"wnid": "cat", "name": "c"}, {"wnid": "dog", "name": "c"}], [{"name": "cat"}, "dog"]],
    )
    def test_a_list_beside_the_tar_names_the_classes(self, tmp_path, listed):
        (tmp_path / "classes.json").write_text(json.dumps(listed))
        assert tar_of(tmp_path / "a.tar", "a.png", "a.cls").classes == ["cat", "dog"]

    def test_labels_beyond_the_list_are_refused(self, tmp_path):
        (tmp_path / "classes.json").write_text("[]")
        tar_of(tmp_path / "a.tar", "a.png", "a.cls")  # an empty list names nothing
        (tmp_path / "classes.json").write_text('["cat", "dog"]')
        members = {
            f"{i}.{s}": d for i in range(3) for s, d in (("png", image_bytes(sample_image(i))), ("cls", b"%d" % i))
        }
        with pytest.raises(
            InputError, match=r"classes\.json names the classes 0 to 1, and 1 labels, 2 to 2, lie beyond"
        ):
            open_images("webdataset", str(tar_of_images(tmp_path / "b.tar", members)))

    def test_members_of_samples_name_them(self, tmp_path):
        members = {f"{i}.{suffix}": data for i in range(3) for suffix, data in (
            ("png", image_bytes(sample_image(i))),
            ("cls", str(i % 2).encode()),
            ("json", json.dumps({"class_name": ["cat", "dog"][i % 2], "label": i % 2}).encode()),
        )}  # fmt: skip
        source = open_images("webdataset", str(tar_of_images(tmp_path / "a.tar", members)))
        assert source.classes == ["cat", "dog"]
        assert source.left_alone == {}
        others = {"0.json": b'{"class_name": 3}', "1.json": b"[[", "2.json": b'{"caption": "x"}'}
        source = open_images("webdataset", str(tar_of_images(tmp_path / "b.tar", members | others)))
        assert source.classes is None
        assert source.left_alone == {".json": 3}
        with pytest.raises(InputError, match="calls label 0 cow, which is cat elsewhere"):
            open_images(
                "webdataset", str(tar_of_images(tmp_path / "c.tar", members | {"2.json": b'{"class_name": "cow"}'}))
            )

    def test_members_may_call_a_class_as_the_list_does_beside_its_wordnet_id(self, tmp_path):
        (tmp_path / "classes.json").write_text(json.dumps([{"wnid": "n1", "name": "cat"}, {"wnid": "n2"}]))
        members = {"a.png": PNG, "a.cls": b"0", "a.json": b'{"class_name": "cat"}'}
        path = tar_of_images(tmp_path / "a.tar", members)
        assert open_images("webdataset", str(path)).classes == ["n1", "n2"]
        tar_of_images(path, members | {"a.json": b'{"class_name": "dog"}'})
        with pytest.raises(InputError, match="calls label 0 n1, which is dog elsewhere"):
            open_images("webdataset", str(path))

    def test_without_it_there_are_numbers_only(self, tmp_path):
        assert tar_of(tmp_path / "a.tar", "a.png", "a.cls").classes is None

    @pytest.mark.parametrize("text", ["{", "3", '{"a": 1}', "[1, 2]", "[[]]", "[{}]", "[null]"])
    def test_another_form_is_refused(self, tmp_path, text):
        (tmp_path / "classes.json").write_text(text)
        with pytest.raises(InputError, match=r"classes\.json is no list of class names"):
            tar_of(tmp_path / "a.tar", "a.png", "a.cls")


def test_images_are_read_from_their_places(tmp_path):
    originals = {f"{i}.v1": sample_image(i) for i in range(4)}
    members = {}
    for name, image in originals.items():
        members |= {f"{name}.png": image_bytes(image), f"{name}.cls": b"0", f"{name}.txt": b"about"}
    source = open_images("webdataset", str(tar_of_images(tmp_path / "a.tar", members)))
    assert all(same(source.read(i), originals[source.keys[i]]) for i in (3, 0, 2, 1))
