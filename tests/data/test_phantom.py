"""Laws of the synthetic radiographs: reproducible, laid out as MIMIC-CXR-JPG, and not trivial."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from checkout import in_checkout
from mimic_tree import FINDINGS
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data import phantom, phantom_drawing
from data.locks import locked

IMAGES = 700
METADATA_COLUMNS = [
    "dicom_id",
    "subject_id",
    "study_id",
    "PerformedProcedureStepDescription",
    "ViewPosition",
    "Rows",
    "Columns",
    "StudyDate",
    "StudyTime",
    "ProcedureCodeSequence_CodeMeaning",
    "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
]
FINDING_COLUMNS = list(FINDINGS)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("phantom") / "tree"
    phantom.write_tree(root, IMAGES, seed=0)
    return root


def read(root: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(root / f"mimic-cxr-2.0.0-{name}.csv.gz")


def labelled(root: Path) -> pd.DataFrame:
    """Frontal images whose study is surely abnormal (1) or normal (0)."""
    images = read(root, "metadata").merge(read(root, "split")).merge(read(root, "chexpert"))
    images = images[images["ViewPosition"].isin(["AP", "PA"])]
    findings = images[[*phantom.FINDINGS, "Pneumonia"]]
    abnormal, normal = (findings == 1).any(axis=1), images["No Finding"] == 1
    return images.assign(label=abnormal.astype(int))[abnormal | normal]


def path_of(root: Path, row) -> Path:
    subject = f"p{row.subject_id}"
    return root / "files" / subject[:3] / subject / f"s{row.study_id}" / f"{row.dicom_id}.jpg"


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def thumbnails(root: Path, images: pd.DataFrame) -> np.ndarray:
    pictures = [Image.open(path_of(root, row)) for row in images.itertuples()]
    return np.stack([np.asarray(picture.resize((32, 32)), float).ravel() for picture in pictures])


def test_same_seed_gives_the_same_bytes_whatever_the_workers(tmp_path):
    phantom.write_tree(tmp_path / "one", 30, seed=3, workers=1)
    phantom.write_tree(tmp_path / "two", 30, seed=3, workers=2)
    phantom.write_tree(tmp_path / "other", 30, seed=4)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert contents(tmp_path / "one").keys() != contents(tmp_path / "other").keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "other", "two"]


def test_an_interrupted_drawing_leaves_no_tree(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(phantom, "_write_csv", interrupt)
    with pytest.raises(KeyboardInterrupt):
        phantom.write_tree(tmp_path / "tree", 20)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_drawing_left_is_swept_and_no_living_one(tmp_path):
    """A kill cannot tidy up. The next drawing of that tree does, except for other trees and for living drawings."""
    draws = textwrap.dedent("""
        import os, signal, sys, pathlib
        from data import phantom
        def stop(*_):
            print("drawing", flush=True)
            os.kill(os.getpid(), signal.SIGKILL) if sys.argv[2] == "killed" else input()
        phantom._write_csv = stop
        phantom.write_tree(pathlib.Path(sys.argv[1]), 20)
    """)
    words = [sys.executable, "-c", draws, tmp_path / "tree"]
    piped = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": in_checkout()}
    with subprocess.Popen([*words, "killed"], **piped) as killed:
        killed.communicate()
    with subprocess.Popen([*words, "waits"], **piped) as waiting:
        waiting.stdout.readline()
        dead, living = (f".tree.{process.pid}.partial" for process in (killed, waiting))
        assert not (tmp_path / dead).exists()  # the second has swept
        (tmp_path / dead / "files").mkdir(parents=True)  # as earlier versions left it
        (tmp_path / f".other.{killed.pid}.partial").mkdir()
        (tmp_path / ".tree.mine.partial").mkdir()

        phantom.write_tree(tmp_path / "tree", 20)
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names == sorted([f".other.{killed.pid}.partial", ".tree.mine.partial", living, "tree"])
        assert {path.name for path in (tmp_path / "tree").iterdir()}.isdisjoint({"lock", "lock.held"})
        waiting.kill()


def test_a_drawing_that_another_machine_holds_is_not_swept(tmp_path, monkeypatch):
    left = tmp_path / f".tree.{2**22 + 1}.partial"  # no process here has that number
    left.mkdir()
    with locked(left, "busy", wait=False):
        phantom.write_tree(tmp_path / "tree", 20)
        assert left.exists()


def test_a_finished_tree_is_never_overwritten(tmp_path):
    (tmp_path / "kept.txt").touch()
    with pytest.raises(FileExistsError, match="not empty"):
        phantom.write_tree(tmp_path, 20)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_too_few_images_and_unknown_findings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 20"):
        phantom.write_tree(tmp_path / "tree", 19)
    with pytest.raises(ValueError, match="cannot draw \\['Fracture'\\]"):
        phantom_drawing.draw_radiograph(np.random.default_rng(0), frozenset({"Fracture"}), 170, 190)


def test_no_patient_stands_in_two_splits(root):
    split = read(root, "split")
    assert (split.groupby("subject_id")["split"].nunique() == 1).all()
    share = split["split"].value_counts(normalize=True)
    assert share.to_dict() == pytest.approx({"train": 0.7, "validate": 0.1, "test": 0.2}, abs=0.04)


@pytest.mark.parametrize("images", [20, 21, 47])
def test_small_trees_fill_every_split(tmp_path, images):
    phantom.write_tree(tmp_path / "tree", images)
    assert set(read(tmp_path / "tree", "split")["split"]) == {"train", "validate", "test"}
    assert read(tmp_path / "tree", "metadata")["ViewPosition"].isin(["AP", "PA"]).sum() == images


def test_tables_have_the_official_columns(root):
    assert list(read(root, "metadata")) == METADATA_COLUMNS
    assert list(read(root, "split")) == ["dicom_id", "study_id", "subject_id", "split"]
    for labeler in ("chexpert", "negbio"):
        assert list(read(root, labeler)) == ["subject_id", "study_id", *FINDING_COLUMNS]


def test_every_image_listed_exists_as_listed_and_no_other(root):
    metadata = read(root, "metadata")
    listed = {path_of(root, row): (row.Columns, row.Rows) for row in metadata.itertuples()}
    assert set(root.glob("files/p1?/p1*/s5*/*.jpg")) == set(listed) == set(root.rglob("*.jpg"))
    assert all(re.fullmatch(r"(-?[0-9a-f]{8}){5}", name) for name in metadata["dicom_id"])
    for path, size in list(listed.items())[:50]:
        with Image.open(path) as picture:
            assert (picture.size, picture.mode) == (size, "L")


def test_views_are_frontal_but_for_a_handful(root):
    views = read(root, "metadata")["ViewPosition"].value_counts()
    assert views["AP"] + views["PA"] == IMAGES
    assert 0 < views["LATERAL"] + views["LL"] < 0.06 * IMAGES


def test_label_values_are_stated_denied_uncertain_or_blank(root):
    chexpert = read(root, "chexpert")
    findings = chexpert[FINDING_COLUMNS]
    assert set(np.unique(findings.stack().dropna())) == {-1.0, 0.0, 1.0}
    assert 0 < findings.isna().all(axis=1).mean() < 0.06
    normal = findings["No Finding"] == 1
    assert not (findings[normal].drop(columns=["No Finding", "Support Devices"]).abs() == 1).any(axis=None)


def test_about_half_of_the_labelled_studies_are_abnormal(root):
    studies = labelled(root).drop_duplicates("study_id")
    assert 0.50 <= studies["label"].mean() <= 0.58


def test_the_labelers_nearly_agree(root):
    differ = read(root, "chexpert").fillna(9).ne(read(root, "negbio").fillna(9)).any(axis=1)
    assert 0 < differ.mean() < 0.1


def test_some_patients_return_and_some_studies_have_two_images(root):
    metadata = read(root, "metadata")
    assert metadata.groupby("subject_id")["study_id"].nunique().max() > 1
    assert metadata.groupby("study_id").size().max() > 1


def test_equal_generators_draw_equal_radiographs():
    findings = frozenset({*phantom.FINDINGS, "Support Devices"})
    one, two = (phantom_drawing.draw_radiograph(np.random.default_rng(5), findings, 170, 190) for _ in range(2))
    assert one.shape == (170, 190) and one.dtype == np.uint8
    np.testing.assert_array_equal(one, two)


def test_the_heart_points_to_the_patients_left_on_the_images_right():
    rng = np.random.default_rng(0)
    drawn = [phantom_drawing.draw_radiograph(rng, frozenset(), 180, 180) for _ in range(40)]
    mean = np.mean(drawn, axis=0)
    heights = np.s_[95:110]
    assert mean[heights, 96:116].mean() > mean[heights, 64:84].mean() + 20


def test_the_heart_spans_more_than_055_of_the_chest_only_when_enlarged():
    rng = np.random.default_rng(0)
    for enlarged in [False, True] * 20:
        body = phantom_drawing.draw_anatomy(rng)
        columns = phantom_drawing.X[0, (phantom_drawing._chest(rng, body, enlarged).heart > 0).any(axis=0)]
        ratio = np.ptp(columns) / (2 * body.chest)
        assert ratio > 0.53 if enlarged else ratio < 0.50  # the grid takes up to 0.02 away


def test_logistic_regression_on_32_pixels_stays_under_085(root):
    images = labelled(root)
    pixels, label, split = thumbnails(root, images), images["label"].to_numpy(), images["split"].to_numpy()
    validation, scores = {}, {}
    for strength in (1e-4, 1e-3, 1e-2):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))
        model.fit(pixels[split == "train"], label[split == "train"])
        score = model.decision_function(pixels)
        validation[strength] = roc_auc_score(label[split == "validate"], score[split == "validate"])
        scores[strength] = roc_auc_score(label[split == "test"], score[split == "test"])
    assert 0.5 < scores[max(validation, key=validation.get)] < 0.85
