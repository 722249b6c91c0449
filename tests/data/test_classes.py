"""Classes are chosen and shown by name; numbers stay."""

import json
from importlib.resources import files

import pytest

from dpar.data.classes import Classes, imagenet_names, indexed_names, listed_names, plain_names
from dpar.data.images import ImageIndex, open_images
from dpar.errors import InputError
from dpar.experiment.settings import Images
from dpar.files import write_json
from tests.data.samples import folder_of_images

NAMES = ["daisy", "tulips", "kite, bird", "Daisy", "10", None, "\x1b[31mred", "all", "tulips", "$x$ <b>", "0-1"]
CLASSES = Classes(11, NAMES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("daisy", [0]),
        ("Daisy,daisy", [3, 0]),
        ("3, 0", [3, 0]),
        ("kite, bird", [2]),
        ('"kite, bird",5', [2, 5]),
        ("2-4,daisy", [2, 3, 4, 0]),
        ("name:10", [4]),
        ("10-10", [10]),
        ("0-10", list(range(11))),
        ("name:all", [7]),
        ("name:0-1", [10]),
        ("\x1b[31mred", [6]),
    ],
)
def test_labels(text, expected):
    assert CLASSES.labels(text) == expected


def test_a_name_with_a_blank_at_its_end_is_told_from_one_without():
    classes = Classes(3, ["cat", "cat ", "dog"])
    assert classes.labels("dog,cat ") == [2, 1]
    assert classes.labels("dog , cat") == [2, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("daisies", r"no class 'daisies'; did you mean daisy or Daisy\? The classes are daisy, tulips"),
        ("bird", r"did you mean kite, bird\?"),
        ("10", r"10 is the name of class 4 and also means .*: write name:10, or 10-10 for the numbers"),
        ("all", r"all is the name of class 7 .*: write name:all, or 0-10 for the numbers"),
        ("0-1", r"0-1 is the name of class 10"),
        ("tulips", "tulips is the name of the classes 1, 8; give a number"),
        ("11", r"label 11 is out of range; the model knows the classes 0 to 10: daisy"),
        ("0-99", "label 11 is out of range"),
        ("-1", "label -1 is out of range"),
        ("3-1", "the range runs backwards; write 1-3"),
        ("", "no class ''"),
        ("daisy,", "no class ''"),
        ("name:rose", r"no class 'rose'\. The classes are"),
        ('"daisy', "expected names or numbers of classes with commas between"),
        ("a\nb", "expected names or numbers of classes"),
        ("\x1b[31m", r"no class '\\\\x1b\[31m'"),
    ],
)
def test_labels_that_say_nothing_are_refused_in_a_line(text, message):
    with pytest.raises(InputError, match=message) as raised:
        CLASSES.labels(text)
    assert str(raised.value).isprintable()


def test_titles_are_fit_to_be_shown():
    assert [CLASSES.title(label) for label in (0, 5, 6)] == ["daisy", "class 5", r"\x1b[31mred"]
    assert Classes(3).title(1) == "class 1"
    assert Classes(3).listed() == "3 classes, 0 to 2"
    assert Classes(2, ["a", None]).listed() == "a, class 1"


def test_examples_are_names_that_a_shell_takes_as_they_are():
    assert CLASSES.example(1) == "daisy"
    assert CLASSES.example(2) == "0,1"  # tulips stands twice
    assert Classes(2, ["a b", "c"]).example(2) == "a b,c"
    for names in (["$(rm)", "c"], ["1", "0"], ["all", "b"], [None, "b"], None):
        assert Classes(2, names).example(2) == "0,1"
    assert Classes(1, ["one"]).example(2) == "one"


def test_imagenets_names_are_those_of_its_thousand_classes():
    names = imagenet_names()
    assert len(names) == len(set(names.values())) == 1000
    assert list(names) == sorted(names)
    by_number = list(names.values())
    expected = {0: "tench", 1: "goldfish", 207: "golden retriever", 388: "giant panda", 999: "toilet tissue"}
    assert {number: by_number[number] for number in expected} == expected
    assert (files("dpar.data") / "imagenet.txt").is_file(), "it is part of the package"


def test_wordnet_ids_are_read_as_names():
    assert plain_names(["n01443537", None]) == ["goldfish", None]
    assert plain_names(["n01443537", "mine"]) == ["n01443537", "mine"]
    assert plain_names([None]) == [None]
    lists = [f"{name.partition(' (')[0]}, and more" for name in imagenet_names().values()]
    assert plain_names(lists) == list(imagenet_names().values())
    assert plain_names(lists[:5]) == lists[:5]
    classes = Classes(1000, list(imagenet_names().values()))
    assert classes.labels("goldfish,n02099601,388") == [1, 207, 388]
    with pytest.raises(InputError, match=r"no class 'crane'; did you mean crane \(bird\) or .*crane \(machine\)"):
        classes.labels("crane")


def images(folder, **settings):
    return Images(source="folder", train=str(folder), val=str(folder), resolution=8, num_classes=2, **settings)


@pytest.fixture
def index(tmp_path):
    folder_of_images(tmp_path / "photos", {"n01440764": 1, "n01443537": 1})
    found = ImageIndex.build(open_images("folder", str(tmp_path / "photos")), resolution=8, num_classes=2)
    found.save(tmp_path / "index.json")
    return tmp_path / "index.json"


def test_an_experiment_names_its_classes_by_its_index_or_a_list(index, tmp_path):
    assert indexed_names(index) == ["n01440764", "n01443537"]
    assert Classes.of_images(images("photos"), index).names == ["tench", "goldfish"]
    assert Classes.of_images(images("photos"), ImageIndex.load(index)).names == ["tench", "goldfish"]
    assert Classes.of_images(images("photos"), tmp_path / "missing.json").names is None
    assert Classes.of_images(images("photos"), None).names is None
    (tmp_path / "names.txt").write_text("one\ntwo \n")
    listed = images("photos", classes=str(tmp_path / "names.txt"))
    assert Classes.of_images(listed, index).names == ["one", "two"]
    (tmp_path / "names.txt").write_text("goldfish\ntench\n")
    with pytest.raises(InputError, match="calls n01440764 goldfish, as if it were n01443537"):
        Classes.of_images(listed, index)
    write_json(tmp_path / "names.txt", {"n01443537": "gold", "n01440764": "other"})
    assert Classes.of_images(listed, index).names == ["other", "gold"]
    assert Classes.of_images(listed, None).names is None
    (tmp_path / "names.json").write_text(json.dumps(["uno", "dos"]))
    assert listed_names(str(tmp_path / "names.json"), 2) == ["uno", "dos"]
    assert listed_names("imagenet", 1000)[999] == "toilet tissue"


def test_an_index_of_before_names_were_written_down_has_those_of_its_folders(index):
    values = json.loads(index.read_text())
    for key in ("classes", "sealed", "seal"):
        del values[key]
    write_json(index, values)
    assert indexed_names(index) == ["n01440764", "n01443537"]


@pytest.mark.parametrize(
    ("found", "names"),
    [
        (["a", "b", "c", "d"], ["d", "c", "b", "a"]),
        (["a", "b", "c", "d"], ["b", "c", "d", "e"]),
        (["cat", "big_dog"], ["Big Dog", "Cat"]),
        (["n01440764", "n01443537"], ["goldfish", "tench"]),
        (["1", "10", "2", "3"], ["one", "two", "three", "ten"]),
        (["class1", "class10", "class2"], ["one", "two", "ten"]),
    ],
)
def test_a_list_in_another_order_than_the_images_classes_is_refused_and_an_object_is_the_way_out(
    tmp_path, found, names
):
    path = str(tmp_path / "names.json")
    write_json(path, names)
    order = ", ".join(found)
    with pytest.raises(InputError, match=rf"images\.classes: .* counted as the images have them: {order};"):
        listed_names(path, len(found), found)
    write_json(path, dict(zip(found[::-1], names[::-1], strict=True)))
    assert listed_names(path, len(found), found) == names
    assert listed_names(path, len(found)) is None, "nothing is known of the images yet"


@pytest.mark.parametrize(
    ("found", "names"),
    [
        (["a", "b"], ["a", "b"]),
        (["a", "b"], ["ant", "bee"]),
        (["a", "b"], ["b", "b"]),  # not told apart, and warned of
        (["a", None], ["ant", "a thing"]),
        (["n01440764", "n01443537"], ["tench", "gold fish"]),
        (["0", "1", "2"], ["zero", "one", "two"]),
        (["01", "02", "10"], ["one", "two", "ten"]),
        (["1", "10", "2"], ["1", "10", "2"]),
        ([None, None], ["ant", "bee"]),
    ],
)
def test_a_list_that_fits_the_images_classes_is_taken(tmp_path, found, names):
    write_json(tmp_path / "names.json", names)
    assert listed_names(str(tmp_path / "names.json"), len(found), found) == names


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"a": "ant"}, r"lacks b; the classes of the images are a, b"),
        ({"a": "ant", "b": "bee", "c": "cat"}, r"knows c; "),
        ({"A": "ant", "b": "bee"}, r"lacks a, and knows A; "),
        ({"a": "ant", "b": 3}, r"has no name to show for b; "),
    ],
)
def test_an_object_that_does_not_name_every_class_is_refused(tmp_path, names, message):
    write_json(tmp_path / "names.json", names)
    with pytest.raises(InputError, match=rf"images\.classes: .*names\.json {message}"):
        listed_names(str(tmp_path / "names.json"), 2, ["a", "b"])


def test_classes_are_told_with_the_names_that_the_images_have():
    assert Classes(3, ["ant", "bee", "c"]).paired(["a", None, "c"]) == "a=ant, class 1=bee, c=c"
    assert Classes(2, ["a", "b"]).paired(["a", "b"]) == Classes(2, ["a", "b"]).paired(None) == "a, b"
    assert Classes(2).paired(["a", "b"]) == "2 classes, 0 to 1"


def test_names_of_several_classes_are_told_with_their_numbers():
    assert Classes(5, ["x", "x", "y", None, "x"]).repeated() == "x (0, 1, 4)"
    assert Classes(2, ["x", "y"]).repeated() == Classes(2, [None, None]).repeated() == Classes(2).repeated() == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one\n", r"holds 1 names, expected a name for each of the 2 classes"),
        ("one\n\n", "holds entry 1 is no name"),
        ('["one", 2]', "entry 1 is no name"),
        ("[", "is not JSON"),
        ('{"a": "cat", "b": "dog", "a": "cow"}', r"images\.classes: .*the key 'a' is there twice\); correct the file"),
    ],
)
def test_a_list_that_is_none_is_refused(tmp_path, text, message):
    (tmp_path / "names").write_text(text)
    with pytest.raises(InputError, match=message):
        listed_names(str(tmp_path / "names"), 2)


def test_a_list_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "latin").write_bytes(b"caf\xe9\nb\n")
    for name in ("latin", "missing"):
        with pytest.raises(InputError, match=r"images\.classes: .* cannot be read"):
            listed_names(str(tmp_path / name), 2)
    with pytest.raises(InputError, match="imagenet holds 1000 names, expected a name for each of the 2 classes"):
        listed_names("imagenet", 2)


def test_a_word_of_a_name_is_enough_for_a_suggestion():
    garments = Classes(3, ["t-shirt_top", "ankle_boot", "bag"])
    for text, meant in (("boots", "ankle_boot"), ("Ankle boot", "ankle_boot"), ("shirt", "t-shirt_top")):
        with pytest.raises(InputError, match=f"did you mean {meant}[?]"):
            garments.labels(text)
