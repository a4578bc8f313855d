"""Laws of JPEG, PNG and archives of arrays: each reads as what it holds, and fits as asked."""

import csv
import hashlib
import time
from pathlib import Path

import numpy as np
import pytest
from checkout import SHARED
from image_reading import differ, needs_originals, refusal
from PIL import Image
from radiograph_files import STORED, picture, scene

from data.images import fit_image, read_fitted, read_image
from data.jpeg import means_only

# ---------------------------------------------------------------- JPEG and PNG


def test_grey_and_colour_twins_read_alike(tmp_path):
    grey = scene(250).astype(np.uint8)
    plain = Image.fromarray(grey)
    for mode in ("L", "RGB", "RGBA", "LA", "P"):
        assert differ(read_image(picture(plain.convert(mode), tmp_path / f"{mode}.png")), grey) <= 1
    for mode in ("L", "RGB", "CMYK"):
        for progressive in (False, True):
            path = picture(plain.convert(mode), tmp_path / "a.jpg", quality=97, progressive=progressive)
            assert np.abs(read_image(path).astype(float) - grey).mean() < 1


def test_png_of_1_8_and_16_bits(tmp_path):
    grey = scene(250).astype(np.uint8)
    black_white = read_image(picture(Image.fromarray(grey).convert("1"), tmp_path / "1.png"))
    assert set(np.unique(black_white)) == {0, 255}
    assert differ(read_image(picture(grey, tmp_path / "8.png")), grey) == 0
    twelve, sixteen = STORED, (STORED * 16).astype(np.uint16)
    a = read_image(picture(twelve, tmp_path / "12.png"))
    b = read_image(picture(sixteen, tmp_path / "16.png"))
    assert differ(a, b) <= 1 and a.max() == 255 and a.min() == 0  # it does not matter how many of the bits are used
    assert np.corrcoef(a.ravel(), twelve.ravel().astype(float))[0, 1] > 0.99


@pytest.mark.parametrize("shape", [(1501, 1106), (985, 1333), (2000, 260)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("resize", ["pad", "squash", "crop"])
def test_reduced_decode_is_close_to_full_decode(tmp_path, shape, mode, resize):
    noise = np.random.default_rng(0).normal(0, 6, shape)
    grey = np.clip(scene(230, *shape) + noise, 0, 255).astype(np.uint8)
    path = picture(Image.fromarray(grey).convert(mode), tmp_path / "a.jpg", quality=90)
    for size in (64, 224):
        reduced, full = read_fitted(path, size, resize), fit_image(read_image(path), size, resize)
        assert np.abs(reduced.astype(float) - full).mean() < 1.0


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("shape", [(1501, 1106), (985, 1333), (64, 2000), (640, 512)])
def test_a_progressive_jpeg_without_its_details_decodes_to_the_same_pixels_at_an_eighth(tmp_path, mode, shape):
    noise = np.random.default_rng(0).normal(0, 9, shape)
    grey = np.clip(scene(230, *shape) + noise, 0, 255).astype(np.uint8)
    path = picture(Image.fromarray(grey).convert(mode), tmp_path / "a.jpg", quality=90, progressive=True)
    whole = Image.open(path)
    whole.draft("L", (shape[1] // 8, shape[0] // 8))
    assert len(means_only(path.read_bytes())) < path.stat().st_size / 2
    assert differ(read_image(path, at_least=1), np.asarray(whole)) == 0


def test_reduced_decode_never_falls_below_the_wanted_side(tmp_path):
    path = picture(scene(250, 803, 611).astype(np.uint8), tmp_path / "a.jpg")
    for wanted, shorter in [
        (1, 77),
        (76, 77),
        (77, 153),
        (152, 153),
        (153, 306),
        (305, 306),
        (306, 611),
        (900, 611),
    ]:
        assert min(read_image(path, at_least=wanted).shape) == shorter


def test_exif_orientation_is_honoured(tmp_path):
    grey = scene(250, 800, 600).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    turned = picture(grey, tmp_path / "turned.jpg", exif=exif, quality=95)
    assert np.abs(read_image(turned).astype(float) - np.rot90(grey, -1)).mean() < 2
    upright = fit_image(np.rot90(grey, -1).copy(), 64)
    assert np.abs(read_fitted(turned, 64).astype(float) - upright).mean() < 2


@needs_originals
def test_originals_read_and_their_reduced_decode_is_faithful():
    rows = list(csv.DictReader((SHARED / "kermany_originals" / "index.csv").open()))
    assert len(rows) == 120
    for i, row in enumerate(rows):
        path = SHARED / "kermany_originals" / row["path"]
        assert read_fitted(path, 224, "squash").std() > 10
        if i % 8 == 0 or row["path"].endswith("person1258_virus_2138.jpeg"):  # the sharpest of them
            full = Image.open(path).convert("L")
            assert full.size == (int(row["width"]), int(row["height"]))
            for size in (64, 128, 224, 384, 512):
                lanczos = np.asarray(full.resize((size, size), Image.Resampling.LANCZOS), float)
                assert np.abs(read_fitted(path, size, "squash") - lanczos).mean() < 1.5, (path, size)


def test_who_asks_for_it_is_given_the_bytes_that_were_read(tmp_path, archive):
    path, digest = picture(scene(250).astype(np.uint8), tmp_path / "a.png"), hashlib.sha256()
    read_fitted(path, 16, note=digest.update)
    assert digest.digest() == hashlib.sha256(path.read_bytes()).digest()
    seen = []
    read_fitted(f"{archive}#train_images/2", 16, note=seen.append)
    assert seen == [read_image(f"{archive}#train_images/2").tobytes()]


# ---------------------------------------------------------------- fitting


def test_fit_modes_keep_what_they_promise():
    white = np.full((60, 100), 255, np.uint8)
    padded = fit_image(white, 50, "pad")
    assert padded.shape == (50, 50) and (padded[10:40] == 255).all() and not padded[:10].any()
    assert not padded[40:].any()
    assert (fit_image(white, 50, "squash") == 255).all()
    assert (fit_image(white, 50, "crop") == 255).all()
    striped = white.copy()
    striped[:, :20] = striped[:, 80:] = 0  # crop keeps the middle 60 columns, all white
    assert fit_image(striped, 30, "crop")[:, 1:-1].min() > 240
    assert fit_image(white[:1], 40, "pad").sum() == 40 * 255
    with pytest.raises(ValueError, match="resize: found 'zoom', expected one of pad, squash, crop"):
        fit_image(white, 10, "zoom")


def test_fitting_an_image_of_the_right_size_changes_nothing():
    grey = scene(250, 64, 64).astype(np.uint8)
    for resize in ("pad", "squash", "crop"):
        assert differ(fit_image(grey, 64, resize), grey) == 0


# ---------------------------------------------------------------- MedMNIST


@pytest.fixture
def archive(tmp_path) -> Path:
    grey = np.stack([scene(k, 28, 30).astype(np.uint8) for k in (50, 150, 250)])
    three, one = np.stack([grey] * 3, -1), grey[..., None]
    np.savez_compressed(tmp_path / "a.npz", train_images=grey, test_images=three, other_images=one)
    return tmp_path / "a.npz"


def test_archive_member_reads_as_the_array_holds_it(archive):
    with np.load(archive) as arrays:
        assert differ(read_image(f"{archive}#train_images/2"), arrays["train_images"][2]) == 0
        assert differ(read_image(Path(f"{archive}#test_images/1")), arrays["train_images"][1]) <= 1
        assert differ(read_image(f"{archive}#other_images/1"), arrays["train_images"][1]) == 0
    assert read_fitted(f"{archive}#train_images/0", 14).shape == (14, 14)
    read_image(f"{archive}#train_images/2")[:] = 0  # ours to write: the next reader sees no change
    assert read_image(f"{archive}#train_images/2").any()


def test_archive_is_opened_once_for_many_members(archive):
    start = time.perf_counter()
    for i in range(3000):
        read_image(f"{archive}#train_images/{i % 3}")
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        ("train_images/3", "index '3', expected 0 to 2"),
        ("train_images/-1", "index '-1'"),
        ("train_images", "index ''"),
        ("val_images/0", "no 'val_images', expected one of train_images, test_images, other_images"),
    ],
)
def test_archive_member_that_does_not_exist_is_refused(archive, member, reason):
    assert reason in refusal(f"{archive}#{member}")


def test_bad_archives_are_refused(tmp_path):
    (tmp_path / "b.npz").write_bytes(b"garbage" * 99)
    np.savez(tmp_path / "c.npz", train_images=np.zeros((3, 28, 28), np.float32))
    assert "found" in refusal(f"{tmp_path / 'b.npz'}#train_images/0")
    assert "float32" in refusal(f"{tmp_path / 'c.npz'}#train_images/0")
    assert "no such file" in refusal(f"{tmp_path / 'd.npz'}#train_images/0")
