"""Make the data that the package ships (`data/shipped/`) of the development copy of PneumoniaMNIST.

    python benchmarks/shipped_data.py ../shared/data/pneumoniamnist_dev.npz data/shipped

Validation images that are, pixel by pixel, training images too are left out: a model is to be chosen on images it
has not seen. Everything else stays as it is. The same arrays give the same bytes, as far as zlib packs them alike.
"""

import argparse
import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from data.labels import words

NAME = "pneumoniamnist_demo.npz"
PARTS = ("train", "val", "test")
PICTURES = 3  # files to try prediction on: the first of the test part, whatever they show
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # a date in the archive would change its bytes


def without_repeats(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of an archive without the validation images that are training images too."""
    seen = {image.tobytes() for image in arrays["train_images"]}
    new = np.array([image.tobytes() not in seen for image in arrays["val_images"]])
    return arrays | {"val_images": arrays["val_images"][new], "val_labels": arrays["val_labels"][new]}


def pack(arrays: dict[str, np.ndarray]) -> bytes:
    """An .npz file with the same bytes whenever it is made."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as members:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.save(member, array, allow_pickle=False)
            described = zipfile.ZipInfo(f"{name}.npy", LONG_AGO)
            members.writestr(described, member.getvalue(), zipfile.ZIP_DEFLATED, 9)
    return archive.getvalue()


def write_pictures(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """The first test images as PNG files, each named by its number and its label."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(PICTURES):
        label = words(None)[int(arrays["test_labels"][number].any())]
        Image.fromarray(arrays["test_images"][number]).save(folder / f"test{number}_{label}.png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="PneumoniaMNIST, development copy (.npz)")
    parser.add_argument("out", type=Path, help="folder to write to")
    arguments = parser.parse_args()

    with np.load(arguments.archive, allow_pickle=False) as archive:
        arrays = {f"{part}_{kind}": archive[f"{part}_{kind}"] for part in PARTS for kind in ("images", "labels")}
    kept = without_repeats(arrays)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / NAME).write_bytes(pack(kept))
    write_pictures(arguments.out / "radiographs", kept)

    for part in PARTS:
        print(f"{part}: {len(kept[f'{part}_images']):,} of {len(arrays[f'{part}_images']):,} images")


if __name__ == "__main__":
    main()
