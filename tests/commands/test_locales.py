"""In every locale, no traceback is printed, and what is written and read is the same to the byte."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from checkout import ROOT, in_checkout
from interrupted_reading import STORE_FILES
from tiny_world import make_world, succeed

from data.cli import prepare as main

PLAIN_C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # otherwise Python makes it UTF-8
PREPARE = "from data.cli import prepare\nprepare(sys.argv[1:])"
LOCALES = {
    "a C locale": PLAIN_C,
    "ASCII output": {"PYTHONIOENCODING": "ascii"},
    "Latin-1 output": {"PYTHONIOENCODING": "iso-8859-1"},
}


def run(code: str, locale: dict[str, str], *argv: object) -> subprocess.CompletedProcess:
    code = f"import sys\nfrom data.writing import print_in_any_locale\nprint_in_any_locale()\n{code}"
    command = [sys.executable, "-c", code, *(os.fsencode(str(word)) for word in argv)]
    environment = {name: value for name, value in in_checkout().items() if not name.startswith(("LC_", "LANG"))}
    return subprocess.run(command, env=environment | locale, capture_output=True, timeout=60)


@pytest.mark.parametrize("locale", LOCALES.values(), ids=LOCALES)
def test_what_an_encoding_lacks_is_escaped(locale):
    code = r"print('\u03b1 \u2192 \u2026'); print('\xfc', file=sys.stderr)"  # as Greek, an arrow and dots
    code += "\nfrom data.cli import prepare\nprepare(['--print-config'])"
    done = run(code, locale)
    assert done.returncode == 0, done.stderr
    first, *config = done.stdout.decode("latin-1").splitlines()
    assert first == r"\u03b1 \u2192 \u2026"
    assert "  source: phantom  # layout of the files: mimic-cxr-jpg," in "\n".join(config)
    assert done.stderr.decode("latin-1").strip() in ("ü", r"\xfc")


def test_a_store_prepared_in_another_locale_is_the_same(tmp_path):
    world = make_world(tmp_path / "world")
    table = pd.read_csv(world.images / "manifest.csv", dtype=str)
    table = table.assign(image_id="Bild ä " + table["path"], patient_id=table["patient_id"] + " Ω")
    table.to_csv(world.images / "manifest.csv", index=False, encoding="utf-8")
    succeed(main, "--config", world.config)
    [store] = tmp_path.glob("world/stores/table-*")

    done = run(PREPARE, PLAIN_C, "--config", world.config, f"data.store={tmp_path}/other")
    [other] = tmp_path.glob("other/table-*")
    assert done.returncode == 0, done.stderr
    for name in STORE_FILES:
        assert (other / name).read_bytes() == (store / name).read_bytes()


def test_names_of_files_beyond_ascii_are_a_line_in_a_c_locale(tmp_path):
    world = make_world(tmp_path / "world")
    (world.images / "0000.png").rename(world.images / "ä.png")
    table = pd.read_csv(world.images / "manifest.csv").replace("0000.png", "ä.png")
    table.to_csv(world.images / "manifest.csv", index=False, encoding="utf-8")
    done = run(PREPARE, PLAIN_C, "--config", world.config)
    assert done.returncode == 2
    [line] = done.stderr.decode("ascii").splitlines()
    assert line.startswith("error: ")
    assert r"images/\xe4.png: found a name beyond ASCII (1 such) in a locale of ascii, expected UTF-8; set" in line


# ---------------------------------------------------------------- the code


def test_every_text_is_opened_with_its_encoding_by_name():
    for room in ("data", "mae", "classify", "benchmarks"):
        for path in (ROOT / room).rglob("*.py"):
            for call in calls(path):
                assert not is_text(call) or "encoding" in keywords(call), f"{path}: line {call.lineno}"


def calls(path: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield node


def keywords(call: ast.Call) -> set[str | None]:
    return {keyword.arg for keyword in call.keywords}


def is_text(call: ast.Call) -> bool:
    """Whether it reads or writes text: `path.read_text()`, `path.open("a")`, `open(path)`, `run(…, text=True)`."""
    if "text" in keywords(call) or "universal_newlines" in keywords(call):
        return True
    if isinstance(call.func, ast.Name) and call.func.id == "open":
        return not any("b" in mode for mode in modes(call.args[1:]))
    if not isinstance(call.func, ast.Attribute):
        return False
    if call.func.attr == "open" and (not call.args or modes(call.args)):
        return not any("b" in mode for mode in modes(call.args))
    return call.func.attr in ("read_text", "write_text")


def modes(arguments: list[ast.expr]) -> list[str]:
    texts = [node.value for node in arguments if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [text for text in texts if set(text) <= set("rwaxbt+")]
