"""Zips that came over a network: everything unsafe, damaged or surprising in one is refused with the reason."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgevtx.bundle import Bundle
from edgevtx.errors import BundleError


@pytest.fixture
def zipped(empty_cache: Path, tiny_bundle: Path) -> Path:
    return tiny_bundle


def _rezip(path: Path, change: Callable[[list[tuple[zipfile.ZipInfo, bytes]]], None]) -> Path:
    """Write a bundle's zip again with its entries changed."""
    with zipfile.ZipFile(path) as source:
        entries = [(info, source.read(info)) for info in source.infolist()]
    change(entries)
    with zipfile.ZipFile(path, "w") as out:
        for info, data in entries:
            out.writestr(info, data)
    return path


def _with_entry(name: str, mode: int = 0o100644, data: bytes = b"x") -> Callable[[list[Any]], None]:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return lambda entries: entries.append((info, data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_with_entry("../evil.txt"), "leaves its directory"),
        (_with_entry("/evil.txt"), "leaves its directory"),
        (_with_entry("a/../../evil.txt"), "leaves its directory"),
        (_with_entry("C:evil.txt"), "leaves its directory"),
        (_with_entry("a\\..\\evil.txt"), "leaves its directory"),
        (_with_entry("weights.link", 0o120777, b"/etc/passwd"), "link or a device"),
        (_with_entry("extra.txt"), "extra.txt, which its manifest does not list"),
        (_with_entry("tool", 0o100755), "marked executable"),
        *((_with_entry(f"x{suffix}"), "a program or a pickle") for suffix in (".py", ".so", ".pt", ".pkl", ".EXE")),
        (_with_entry("libx.so.1"), "a program or a pickle"),
        (lambda entries: entries.pop(0), "lacks golden.npz"),
        (lambda entries: entries.pop(3), "without manifest.json"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_unsafe_zips_are_refused(zipped: Path, change: Any, message: str, empty_cache: Path) -> None:
    with pytest.raises(BundleError, match=message):
        Bundle.open(_rezip(zipped, change))
    assert not list(empty_cache.glob("bundles/*"))
    assert not list(empty_cache.glob("tmp/*"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_entries_are_refused(zipped: Path) -> None:
    with pytest.raises(BundleError, match=r"holds weights.bin twice"):
        Bundle.open(_rezip(zipped, lambda entries: entries.append(entries[-1])))


def _replaced(name: str, data: bytes) -> Callable[[list[Any]], None]:
    def change(entries: list[Any]) -> None:
        for index, (info, _) in enumerate(entries):
            if info.filename == name:
                entries[index] = (zipfile.ZipInfo(name), data)

    return change


def test_an_archive_that_expands_beyond_its_manifest_is_refused(zipped: Path) -> None:
    with pytest.raises(BundleError, match=r"weights.bin in the bundle expands to 9999999 bytes, but its manifest"):
        Bundle.open(_rezip(zipped, _replaced("weights.bin", bytes(9999999))))


def test_an_entry_that_expands_beyond_its_own_size_is_refused(zipped: Path) -> None:
    # the directory says the manifest's size, the compressed stream holds a thousand times that
    with zipfile.ZipFile(zipped) as source:
        size = source.getinfo("weights.bin").file_size

    def bomb(entries: list[Any]) -> None:
        _replaced("weights.bin", bytes(size * 1000))(entries)
        entries[-1][0].compress_type = zipfile.ZIP_DEFLATED

    data = _rezip(zipped, bomb).read_bytes()
    wrong, right = (size * 1000).to_bytes(4, "little"), size.to_bytes(4, "little")
    assert data.count(wrong) >= 2
    zipped.write_bytes(data.replace(wrong, right))
    with pytest.raises(BundleError, match=r"no whole zip|expands beyond|SHA-256"):
        Bundle.open(zipped)


@pytest.mark.parametrize("keep", [0.2, 0.9, 0.999])
def test_a_truncated_zip_is_refused(zipped: Path, keep: float) -> None:
    data = zipped.read_bytes()
    zipped.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(BundleError, match=r"no whole zip file.*copy it again"):
        Bundle.open(zipped)
