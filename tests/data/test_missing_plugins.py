"""A file that lacked a plugin is tried again when the plugins change: they are part of why it was rejected."""

import numpy as np
import pandas as pd
import pytest
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import JPEGLosslessSV1
from radiograph_files import dicom, save, scene
from tiny_world import tiny_config, write_table

import data.dicom
from data.errors import UserError
from data.loader import open_data
from data.preparation import prepare

NAME = "0003.png"  # kinds are told by content


@pytest.fixture
def config(tmp_path):
    """Twelve images and one whose pixels no plugin here decodes."""
    write_table(tmp_path / "images", 13)
    image = dicom(scene(250).astype(np.uint8), bits=8)
    image.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    image.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    image["PixelData"].VR = "OB"
    save(image, tmp_path / "images" / NAME)
    return tiny_config(tmp_path)


@pytest.fixture(autouse=True)
def plugin(monkeypatch):
    """plugin() installs one that decodes it, plugin(working=False) one that does not."""
    decoder = get_decoder(JPEGLosslessSV1)
    monkeypatch.setattr(decoder, "_available", {})
    monkeypatch.setattr(data.dicom, "in_child", lambda decode, most_bytes: decode())

    def install(working=True):
        def decode(source, runner):
            if not working:
                raise ValueError("no")
            return scene(250).astype(np.uint8).tobytes()

        monkeypatch.setattr(decoder, "_available", {"gdcm": decode})
        version = data.dicom.metadata.version
        monkeypatch.setattr(
            data.dicom.metadata, "version", lambda name: "9" if name == "python-gdcm" else version(name)
        )

    return install


def rejected(store) -> pd.DataFrame:
    return pd.read_csv(store.folder / "rejected.csv", dtype=str, keep_default_na=False)


def test_what_plugins_were_there_is_part_of_the_reason(config, tmp_path):
    (tmp_path / "images/0005.png").write_bytes(b"no image")
    table = rejected(prepare(config)).set_index("image_id")
    assert table["plugins"]["0005.png"] == ""
    assert table["plugins"][NAME] == data.dicom.plugins() != ""
    assert "expected a plugin that decodes it" in table["reason"][NAME]


def test_plugins_are_those_that_pydicom_can_use(plugin):
    """gdcm alone decodes JPEG Lossless here: it counts once pydicom can use it."""
    import pydicom

    before = data.dicom.plugins().split(", ")
    assert f"pydicom {pydicom.__version__}" in before and not any("python-gdcm" in name for name in before)
    plugin()
    assert set(data.dicom.plugins().split(", ")) == {*before, "python-gdcm 9"}


def test_an_unfinished_store_tries_again_with_other_plugins(config, tmp_path, plugin):
    strict = tiny_config(tmp_path, data__max_rejected=0)
    with pytest.raises(UserError, match="found 1 unreadable of 13 files"):
        prepare(strict)
    with pytest.raises(UserError, match="found 1 unreadable of 13 files"):  # the plugins are the same
        prepare(strict)
    plugin(working=False)
    with pytest.raises(UserError, match="found 1 unreadable of 13 files"):
        prepare(strict)
    plugin()
    [partial] = tmp_path.glob("stores/*/rejected.partial.csv")
    table = pd.read_csv(partial, dtype=str)
    assert len(table) == 2 and table["plugins"].iloc[1] == f"{table['plugins'].iloc[0]}, python-gdcm 9"
    table.assign(plugins=table["plugins"].iloc[0]).to_csv(partial, index=False)  # as if gdcm had just been installed
    assert len(prepare(strict)) == 13


def test_a_finished_store_gets_a_successor_with_the_file(config, tmp_path, plugin, capsys, monkeypatch):
    first = prepare(config)
    assert len(first) == 12
    plugin()
    capsys.readouterr()
    assert open_data(config.data).store.folder == first.folder  # a run keeps its images until somebody prepares
    assert (
        "note: 1 rejected files lacked a plugin; other plugins are here: mae-prepare tries" in capsys.readouterr().out
    )
    second = prepare(config)
    assert "1 files lacked a plugin" in (out := capsys.readouterr().out) and "12 images taken over" in out
    assert second.folder != first.folder and second.fingerprint != first.fingerprint
    assert len(second) == 13 and rejected(second).empty
    whole = prepare(tiny_config(tmp_path, data__store=str(tmp_path / "whole")))
    assert np.array_equal(second.images, whole.images)

    # from now on it is the store of this config, and the first is as it was
    assert open_data(config.data).store.folder == prepare(config).folder == second.folder
    assert len(type(first)(first.folder)) == 12


def test_a_plugin_that_does_not_help_makes_no_store(config, tmp_path, plugin):
    first = prepare(config)
    plugin(working=False)
    assert prepare(config).folder == first.folder
    assert len(list(tmp_path.glob("stores/*/store.json"))) == 1


def test_a_larger_store_reads_it_again(config, tmp_path, plugin):
    prepare(config)
    plugin()
    pd.read_csv(tmp_path / "images/manifest.csv").head(11).to_csv(tmp_path / "images/manifest.csv", index=False)
    assert len(prepare(config)) == 11
