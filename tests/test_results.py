"""Results: validated, indexable, ready for JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgevtx.errors import InputError
from edgevtx.geometry import Geometry
from edgevtx.results import Classification, Detections, Features, names_of


def detections(count: int = 4, tracked: bool = False) -> Detections:
    rng = np.random.default_rng(0)
    corners = np.sort(rng.random((count, 2, 2)) * 100, 1)
    return Detections(
        corners.reshape(count, 4).astype(np.float32),
        np.linspace(0.9, 0.1, count, dtype=np.float32),
        np.arange(count, dtype=np.int64),
        tuple("abcdefgh"[:count]),
        track_ids=np.arange(count, dtype=np.int64) + 10 if tracked else None,
    )


def classification(count: int = 4) -> Classification:
    found = detections(count)
    return Classification(found.class_ids, found.scores, found.labels)


def features() -> Features:
    rng = np.random.default_rng(0)
    return Features(rng.random(5, np.float32), rng.random((2, 3, 5), np.float32), rng.random((6, 2, 3), np.float32))


F, I = np.float32, np.int64  # noqa: E741


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: Detections(np.zeros((3, 5), F), np.zeros(3, F), np.zeros(3, I), ("a",) * 3),
            r"boxes must be \(N, 4\) float32, but got \(3, 5\) float32",
        ),
        (
            lambda: Detections(np.zeros((3, 4)), np.zeros(3, F), np.zeros(3, I), ("a",) * 3),
            r"boxes must be .* but got \(3, 4\) float64",
        ),
        (lambda: Detections([[0, 0, 1, 1]], np.zeros(1, F), np.zeros(1, I), ("a",)), "boxes must be .* but got list"),
        (
            lambda: Detections(np.zeros((3, 4), F), np.zeros(2, F), np.zeros(3, I), ("a",) * 3),
            r"scores must be \(3,\) float32, but got \(2,\)",
        ),
        (
            lambda: Detections(np.zeros((3, 4), F), np.zeros(3, F), np.zeros(3, np.int32), ("a",) * 3),
            "class_ids must be .* int64",
        ),
        (
            lambda: Detections(np.zeros((3, 4), F), np.zeros(3, F), np.zeros(3, I), ("a",)),
            "labels must be 3 names, but got 1",
        ),
        (
            lambda: Detections(
                np.zeros((3, 4), F), np.zeros(3, F), np.zeros(3, I), ("a",) * 3, track_ids=np.zeros(2, I)
            ),
            "track_ids must be",
        ),
        (lambda: Classification(np.zeros((2, 2), I), np.zeros(2, F), ("a",) * 2), r"class_ids must be \(K,\) int64"),
        (lambda: Classification(np.zeros(2, I), np.zeros(3, F), ("a",) * 2), r"scores must be \(2,\)"),
        (lambda: Classification(np.zeros(2, I), np.zeros(2, F), ()), "labels must be 2 names"),
        (lambda: Features(None, np.zeros((2, 3), F)), r"patches must be \(h, w, D\)"),
        (lambda: Features(np.zeros(4, F), np.zeros((2, 3, 5), F)), r"cls must be \(5,\) float32"),
        (lambda: Features(None, np.zeros((2, 3, 5), F), np.zeros((6, 3, 2), F)), r"attention must be \(heads, 2, 3\)"),
    ],
)
def test_wrong_arrays_are_named(make: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make()


@pytest.mark.parametrize(
    ("index", "want"),
    [
        (0, [0]),
        (-1, [3]),
        (np.int64(2), [2]),
        (slice(1, 3), [1, 2]),
        (slice(None, None, -1), [3, 2, 1, 0]),
        (np.array([True, False, False, True]), [0, 3]),
        (np.zeros(4, bool), []),
        ([True, False, True, False], [0, 2]),
        (np.array([3, 0, 0]), [3, 0, 0]),
        ([2, 1], [2, 1]),
        ([], []),
        (np.array([]), []),
    ],
)
@pytest.mark.parametrize("make", [lambda: detections(tracked=True), classification])
def test_indexing_keeps_every_field_together(make: Any, index: Any, want: list[int]) -> None:
    found = make()
    chosen = found[index]
    assert type(chosen) is type(found) and len(chosen) == len(want)
    assert chosen.labels == tuple(found.labels[i] for i in want)
    for name in ("scores", "class_ids", "boxes", "track_ids"):
        if hasattr(found, name):
            np.testing.assert_array_equal(getattr(chosen, name), getattr(found, name)[want])


@pytest.mark.parametrize("index", [4, -5, [0, 9], np.zeros(3, bool)])
def test_an_index_outside_is_an_index_error(index: Any) -> None:
    for found in (detections(), classification()):
        with pytest.raises(IndexError):
            found[index]


def test_iterating_gives_single_items() -> None:
    assert [one.labels for one in detections(3)] == [("a",), ("b",), ("c",)]
    assert [len(one) for one in classification(2)] == [1, 1]


def test_empty_results() -> None:
    for kind in (Detections, Classification):
        assert len(kind.empty()) == 0 and list(kind.empty()) == []
        json.dumps(kind.empty().to_dict())
    assert Features.empty().patches.size == 0
    assert Features.empty().to_dict()["features"]["cls"] is None


def test_json_of_detections() -> None:
    found = json.loads(json.dumps(detections(2, tracked=True).to_dict()))["detections"]
    assert list(found[0]) == ["box", "score", "class_id", "label", "track_id"]
    assert found[1]["track_id"] == 11 and found[1]["class_id"] == 1 and found[1]["label"] == "b"
    np.testing.assert_allclose([row["box"] for row in found], detections(2).boxes, atol=0.00501)
    assert "track_id" not in detections(2).to_dict()["detections"][0]


def test_json_of_classes_and_features() -> None:
    rows = json.loads(json.dumps(classification(2).to_dict()))["classes"]
    assert rows[0] == {"class_id": 0, "label": "a", "score": 0.9}
    found = json.loads(json.dumps(features().to_dict()))["features"]
    np.testing.assert_allclose(found["cls"], features().cls, atol=1e-6)
    assert found["patches_shape"] == [2, 3, 5] and found["attention_shape"] == [6, 2, 3]


def test_results_do_not_change() -> None:
    with pytest.raises(AttributeError):
        detections().scores = np.zeros(4, np.float32)  # type: ignore[misc]


def test_a_class_without_a_name_gets_its_number() -> None:
    assert names_of(np.array([1, 0, 7, -1]), ("fire", "smoke")) == ("smoke", "fire", "7", "-1")


def test_importing_results_loads_numpy_alone() -> None:
    code = (
        "import sys, edgevtx.errors; before = set(sys.modules); import edgevtx.results;"
        "print({n.split('.')[0] for n in set(sys.modules) - before} & {'PIL', 'msgspec', 'cv2', 'torch', 'onnx'})"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=".")
    assert found.stdout.strip() == "set()"


def test_a_summary_is_one_short_line() -> None:
    count = 7
    found = Detections(
        np.arange(4 * count, dtype=np.float32).reshape(count, 4),
        np.linspace(0.9, 0.5, count, dtype=np.float32),
        np.zeros(count, np.int64),
        ("smoke",) * count,
    )
    assert found[:1].summary() == "smoke 0.90 [0 1 2 3]"
    assert found.summary().startswith("smoke 0.90 [0 1 2 3]  smoke 0.83 ") and found.summary().endswith("  and 2 more")
    assert Detections.empty().summary() == "nothing found"
    assert Classification(np.array([1]), np.array([0.25], np.float32), ("cat",)).summary() == "cat 0.250"
    assert Classification.empty().summary() == "no class"
    assert Features(None, np.zeros((3, 4, 8), np.float32)).summary() == "features: 3x4 patches of 8"


# -- pyramids --------------------------------------------------------------------------------------------------

INPUT = Geometry((200, 300), (0, 0, 300, 200), 0, (50, 75), (0, 0), (50, 75))


def pyramid() -> Features:
    rng = np.random.default_rng(0)
    maps = [rng.random((-(-50 // stride), -(-75 // stride), 2 * stride), np.float32) for stride in (4, 8, 16)]
    return Features.pyramid(maps, (4, 8, 16), INPUT)


def test_a_pyramid_gives_each_scale_with_its_own_geometry() -> None:
    found = pyramid()
    assert [one.shape for one in found.maps] == [(13, 19, 8), (7, 10, 16), (4, 5, 32)]
    assert found.patches is found.maps[-1]
    for index, stride in enumerate(found.strides):
        scale = found.scale(index)
        assert scale.patches is found.maps[index] and not scale.maps
        # a map's cells cover whole strides, so the frame's last pixels lie inside the last cells
        ramp = (np.arange(scale.patches.shape[1], dtype=np.float32) + 0.5) * stride
        assert scale.geometry is not None
        row = scale.geometry.masks_to_frame(np.tile(ramp, (1, scale.patches.shape[0], 1)))[0, 100]
        inner = slice(4 * stride, 300 - 4 * stride)  # beyond the centres of the first and last cells values are held
        np.testing.assert_allclose(row[inner], ((np.arange(300) + 0.5) / 4)[inner], atol=1e-3)
    assert found.scale(-1).patches is found.patches
    with pytest.raises(InputError, match="have 3 scales, but scale 3"):
        found.scale(3)


def test_a_pyramid_says_its_sizes() -> None:
    found = pyramid()
    assert found.summary() == "features: 13x19 patches of 8, 7x10 patches of 16, 4x5 patches of 32"
    facts = json.loads(json.dumps(found.to_dict()))["features"]
    assert facts["maps"][0] == {"shape": [13, 19, 8], "stride": 4} and facts["patches_shape"] == [4, 5, 32]
    assert "maps" not in features().to_dict()["features"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"strides": (4, 8)}, "strides must be 3 numbers, one a map, but got 2"),
        ({"patches": np.zeros((4, 5, 32), F)}, "patches must be the last of the maps"),
        ({"maps": (np.zeros((4, 5)), np.zeros((4, 5)), np.zeros((4, 5)))}, r"maps\[0\] must be \(h, w, D\) float32"),
        ({"cls": np.zeros(31, F)}, r"cls must be \(32,\) float32"),
    ],
)
def test_a_pyramid_that_does_not_fit_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        replace(pyramid(), **change)
    with pytest.raises(InputError, match="at least one map"):
        Features.pyramid([], (), INPUT)
