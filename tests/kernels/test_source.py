import re
from pathlib import Path

import pytest

from mlx_gemma4.kernels import registry, source
from mlx_gemma4.kernels.source import read_source

STEMS = sorted(path.stem for path in Path(source.__file__).parents[2].glob("kernels/metal/*.metal"))
HEAD = ("in", "out", "template", "grid", "math", "moves", "source")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder that sources are read from."""
    monkeypatch.setattr(source, "files", lambda _: tmp_path)
    read_source.cache_clear()
    yield tmp_path
    read_source.cache_clear()


def test_comments_are_left_out(folder):
    (folder / "a.metal").write_text(
        "// a: reads x_shape\n//\nfloat v = 1; // thread_position_in_grid\n\n"
        "/* two\n   lines */ v = 2 /* * / */ / 3;\n"
    )
    found = read_source("a")
    assert found.body == "float v = 1;\n  v = 2   / 3;\n"
    assert found.header == ""


def test_includes_become_the_header_once_each_and_in_order(folder):
    (folder / "sum.h").write_text('#include "base.h"\nfloat sum();\n')
    (folder / "base.h").write_text("// shared\nfloat base();\n")
    (folder / "a.metal").write_text('// a\n#include "sum.h"\n #include "base.h"\nbody();\n')
    found = read_source("a")
    assert found.header == "float base();\nfloat sum();\n"
    assert found.body == "body();\n"


def test_hash_is_that_of_what_runs(folder):
    hashes = []
    for text in ("// one\nx();\n", "// two\nx();\n\n", "y();\n"):
        (folder / "a.metal").write_text(text)
        read_source.cache_clear()
        hashes.append(read_source("a").sha256)
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("text", [None, '#include "missing.h"\n'])
def test_what_is_missing_is_an_error(folder, text):
    if text:
        (folder / "a.metal").write_text(text)
    with pytest.raises(FileNotFoundError):
        read_source("a")


@pytest.mark.parametrize("stem", STEMS)
def test_every_source_has_its_head(repository, stem):
    text = (repository / "kernels" / "metal" / f"{stem}.metal").read_text()
    lines = text.splitlines()
    assert lines[0].startswith(f"// {stem}: ")
    assert lines[1] == "//"
    words = re.findall(r"^// (\w+) {2,}\S", text, re.MULTILINE)
    assert words[: len(HEAD)] == list(HEAD)


def test_every_source_is_some_kernels(repository):
    assert STEMS
    assert {stem for kernel in registry.KERNELS.values() for stem in kernel.sources} == set(STEMS)


@pytest.mark.parametrize("name", sorted(registry.KERNELS))
def test_every_kernel_has_a_launcher_a_test_and_a_line(repository, name):
    _, _, module = registry.KERNELS[name].launch.__module__.rpartition(".")
    assert (repository / "tests" / "kernels" / f"test_{module}.py").is_file()
    assert f"`{name}`" in (repository / "kernels" / "README.md").read_text()
