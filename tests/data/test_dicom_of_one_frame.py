"""A DICOM of one frame reads as that frame, however it is split and wherever the file says how to show it."""

import struct
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.uid import JPEGBaseline8Bit
from radiograph_files import STORED, dicom, save, scene

from data.dicom import read_dicom
from data.images import read_image

FRAME = "PerFrameFunctionalGroupsSequence"
ALL_FRAMES = "SharedFunctionalGroupsSequence"


def item(**elements) -> list[Dataset]:
    """A sequence of one item."""
    held = Dataset()
    for keyword, value in elements.items():
        setattr(held, keyword, value)
    return [held]


# ---------------------------------------------------------------- where it is said how it is shown


@pytest.mark.parametrize("place", [FRAME, ALL_FRAMES])
def test_an_enhanced_object_is_shown_as_its_groups_say(tmp_path, place):
    rescale = {"RescaleSlope": -2, "RescaleIntercept": 8000}  # a negative slope swaps black and white
    window = {"WindowCenter": 3500, "WindowWidth": 5000, "VOILUTFunction": "SIGMOID"}
    plain = read_image(save(dicom(STORED, **rescale, **window), tmp_path / "a.dcm"))

    # PS3.3 C.7.6.16.2.9b and C.7.6.16.2.10b; the report: MONAI 8468
    groups = item(PixelValueTransformationSequence=item(**rescale), FrameVOILUTSequence=item(**window))
    enhanced = dicom(STORED, NumberOfFrames=1, **{place: groups})
    assert np.array_equal(read_image(save(enhanced, tmp_path / "b.dcm")), plain)


def test_a_frames_own_groups_go_before_those_of_all_frames(tmp_path):
    own = {"WindowCenter": 3000, "WindowWidth": 1000}
    plain = read_image(save(dicom(STORED, **own), tmp_path / "a.dcm"))
    others = item(FrameVOILUTSequence=item(WindowCenter=100, WindowWidth=200))
    enhanced = dicom(STORED, **{FRAME: item(FrameVOILUTSequence=item(**own)), ALL_FRAMES: others})
    assert np.array_equal(read_image(save(enhanced, tmp_path / "b.dcm")), plain)


def test_the_shape_of_a_pixel_may_stand_in_the_groups_too(tmp_path):
    groups = item(PixelMeasuresSequence=item(PixelSpacing=[0.4, 0.2]))
    path = save(dicom(STORED, **{ALL_FRAMES: groups}), tmp_path / "a.dcm")
    assert read_dicom(path.read_bytes(), "window")[1] == pytest.approx(2)


@pytest.mark.parametrize("groups", [[], item(), item(FrameVOILUTSequence=[]), item(FrameVOILUTSequence=item())])
def test_groups_that_say_nothing_are_as_if_absent(tmp_path, groups):
    plain = read_image(save(dicom(STORED), tmp_path / "a.dcm"))
    path = save(dicom(STORED, **{FRAME: groups, ALL_FRAMES: groups}), tmp_path / "b.dcm")
    assert np.array_equal(read_image(path), plain)


# ---------------------------------------------------------------- in which pieces it lies


def stream() -> bytes:
    """A JPEG of an odd number of bytes, which encapsulation makes even."""
    file = BytesIO()
    Image.fromarray(scene(250).astype(np.uint8)).save(file, "JPEG", quality=95)
    content = file.getvalue()
    return content if len(content) % 2 else content[:-2] + b"\xff" + content[-2:]  # a fill byte (T.81, B.1.1.2)


def tables(offset: bytes, length: bytes) -> dict[str, bytes]:
    return {"ExtendedOffsetTable": offset, "ExtendedOffsetTableLengths": length}


EXTENDED, OFFSET, LENGTH = encapsulate_extended([stream()])
SHORT = struct.pack("<Q", 400)
PIECES = {
    "five fragments": (encapsulate([stream()], fragments_per_frame=5), {}),
    "without offsets": (encapsulate([stream()], fragments_per_frame=5, has_bot=False), {}),
    "extended offsets": (EXTENDED, tables(OFFSET, LENGTH)),
    "extended offsets, too short": (EXTENDED, tables(OFFSET, SHORT)),  # the report: pydicom 1968
    "extended offsets that are none": (EXTENDED, tables(b"\1", b"\2")),
}


@pytest.mark.parametrize("kind", PIECES)
def test_offsets_of_frames_do_not_matter_where_there_is_one(tmp_path, kind):
    content, others = PIECES[kind]
    image = dicom(scene(250).astype(np.uint8), bits=8, WindowCenter=127.5, WindowWidth=256, **others)
    image.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    image.PixelData = content
    image["PixelData"].VR = "OB"
    expected = np.asarray(Image.open(BytesIO(stream())))
    assert np.abs(read_image(save(image, tmp_path / "a.dcm")).astype(int) - expected).max() <= 1
