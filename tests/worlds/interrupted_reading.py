"""What preparing may meet: reading that stops, and files without an image. Also the bytes of the store it makes."""

from pathlib import Path

import data.store
from data.store import ImageStore

STORE_FILES = ("images.npy", "index.csv", "rejected.csv", "store.json")


def bytes_of(store: ImageStore) -> dict[str, bytes]:
    return {name: (store.folder / name).read_bytes() for name in STORE_FILES}


def stop_at(monkeypatch, call: int, error: type[BaseException] = KeyboardInterrupt) -> list[str]:
    """Let reading fail at its n-th call; returns the paths read so far."""
    read, paths = data.store.read_fitted, []

    def interrupted(path, *rest):
        paths.append(path)
        if len(paths) == call:
            raise error
        return read(path, *rest)

    monkeypatch.setattr(data.store, "read_fitted", interrupted)
    return paths


def spoil(images: Path, count: int) -> list[str]:
    """Truncate, empty, remove or replace the first files; returns their ids."""
    ids = sorted(path.name for path in images.glob("*.png"))[:count]
    for number, image_id in enumerate(ids):
        path = images / image_id
        content = (path.read_bytes()[:200], b"", None, b"no image")[number % 4]
        path.unlink() if content is None else path.write_bytes(content)
    return ids
