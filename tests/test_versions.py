"""Version ranges, against vendors' spellings."""

from __future__ import annotations

import pytest

from edgevtx.errors import BundleError
from edgevtx.versions import in_range, release


@pytest.mark.parametrize(
    ("version", "specifier", "inside"),
    [
        ("1.23.2", ">=1.23", True),
        ("1.23", ">=1.23.0", True),
        ("1.22.9", ">=1.23", False),
        ("1.100.0", ">=1.23,<2", True),
        ("2.0.0", ">=1.23,<2", False),
        ("2.0.0rc1", ">=1.23,<2", False),
        ("1.23.0rc1", ">=1.23", True),
        ("2026.4.1-22982-e213a147257-releases/2026/4", ">=2025.0", True),
        ("2024.6.0-17404-4c0f47d2335", ">=2025.0", False),
        ("2026.4.1-22982-e213", "==2026.*", True),
        ("2026.4.1-22982-e213", "==2026.4.1", True),
        ("1.24.1+cu12", "!=1.24.1", False),
        ("10.3.0", "~=10.3", True),
        ("11.0.0", "~=10.3", False),
        ("10.3.0", ">10.3", False),
        ("10.3.0", "<= 10.3", True),
        ("1.0", "", True),
    ],
)
def test_in_range(version: str, specifier: str, inside: bool) -> None:
    assert in_range(version, specifier) is inside


def test_release() -> None:
    assert release("2026.4.1-22982-e213a147257") == (2026, 4, 1)


@pytest.mark.parametrize(("version", "specifier"), [("unknown", ">=1"), ("1.0", "latest"), ("1.0", ">=1 <2")])
def test_what_is_no_version_or_range_is_said(version: str, specifier: str) -> None:
    with pytest.raises(BundleError, match=r"no version|not understood"):
        in_range(version, specifier)
