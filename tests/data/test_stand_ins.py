"""What is found in place of an image or a table is named: error pages, pointers, archives, unfinished downloads."""

import gzip
import json

import pytest
from tiny_world import tiny_config, write_table

from data.errors import UserError
from data.images import read_image
from data.manifest import open_manifest
from data.refusal import UnreadableImage

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32\nsize 12345\n"
CASES = {
    "an HTML page": [
        b"<!DOCTYPE html>\n<html><head><title>Login</title></head></html>",
        b"\r\n  <html lang='en'>",
        b"\xef\xbb\xbf<!doctype HTML>",
        b"<!-- a comment -->\n<HTML>",
        "<html></html>".encode("utf-16"),
    ],
    "an XML page": [b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", b"<Error><Code>NoSuchKey</Code>"],
    "JSON": [json.dumps({"message": "not found"}).encode(), json.dumps([{"a": 1}], indent=1).encode(), b"{}"],
    "a git-lfs pointer": [LFS, LFS.replace(b"\n", b"\r\n")],
    "a git-annex pointer": [b"/annex/objects/SHA256E-s1234--0123456789abcdef.jpg\n", b"../.git/annex/objects/x/y\n"],
    "a DVC pointer": [b"outs:\n- md5: a304afb96060aad90176268345e10355\n  path: a.jpg\n"],
    "the answer of a web server": [b"HTTP/1.1 403 Forbidden\r\n\r\n"],
    "a ZIP archive": [b"PK\x03\x04" + b"\x14" * 200],
    "a gzip archive": [gzip.compress(b"some" * 99, mtime=0)],
    "a PDF": [b"%PDF-1.7\n"],
    "zeros alone": [bytes(5000)],
    "a TIFF image": [b"II*\0" + bytes(99), b"MM\0*" + bytes(99)],
    "a BMP image": [b"BM\x0a\x0d\0\0" + bytes(99)],
    "a GIF image": [b"GIF89a" + bytes(99)],
    "a WebP image": [b"RIFF\x0a\0\0\0WEBPVP8 "],
    "a JPEG 2000 image": [b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51\0"],
    "a HEIF or AVIF image": [b"\0\0\0\x18ftypheic", b"\0\0\0 ftypavif"],
}


@pytest.mark.parametrize(("name", "content"), [(name, content) for name, some in CASES.items() for content in some])
def test_what_is_no_image_is_named(name, content, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableImage) as caught:
        read_image(path)
    assert str(caught.value).startswith(f"{path}: found {name}")
    assert str(caught.value).endswith(", expected JPEG, PNG or DICOM")


def test_a_link_without_its_content_is_named(tmp_path):
    path = tmp_path / "a.jpg"
    path.symlink_to(".git/annex/objects/aa/bb/x.jpg")
    with pytest.raises(UnreadableImage, match="found a git-annex link"):
        read_image(path)


@pytest.mark.parametrize("content", [CASES["an HTML page"][0], LFS, CASES["a ZIP archive"][0], bytes(99)])
@pytest.mark.parametrize("name", ["manifest.csv", "manifest.csv.gz"])
def test_what_is_no_table_is_named(content, name, tmp_path):
    write_table(tmp_path / "images", 12)
    (tmp_path / "images" / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: found (an HTML|a git-lfs|a ZIP|zeros).*, expected a table$"):
        open_manifest(tiny_config(tmp_path, data__table=name))


def test_an_archive_of_medmnist_that_is_a_page_is_named(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(CASES["an HTML page"][0])
    with pytest.raises(UserError, match=r"found an HTML page .*, expected a MedMNIST .npz file"):
        open_manifest(tiny_config(tmp_path, data__source="medmnist", data__root=str(path)))
