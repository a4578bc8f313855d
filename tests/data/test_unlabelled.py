"""Images for pretraining alone are added to the labelled ones, which stay what they are."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny_world import SETTINGS, places, radiograph, tiny_config

from data.config import make_config
from data.errors import UserError
from data.loader import Data, Loader, open_data
from data.manifest import open_manifest
from data.places import expect_unlabelled
from data.privacy import data_sets
from data.unlabelled import FIRST_ROW, with_unlabelled

COUNT = 7


def write_folder(root, count=COUNT, seed=3):
    rng = np.random.default_rng(seed)
    root.mkdir()
    for number in range(count):
        Image.fromarray(radiograph(False, rng)).save(root / f"{number:04}.png")  # the names of labelled ones
    return {"source": "images", "root": str(root)}


def opened(root, *entries, **changed) -> tuple[Data, Data]:
    settings = tiny_config(root, data__unlabelled=list(entries), **changed).data
    labelled = open_data(settings)
    return labelled, with_unlabelled(labelled, settings)


@pytest.fixture
def archive(tmp_path):
    return write_folder(tmp_path / "archive")


def test_training_has_both_and_the_other_splits_are_the_labelled_ones(tmp_path, archive):
    labelled, both = opened(tmp_path, archive)
    assert len(both.split("train")) == len(labelled.split("train")) + COUNT
    for split in ("validate", "test"):
        assert both.split(split)["image_id"].tolist() == labelled.split(split)["image_id"].tolist()
    assert int(both.split("train")["label"].isna().sum()) == COUNT
    assert f"data.unlabelled: {COUNT} images serve pretraining alone (images {COUNT})" in both.manifest.notes


def test_the_labelled_set_is_what_it_is_without_them(tmp_path, archive):
    alone = open_data(tiny_config(tmp_path).data)
    labelled, _ = opened(tmp_path, archive)
    pd.testing.assert_frame_equal(alone.manifest.table, labelled.manifest.table)
    assert alone.manifest.fingerprint() == labelled.manifest.fingerprint()
    assert alone.store.fingerprint == labelled.store.fingerprint


@pytest.mark.parametrize("store", [True, False])
def test_every_row_shows_its_own_image(tmp_path, archive, store):
    changed = {} if store else {"data__store": False}
    _, both = opened(tmp_path, archive, **changed)
    alone = {0: open_data(tiny_config(tmp_path).data)}
    alone[1] = open_data(tiny_config(tmp_path, data__source="images", data__root=archive["root"], data__views=[]).data)
    table = both.split("train")
    for batch in Loader(both, table, 5, seed=1).epoch():
        for image, label, row in zip(batch.images, batch.labels, batch.numbers.tolist(), strict=True):
            other = int(row >= FIRST_ROW)
            [block] = alone[other].store.read([np.array([row - other * FIRST_ROW])])
            assert np.array_equal(image[0].numpy(), block[0])
            assert bool(label.isnan()) == bool(other)


def test_numbers_of_either_kind_do_not_depend_on_the_other(tmp_path, archive):
    labelled, both = opened(tmp_path, archive)
    rows = both.split("train").set_index("image_id")["row"]
    mine = labelled.split("train").set_index("image_id")["row"]
    assert rows[mine.index].equals(mine)


def test_batches_of_one_kind_alone_are_read(tmp_path, archive):
    _, both = opened(tmp_path, archive)
    table = both.split("train")
    for chosen in (table[table["row"] < FIRST_ROW], table[table["row"] >= FIRST_ROW]):
        assert sum(len(batch.images) for batch in Loader(both, chosen, 3).epoch()) == len(chosen)


def test_images_that_stand_in_both_are_counted(tmp_path, archive):
    write = tmp_path / "archive"
    root = tmp_path / "images"
    _, _ = opened(tmp_path, archive)
    table = pd.read_csv(root / "manifest.csv")
    tests = table["path"][table["split"] == "test"].tolist()
    for number, name in enumerate(tests[:3]):
        Image.open(root / name).save(write / f"again{number}.png", compress_level=1)  # the same pixels, in other bytes
    _, both = opened(tmp_path, archive)
    assert "data.unlabelled: 3 images of test stand there too, by their file or their pixels" in both.manifest.notes


def test_what_tables_say_of_labels_and_splits_does_not_count(tmp_path, archive):
    splits = ["train"] * 3 + ["val"] * 2 + ["test"] * 2
    rows = pd.DataFrame({"path": [f"{n:04}.png" for n in range(COUNT)], "split": splits})
    rows.assign(label="what?").to_csv(tmp_path / "archive/words.csv", index=False)
    rows.to_csv(tmp_path / "archive/none.csv", index=False)
    for name in ("words", "none"):
        entry = {"source": "table", "root": archive["root"], "table": f"{name}.csv"}
        _, both = opened(tmp_path, entry)
        mine = both.split("train")
        mine = mine[mine["row"] >= FIRST_ROW]
        assert len(mine) == 5 and mine["label"].isna().all()
        assert any("2 images left out" in note and "test images" in note for note in both.manifest.notes)


@pytest.mark.parametrize("folders", [("COVID", "Viral"), ("A/normal", "B"), ("normal", "healthy", "controls")])
def test_class_folders_need_not_say_what_is_normal(tmp_path, folders):
    for split in ("train", "val", "test"):
        for number, folder in enumerate(folders):
            place = tmp_path / "classes" / split / folder
            place.mkdir(parents=True)
            Image.fromarray(radiograph(False, np.random.default_rng(number))).save(place / "0.png")
    _, both = opened(tmp_path, {"source": "folder", "root": str(tmp_path / "classes")})
    mine = both.split("train")
    mine = mine[mine["row"] >= FIRST_ROW]
    assert len(mine) == 2 * len(folders) and mine["label"].isna().all()
    for split in ("validate", "test"):
        assert (both.split(split)["row"] < FIRST_ROW).all()


def test_settings_of_the_labelled_set_are_not_theirs(tmp_path, archive):
    _, both = opened(tmp_path, archive, data__where={"label": 1}, data__sample=3, data__normal=None)
    assert int((both.split("train")["row"] >= FIRST_ROW).sum()) == COUNT


def test_ids_of_labelled_images_are_not_theirs(tmp_path, archive):
    labelled, both = opened(tmp_path, archive)
    table = both.split("train")
    further = both.identities(table[table["row"] >= FIRST_ROW])
    assert further.shape == (COUNT, 2)
    assert not np.isin(labelled.trained_by(labelled.everything()), further).any()


def test_credentialed_images_make_the_whole_private(tmp_path, archive):
    entry = archive
    settings = tiny_config(tmp_path, data__unlabelled=[entry]).data
    assert data_sets(settings) > data_sets(settings.model_copy(update={"unlabelled": ()}))
    _, both = opened(tmp_path, entry, data__credentialed=True)
    assert both.manifest.credentialed


def test_a_place_that_is_not_there_is_named(tmp_path, archive):
    settings = tiny_config(tmp_path, data__unlabelled=[archive, {"source": "images", "root": "nowhere", "name": "b"}])
    with pytest.raises(UserError, match=r"^data\.unlabelled\.1: nowhere: no such folder$"):
        expect_unlabelled(settings.data)


def test_what_is_wrong_with_them_is_told_as_of_them(tmp_path):
    (tmp_path / "empty").mkdir()
    entry = {"source": "images", "root": str(tmp_path / "empty")}
    with pytest.raises(UserError, match=r"^data\.unlabelled: .*empty: found no images"):
        opened(tmp_path, entry)
    entry = write_folder(tmp_path / "archive") | {"where": {"pixelz": 3}}
    with pytest.raises(UserError, match=r"^data\.unlabelled: data\.where: found no column pixelz"):
        opened(tmp_path, entry)


def test_entries_of_one_name_are_refused(tmp_path, archive):
    with pytest.raises(UserError, match=r"data\.unlabelled: found names images, images, expected different ones"):
        tiny_config(tmp_path, data__unlabelled=[archive, archive])


def test_a_mix_may_have_them_too(tmp_path, archive):
    tiny_config(tmp_path)
    part = {"source": "table", "root": str(tmp_path / "images")}
    own = SETTINGS | places(tmp_path, "mae") | {"data.source": "mix", "data.root": "phantom"}
    changed = {"data.sources": [{**part, "name": "a"}], "data.unlabelled": [archive]}
    settings = make_config({}, "tests", own | changed).data
    both = with_unlabelled(open_data(settings), settings)
    assert len(both.split("train")) == 40 + COUNT
    assert set(open_manifest(settings).table["source"]) == {"table"}
