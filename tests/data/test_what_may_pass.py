"""System trouble is not damage: without descriptors, memory or a server, no file is rejected or left out.

tests/data/test_the_system_refuses.py tests the same for files that a store is prepared from.
"""

import errno
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import JPEGBaseline8Bit
from radiograph_files import dicom, picture, save, scene
from refusing_system import TROUBLES, refuse_files
from tiny_world import call, succeed, tiny_config, write_config

import data.dicom
import data.files_on_disk
import data.image_files
import data.images
import data.refusal
from data.cli import prepare as main
from data.errors import UserError
from data.files_on_disk import exist, look_for
from data.images import read_fitted, read_image
from data.loader import open_data
from data.refusal import NotNow, UnreadableImage
from data.sources.found_images import find_images
from data.workers import ThisProcess

NO_MEMORY = OSError(errno.ENOMEM, "Cannot allocate memory")
NO_FILES = OSError(errno.EMFILE, "Too many open files")


def failing(error):
    def fails(*_, **__):
        raise error

    return fails


# ---------------------------------------------------------------- training from files


@pytest.fixture
def stored(tmp_path):
    return open_data(tiny_config(tmp_path).data).store


@pytest.fixture
def read(tmp_path, monkeypatch):
    """A reader of files that works in this process."""
    monkeypatch.setattr(data.image_files, "start_processes", lambda workers: ThisProcess())
    return open_data(tiny_config(tmp_path, data__store=False).data).store


@pytest.mark.parametrize("error", TROUBLES, ids=repr)
def test_training_from_files_leaves_none_out_for_what_may_pass(error, monkeypatch, read):
    refuse_files(monkeypatch, ("0003.png",), error)
    with pytest.raises(UserError, match=r"0003\.png: found .*, which may pass: run again$"):
        list(read.read([np.arange(5)]))
    assert not read.unreadable


@pytest.mark.parametrize("error", [TROUBLES[0], TROUBLES[-1]], ids=repr)
def test_training_from_files_tries_twice(error, monkeypatch, stored, read):
    file_bytes, refused = data.images._file_bytes, set()

    def once(path):
        if Path(path).name in ("0001.png", "0003.png") and path not in refused:
            refused.add(path)
            raise error
        return file_bytes(path)

    monkeypatch.setattr(data.images, "_file_bytes", once)
    [images] = read.read([np.arange(5)])
    np.testing.assert_array_equal(images, stored.images[:5])
    assert len(refused) == 2 and not read.unreadable


def test_a_batch_that_cannot_be_written_to_leaves_none_out(monkeypatch, read):
    load = np.load
    monkeypatch.setattr(np, "load", lambda *how, **more: failing(NO_FILES)() if "mmap_mode" in more else load(*how))
    with pytest.raises(UserError, match=r"found too many open files, expected to write there, which may pass"):
        list(read.read([np.arange(5)]))


# ---------------------------------------------------------------- one file


def test_no_memory_to_resize_is_no_damage(tmp_path, monkeypatch):
    path = picture(scene(250).astype(np.uint8), tmp_path / "a.png")
    monkeypatch.setattr(data.images, "fit_image", failing(MemoryError()))
    with pytest.raises(NotNow, match=r"a\.png: found too little memory"):
        read_fitted(path, 12)


def test_pillows_own_word_for_no_memory_is_no_damage(tmp_path, monkeypatch):
    path = picture(scene(250).astype(np.uint8), tmp_path / "a.png")
    out_of_memory = ImageFile._get_oserror(-9, encoder=False)  # the code of Pillow's decoders
    monkeypatch.setattr(Image.Image, "convert", failing(out_of_memory))
    with pytest.raises(NotNow, match=r"a\.png: found .*out of memory"):
        read_image(path)


def test_a_library_that_cannot_be_loaded_is_no_damage(tmp_path, monkeypatch):
    path = picture(scene(250).astype(np.uint8), tmp_path / "a.png")
    monkeypatch.setattr(
        data.images, "_open_picture", failing(ImportError("libjpeg.so: cannot open shared object file"))
    )
    with pytest.raises(NotNow, match=r"a\.png: found libjpeg.so: cannot open"):
        read_image(path)


@pytest.mark.parametrize("memory", [True, False])
def test_libjpeg_calls_the_want_of_memory_damage(memory, tmp_path, monkeypatch):
    path = picture(scene(250).astype(np.uint8), tmp_path / "a.jpg")
    path.write_bytes(path.read_bytes()[:-100])
    if not memory:
        monkeypatch.setattr(data.refusal, "mmap", failing(NO_MEMORY))
    with pytest.raises(UnreadableImage, match="damaged content" if memory else "cannot allocate memory") as caught:
        read_image(path)
    assert isinstance(caught.value, NotNow) != memory


# ---------------------------------------------------------------- a DICOM whose pixels a plugin decodes


@pytest.fixture
def compressed(tmp_path) -> Path:
    image = dicom(scene(250).astype(np.uint8), bits=8)
    jpeg = picture(scene(250).astype(np.uint8), tmp_path / "a.jpg").read_bytes()
    image.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    image.PixelData = encapsulate([jpeg])
    image["PixelData"].VR = "OB"
    return save(image, tmp_path / "a.dcm")


def plugins_are(monkeypatch, **functions):
    """Set what decodes JPEGs, by name."""
    decoder = get_decoder(JPEGBaseline8Bit)
    monkeypatch.setattr(decoder, "_available", functions)


@pytest.mark.parametrize("name", ["pillow", "gdcm"])
@pytest.mark.parametrize("error", [MemoryError(), NO_MEMORY, NO_FILES], ids=repr)
def test_a_plugin_without_memory_is_no_damage(error, name, compressed, monkeypatch):
    """pillow decodes in this process, gdcm in a child; pydicom keeps the error to itself."""
    plugins_are(monkeypatch, **{name: failing(error)})
    with pytest.raises(NotNow, match=r"a\.dcm: found .*, expected "):
        read_image(compressed)


def test_a_plugin_that_fails_finds_damage(compressed, monkeypatch):
    plugins_are(monkeypatch, gdcm=failing(ValueError("no")))
    with pytest.raises(UnreadableImage, match=r"JPEG Baseline .* pixel data that cannot be decoded") as caught:
        read_image(compressed)
    assert not isinstance(caught.value, NotNow)


def test_a_child_that_the_kernel_kills_is_no_damage(compressed, monkeypatch):
    plugins_are(monkeypatch, gdcm=lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(NotNow, match=r"found its decoding stopped by the system"):
        read_image(compressed)


def test_a_child_that_crashes_is_damage_unless_memory_lacks(compressed, monkeypatch):
    plugins_are(monkeypatch, gdcm=lambda *_: os.abort())
    with pytest.raises(UnreadableImage) as caught:
        read_image(compressed)
    assert not isinstance(caught.value, NotNow)
    monkeypatch.setattr(data.refusal, "mmap", failing(NO_MEMORY))
    with pytest.raises(NotNow):
        read_image(compressed)


@pytest.mark.parametrize("function", ["fork", "mmap"])
def test_no_room_for_a_child_is_no_damage(function, compressed, monkeypatch):
    plugins_are(monkeypatch, gdcm=failing(ValueError("no")))
    if function == "fork":
        monkeypatch.setattr(os, "fork", failing(OSError(errno.EAGAIN, "Resource temporarily unavailable")))
    else:
        monkeypatch.setattr(data.dicom, "mmap", failing(NO_MEMORY))
    with pytest.raises(NotNow):
        read_image(compressed)


@pytest.mark.parametrize("place", ["pydicom.dcmread", "get_decoder", "BytesIO", "pixel_array"])
def test_no_memory_anywhere_in_a_dicom_is_no_damage(place, compressed, monkeypatch):
    monkeypatch.setattr(f"data.dicom.{place}", failing(MemoryError()))
    with pytest.raises(NotNow):
        read_image(compressed)


# ---------------------------------------------------------------- which files there are


def test_a_file_that_the_server_does_not_tell_of_is_not_left_out(tmp_path, monkeypatch):
    (tmp_path / "a").touch()
    paths = [str(tmp_path / name) for name in "ab"]
    assert exist([*paths, "\0"]).tolist() == [True, False, False]
    monkeypatch.setattr(os, "stat", failing(OSError(errno.ESTALE, "Stale file handle")))
    with pytest.raises(UserError, match=r"/a: found stale file handle, expected to learn whether it is there"):
        exist(paths)


def test_what_is_remembered_of_the_disk_is_not_passed_over(tmp_path, monkeypatch):
    paths = [str(tmp_path / "a")]
    (tmp_path / "a").touch()
    look_for(paths, tmp_path, None).remember(tmp_path)
    assert look_for(paths, tmp_path, tmp_path).recalled
    monkeypatch.setattr(np, "load", failing(NO_FILES))
    with pytest.raises(OSError, match="Too many open files"):
        look_for(paths, tmp_path, tmp_path)


def test_folders_are_searched_or_said_not_to_be(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    picture(scene(250).astype(np.uint8), tmp_path / "deep/a.png")
    scandir = os.scandir

    def refused(error):
        def scan(path):
            if Path(path).name == "deep":
                raise error
            return scandir(path)

        return scan

    monkeypatch.setattr(os, "scandir", refused(PermissionError(errno.EACCES, "Permission denied")))
    found = find_images(tmp_path)
    assert found.notes() == ["1 files passed over: folders, permission denied"]
    monkeypatch.setattr(os, "scandir", refused(OSError(errno.EIO, "Input/output error", str(tmp_path / "deep"))))
    with pytest.raises(UserError, match=r"deep: found input/output error, expected to read it; run again"):
        find_images(tmp_path)


# ---------------------------------------------------------------- commands


@pytest.mark.parametrize("error", [MemoryError(), NO_MEMORY, NO_FILES], ids=repr)
def test_a_command_without_memory_or_descriptors_ends_in_a_line(error, tmp_path, monkeypatch):
    settings = {f"data.{name}": value for name, value in tiny_config(tmp_path).data.model_dump(mode="json").items()}
    yaml = write_config(tmp_path / "my.yaml", {name: value for name, value in settings.items() if value})
    with monkeypatch.context() as patch:
        patch.setattr("data.audit.audit", failing(error))
        outcome = call(main, "--config", yaml)
    [line] = outcome.err.splitlines()
    assert outcome.code == 2 and line.startswith("error: this machine: ")
    assert "60 images" in succeed(main, "--config", yaml)
