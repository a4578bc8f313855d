"""Which class folders are normal: known by their names, told by `data.normal`, or asked for; and always reported."""

from pathlib import Path

import pytest
from source_files import read, refusal, touch
from tiny_world import mistake, write_config

from data.class_names import says, told_apart
from data.cli import prepare as main
from data.config import make_config
from data.errors import UserError
from data.settings import DataSettings


def fill(root: Path, **counts: int) -> Path:
    """So many images in each class folder; `_` in a name stands for a space."""
    for name, count in counts.items():
        touch(root, *(f"{name.replace('_', ' ')}/{number}.png" for number in range(count)))
    return root


def labels(root: Path, **settings) -> dict[str, float | None]:
    """Class folder → the label of its images."""
    table, _ = read(root, "folder", **settings)
    classes = table["image_id"].str.split("/").str[0]
    return {name: None if label != label else label for name, label in zip(classes, table["label"], strict=True)}


# ---------------------------------------------------------------- what names say


@pytest.mark.parametrize(
    "name",
    [
        *("Normal", "NORMAL ", "01_normal", "2. Normal", "normal-cxr", "Normal Lungs", "healthy_patients", "NoFinding"),
        *("No findings", "Healthy Controls", "gesund", "Unauffällig", "sano", "Sain", "normale", "saudável", "正常"),
    ],
)
def test_names_that_say_normal(name):
    assert says(name) == "normal"


@pytest.mark.parametrize(
    "name", ["Controls", "control", "0", "Negative", "Kontrollen", "Témoins", "controlli", "对照组"]
)
def test_names_that_say_normal_where_nothing_else_does(name):
    assert says(name) == "by contrast"


@pytest.mark.parametrize("name", ["non-COVID", "NonCovid", "No TB", "without pneumonia", "Benign", "TB-negative"])
def test_names_that_may_say_normal(name):
    assert says(name) == "perhaps"


@pytest.mark.parametrize(
    ("given", "read"), [("Controls", ("Controls",)), (0, ("0",)), ([0, "a b"], ("0", "a b")), ([], ()), (None, None)]
)
def test_normal_is_a_name_or_several(given, read):
    assert DataSettings(source="folder", normal=given).normal == read


@pytest.mark.parametrize("given", [1.5, {"a": 1}, [None], [""], True])
def test_what_is_no_name_is_a_line(given):
    with pytest.raises(UserError, match=r"data.normal: found .*, expected a name, or a list of such, or null"):
        make_config({"data": {"source": "folder", "normal": given}}, "my.yaml")


@pytest.mark.parametrize(
    "name", ["abnormal", "not_normal", "TB", "1", "Pneumonia", "nodule", "subnormal", "N", "images"]
)
def test_names_that_do_not(name):
    assert says(name) in ("other", "perhaps")


# ---------------------------------------------------------------- class folders


def test_controls_are_normal_and_it_is_said_before_anything_is_decoded(tmp_path):
    fill(tmp_path, Controls=5, TB=3)
    assert labels(tmp_path) == {"Controls": 0, "TB": 1}
    assert read(tmp_path, "folder")[1][0] == "normal: Controls (5 images); abnormal: TB (3 images)"


def test_where_no_name_says_normal_it_is_asked_for(tmp_path):
    line = refusal(fill(tmp_path, Good=2, TB=3), "folder")
    assert line.startswith(
        f"data.root: {tmp_path}: found class folders Good, TB, none whose name says that it is normal"
    )
    assert "'data.normal=[NAME]'" in line and "data.source=images" in line
    assert labels(tmp_path, normal=["Good"]) == {"Good": 0, "TB": 1}
    assert labels(tmp_path, normal=["good "]) == {"Good": 0, "TB": 1}


@pytest.mark.parametrize(
    ("folders", "doubtful"),
    [
        ({"Normal": 1, "non-COVID": 2, "COVID": 3}, "Normal, non-COVID"),
        ({"Healthy": 1, "Controls": 2, "TB": 3}, "Healthy, Controls"),
        ({"Negative": 1, "Controls": 2, "TB": 3}, "Controls, Negative"),
        ({"Benign": 1, "Malignant": 2}, "Benign"),
        ({"Covid": 1, "non-COVID": 2}, "non-COVID"),
    ],
)
def test_where_several_names_may_say_normal_it_is_asked_for(folders, doubtful, tmp_path):
    line = refusal(fill(tmp_path, **folders), "folder")
    assert f"of which {doubtful} may be normal, expected to be told; give 'data.normal=[NAME, …]'" in line
    wanted = doubtful.split(", ")
    assert labels(tmp_path, normal=wanted) == {name: float(name not in wanted) for name in folders}


def test_a_normal_folder_that_is_not_there_is_named(tmp_path):
    line = refusal(fill(tmp_path, Controls=2, TB=3), "folder", normal=["Contrls"])
    assert (
        line
        == f"data.normal: found 'Contrls', expected class folders of {tmp_path}: Controls, TB; did you mean Controls?"
    )


def test_one_class_in_two_spellings_is_one(tmp_path):
    touch(tmp_path, "train/Control/a.png", "test/CONTROLS/b.png", "test/control/c.png", "train/TB/d.png")
    line = refusal(tmp_path, "folder")
    assert "of which CONTROLS, control, Control may be normal" in line  # Controls is another word
    touch(tmp_path / "one", "train/Control/a.png", "test/control/c.png", "train/TB/d.png")
    assert read(tmp_path / "one", "folder")[0]["label"].tolist() == [0, 0, 1]


@pytest.mark.parametrize("given", ["Normal", "normal", " NORMAL", "nor-mal"])
def test_a_given_name_is_every_spelling_of_it(given):
    counts = ["Normal", "normal", "NORMAL", "TB", "Normal 2"]
    assert told_apart(counts, [given], "x", "labels", "").normal == counts[:3]


@pytest.mark.parametrize("given", ["Stage 2", "stage_2", "STAGE-2"])
def test_a_number_in_a_given_name_counts(given):
    names = ["Stage 1", "Stage 2", "Stage 3", "Stage 5"]
    assert told_apart(names, [given], "x", "labels", "") == (["Stage 2"], ["Stage 1", "Stage 3", "Stage 5"], [])
    with pytest.raises(UserError, match=r"found 'stage 7', expected labels of x: Stage 1, Stage 2"):
        told_apart(names, ["stage 7"], "x", "labels", "")


@pytest.mark.parametrize(
    ("given", "name"), [("no finding", "2. No Finding"), ("7_Clear", "clear"), ("covid", "COVID-19")]
)
def test_a_number_that_only_one_side_has_is_no_matter(given, name):
    assert told_apart([name, "TB"], [given], "x", "labels", "").normal == [name]


def test_unlabelled_images_are_unknown(tmp_path):
    assert labels(fill(tmp_path, Normal=1, Sick=2, unlabelled=3)) == {"Normal": 0, "Sick": 1, "unlabelled": None}
    assert read(tmp_path, "folder")[1][0].endswith("; unknown: unlabelled (3 images)")


def test_what_is_no_class_is_left_out_and_said(tmp_path):
    touch(tmp_path, "COVID/images/a.png", "COVID/masks/a.png", "Normal/images/b.png", "Normal/LungMasks/b.png")
    touch(tmp_path, "__MACOSX/COVID/a.png", ".git/c.png", ".ipynb_checkpoints/d.png", "Normal/.DS_Store")
    table, notes = read(tmp_path, "folder")
    assert table["image_id"].tolist() == ["COVID/images/a.png", "Normal/images/b.png"]
    assert "2 images left out: in folders of masks" in notes
    assert "1 files passed over: folders, __MACOSX of the system" in notes


def test_masks_are_no_radiographs_to_pretrain_on(tmp_path):
    radiographs = ["a.png", "CXR_png/b.png", "unmasked/c.png"]
    masks = ["masks/a.png", "ManualMask/leftMask/b.png", "set/Mask Images/c.png", "set/lung_segmentation/d.png"]
    touch(tmp_path, *radiographs, *masks)
    table, notes = read(tmp_path, "images")
    assert table["image_id"].tolist() == sorted(radiographs)
    assert "4 images left out: in folders of masks" in notes
    for name in radiographs:
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match="found images in folders of masks alone, expected radiographs"):
        read(tmp_path, "images")


@pytest.mark.parametrize("name", ["masks", "Mask", "lung_masks", "Mask Images", "segmentations", "annotations"])
@pytest.mark.parametrize("above", ["", "train/"])
def test_a_folder_of_masks_beside_the_classes_is_no_class(name, above, tmp_path):
    touch(tmp_path, f"{above}Normal/1.png", f"{above}TB/1.png", f"{above}TB/2.png", f"{above}{name}/Normal/1.png")
    touch(tmp_path, f"{above}{name}/1.png", f"{above}{name}/2.png")
    table, notes = read(tmp_path, "folder")
    assert table["label"].tolist() == [0, 1, 1]
    assert "3 images left out: in folders of masks" in notes


def test_a_class_may_be_named_after_a_mask(tmp_path):
    fill(tmp_path, without_mask=2, with_mask=3)
    assert labels(tmp_path, normal="without mask") == {"without mask": 0, "with mask": 1}


@pytest.mark.parametrize(
    ("train", "test"), [("train_set", "test_set"), ("01_train", "02_test"), ("Train Images", "Test Images")]
)
def test_split_folders_may_say_more_than_the_split(train, test, tmp_path):
    touch(tmp_path, *(f"{split}/{name}/{split}.png" for split in (train, test) for name in ("Normal", "TB")))
    assert sorted(read(tmp_path, "folder")[0]["split"]) == ["test", "test", "train", "train"]


def test_a_file_name_in_two_classes_is_two_images(tmp_path):
    touch(tmp_path, "Normal/1.PNG", "TB/1.PNG", "Normal/my scan.JPeG")
    assert read(tmp_path, "folder")[0]["image_id"].tolist() == ["Normal/1.PNG", "Normal/my scan.JPeG", "TB/1.PNG"]


def test_the_question_is_one_line_of_the_command(tmp_path):
    fill(tmp_path / "images", Good=2, TB=3)
    settings = {"data.source": "folder", "data.root": f"{tmp_path}/images", "data.store": f"{tmp_path}/stores"}
    config = write_config(tmp_path / "c.yaml", settings)
    assert "found class folders Good, TB" in mistake(main, "--config", config, keep=tmp_path)
