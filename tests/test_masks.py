"""Sets of masks: crops and dense masks, COCO's run lengths, polygons, overlaps."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from PIL import Image

from edgevtx.errors import InputError
from edgevtx.masks import MOST_PIXELS, MaskSet


def blobs(count: int = 6, size: tuple[int, int] = (37, 53), seed: int = 0) -> np.ndarray:
    """Smooth random masks (N,H,W) bool; the second one is empty, the third full, the fourth reaches every edge."""
    rng = np.random.default_rng(seed)
    field = rng.normal(size=(count, size[0] + 8, size[1] + 8)).cumsum(1).cumsum(2)
    field = field[:, 8:, 8:] - field[:, :-8, 8:] - field[:, 8:, :-8] + field[:, :-8, :-8]
    masks = field > 4
    masks[1] = False
    masks[2] = True
    masks[3] |= np.arange(size[1]) % 3 == 0
    return masks


def test_dense_masks_come_back() -> None:
    masks = blobs()
    found = MaskSet.from_dense(masks)
    assert (found.dense() == masks).all() and len(found) == 6 and found.size == (37, 53)
    assert (found.areas == masks.sum((1, 2))).all()
    ys, xs = np.nonzero(masks[0])
    assert found.boxes[0].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    assert found.boxes[1].tolist() == [0, 0, 0, 0] and found.boxes.dtype == np.float32


@pytest.mark.parametrize("size", [(37, 53), (1, 1), (1, 40), (40, 1), (0, 0), (0, 5)])
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
def test_a_map_of_labels_becomes_masks(size: tuple[int, int], dtype: type) -> None:
    rng = np.random.default_rng(0)
    coarse = rng.choice([0, 1, 2, 7, 9], (size[0] // 5 + 1, size[1] // 5 + 1))
    labels = np.kron(coarse, np.ones((5, 5), int))[: size[0], : size[1]].astype(dtype)
    labels[labels == 9] = rng.choice([0, 2, 9], (labels == 9).sum())  # scattered pixels beside solid regions
    ids = [7, 2, 4, 9, 0]  # in another order than they rise, and one that is nowhere
    found = MaskSet.from_labels(labels, ids)
    wanted = MaskSet.from_dense(labels[None] == np.array(ids)[:, None, None])
    assert (found.dense() == wanted.dense()).all() and found.rle() == wanted.rle()
    assert (found.offsets == wanted.offsets).all()
    assert [crop.shape for crop in found.crops] == [crop.shape for crop in wanted.crops]  # tight


def test_labels_that_are_cut_out_of_a_larger_map() -> None:
    whole = np.random.default_rng(1).integers(-1, 3, (20, 30))
    part = whole[3:15, 4:21]
    assert (MaskSet.from_labels(part, [-1, 2]).dense() == (part[None] == np.array([-1, 2])[:, None, None])).all()


@pytest.mark.parametrize("labels", [np.zeros((2, 2)), np.zeros((1, 2, 2), int), [[1, 2]]])
def test_labels_are_a_map_of_integers(labels: object) -> None:
    with pytest.raises(InputError, match="labels must be"):
        MaskSet.from_labels(labels, [1])  # type: ignore[arg-type]


@pytest.mark.parametrize("index", [2, -1, slice(1, 4), [3, 0], np.array([True, False] * 3), []])
def test_indexing_gives_masks(index: object) -> None:
    masks = blobs()
    chosen = np.arange(6)[np.asarray(index, int) if isinstance(index, list) else index]  # type: ignore[index]
    wanted = masks[np.atleast_1d(chosen)]
    assert (MaskSet.from_dense(masks)[index].dense() == wanted).all()  # type: ignore[index]


@pytest.mark.parametrize("size", [(37, 53), (1, 1), (1, 200), (300, 1), (480, 640)])
def test_run_lengths_equal_pycocotools(size: tuple[int, int]) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    masks = blobs(size=size)
    ours = MaskSet.from_dense(masks).rle()
    theirs = coco.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    assert [one["counts"] for one in ours] == [one["counts"].decode() for one in theirs]
    assert all(one["size"] == list(size) for one in ours)
    assert (MaskSet.from_rle(theirs).dense() == masks).all()


def test_run_lengths_do_not_ask_for_tight_crops() -> None:
    masks = blobs()
    loose = MaskSet((37, 53), tuple(masks), np.zeros((6, 2), np.int64))
    assert loose.rle() == MaskSet.from_dense(masks).rle()
    assert (loose.boxes == MaskSet.from_dense(masks).boxes).all()


def test_long_runs_and_plain_counts() -> None:
    coco = pytest.importorskip("pycocotools.mask")
    mask = np.zeros((1, 4000, 3000), bool)
    mask[0, 3999, 2999] = mask[0, 10:2000, 5] = True
    assert MaskSet.from_dense(mask).rle()[0]["counts"] == coco.encode(np.asfortranarray(mask[0]))["counts"].decode()
    assert MaskSet.from_rle([{"size": [2, 2], "counts": [1, 2, 1]}]).dense().tolist() == [[[0, 1], [1, 0]]]


def test_overlaps_equal_dense_arithmetic() -> None:
    first, second = blobs(seed=1), blobs(4, seed=2)
    shared = (first[:, None] & second[None]).sum((2, 3))
    union = (first[:, None] | second[None]).sum((2, 3))
    ours = MaskSet.from_dense(first).iou(MaskSet.from_dense(second))
    np.testing.assert_allclose(ours, shared / np.maximum(union, 1))


def test_polygons_fill_the_mask_again() -> None:
    cv2 = pytest.importorskip("cv2")
    mask = np.zeros((1, 40, 50), bool)
    mask[0, 5:20, 7:30] = mask[0, 25:38, 2:9] = True
    found = MaskSet.from_dense(mask).polygons()
    assert len(found) == 1 and len(found[0]) == 2
    drawn = cv2.fillPoly(np.zeros((40, 50), np.uint8), found[0], 1)
    assert (drawn == mask[0]).all()
    assert MaskSet.from_dense(np.zeros((1, 4, 4), bool)).polygons() == [[]]


@pytest.mark.parametrize(
    ("crop", "offset", "message"),
    [
        (np.ones((4, 4), bool), (8, 0), "leaves the frame of 10x10 px"),
        (np.ones((4, 4), bool), (-1, 0), "leaves the frame"),
        (np.ones((4, 4)), (0, 0), "must be .h, w. bool, but got .4, 4. float64"),
        ([[True]], (0, 0), "but got list"),
    ],
)
def test_wrong_crops_are_refused(crop: object, offset: tuple[int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MaskSet((10, 10), (crop,), np.array([offset], np.int64))  # type: ignore[arg-type]


def test_wrong_offsets_sizes_and_run_lengths_are_refused() -> None:
    with pytest.raises(InputError, match="offsets must be"):
        MaskSet((10, 10), (np.ones((1, 1), bool),), np.zeros((2, 2), np.int64))
    with pytest.raises(InputError, match="int64"):
        MaskSet((10, 10), (np.ones((1, 1), bool),), np.zeros((1, 2)))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="one frame"):
        MaskSet.empty((1, 2)).iou(MaskSet.empty((2, 1)))
    for counts in ("", "o", [1, 2], [-1, 5]):
        with pytest.raises(InputError, match=r"run.length"):
            MaskSet.from_rle([{"size": [2, 2], "counts": counts}])
    with pytest.raises(InputError, match="size"):
        MaskSet.from_rle([])
    with pytest.raises(InputError, match="N, H, W"):
        MaskSet.from_dense(np.ones((2, 2), bool))


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([{"counts": [4]}], r"must be \{.size.: \[H, W\], .counts.: ...\}, but got the keys \['counts'\]"),
        ([{"size": [2, 2]}], r"but got the keys \['size'\]"),
        ({"size": [2, 2], "counts": [4]}, "but got str; pass a list"),
        ([None], "but got NoneType"),
        ([[2, 2]], "but got list"),
        ([{"size": 4, "counts": [4]}], r"two whole numbers \[H, W\], but got 4"),
        ([{"size": [2, 2, 1], "counts": [4]}], "two whole numbers"),
        ([{"size": [2.0, 2.0], "counts": [4]}], "two whole numbers"),
        ([{"size": None, "counts": [4]}], "two whole numbers"),
        ([{"size": "22", "counts": [4]}], "two whole numbers"),
        ([{"size": [-2, -2], "counts": [4]}], "0 px or more"),
        ([{"size": [2, 2], "counts": None}], "COCO's string or a list of whole numbers, but got NoneType"),
        ([{"size": [2, 2], "counts": 4}], "but got int"),
        ([{"size": [2, 2], "counts": {"a": 4}}], "but got dict"),
        ([{"size": [2, 2], "counts": [1.5, 2.5]}], "a list of whole numbers"),
        ([{"size": [2, 2], "counts": ["4"]}], "a list of whole numbers"),
        ([{"size": [2, 2], "counts": [[1], [1, 2]]}], "a list of whole numbers"),
        ([{"size": [2, 2], "counts": [[4]]}], "a list of whole numbers"),
        ([{"size": [2, 2], "counts": [10**30]}], "a list of whole numbers"),
        ([{"size": [2, 2], "counts": [2**62] * 4 + [4]}], f"add up to 2 x 2 px, but add up to {2**64 + 4}"),
        ([{"size": [2, 2], "counts": [3]}], "add up to 2 x 2 px, but add up to 3"),
        ([{"size": [2, 2], "counts": [-1, 5]}], "0 px or more, but one is -1"),
        ([{"size": [2, 2], "counts": "O5"}], "0 px or more, but one is -1"),
        ([{"size": [2, 2], "counts": "o" * 12 + "0"}], "a count of it is too large"),
        ([{"size": [2, 2], "counts": []}], "add up to 2 x 2 px, but add up to 0"),
        ([{"size": [2, 2], "counts": "\ud800"}], "no compressed COCO"),
        ([{"size": [2, 2], "counts": "4 \u00e9"}], "no compressed COCO"),
    ],
)
def test_what_is_no_run_length_says_what_was_expected(runs: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        MaskSet.from_rle(runs)  # type: ignore[arg-type]


def test_characters_that_the_string_does_not_have_are_refused() -> None:
    assert len(MaskSet.from_rle([{"size": [2, 2], "counts": b"04"}])) == 1
    for code in {*range(256)} - {*range(48, 48 + 64)}:  # six bits a character, from "0" on
        with pytest.raises(InputError, match="no compressed COCO"):
            MaskSet.from_rle([{"size": [2, 2], "counts": b"0" + bytes([code]) + b"4"}])


@pytest.mark.parametrize(
    "size", [(10**9, 10**9), (10**9, 3), (3, 10**9), (10**9, 0), (0, 10**9), (13_378, 13_378), (10**30, 1)]
)
def test_a_size_beyond_the_largest_image_is_refused_before_memory_is_taken(size: tuple[int, int]) -> None:
    tracemalloc.start()
    try:
        for runs in ([{"size": list(size), "counts": [size[0] * size[1]]}], []):
            with pytest.raises(InputError, match="at most 178956970 px"):
                MaskSet.from_rle(runs, size=size)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_the_largest_size_is_that_of_the_largest_image() -> None:
    assert MOST_PIXELS == 2 * Image.MAX_IMAGE_PIXELS  # beyond twice its limit Pillow raises
    assert MaskSet.from_rle([], size=(1, MOST_PIXELS)).size == (1, MOST_PIXELS)
    with pytest.raises(InputError, match="at most"):
        MaskSet.from_rle([], size=(1, MOST_PIXELS + 1))


def test_run_lengths_of_another_frame_are_refused() -> None:
    runs = [{"size": [2, 2], "counts": [4]}, {"size": [1, 4], "counts": [4]}]
    with pytest.raises(InputError, match=r"of one frame, but the sizes are \[\(1, 4\), \(2, 2\)\]"):
        MaskSet.from_rle(runs)
    with pytest.raises(InputError, match="of one frame"):
        MaskSet.from_rle(runs[:1], size=(4, 1))
    with pytest.raises(InputError, match="two whole numbers"):
        MaskSet.from_rle([], size=4)  # type: ignore[arg-type]
    assert len(MaskSet.from_rle([{"size": [0, 5], "counts": []}])) == 1


def test_no_masks() -> None:
    none = MaskSet.empty((4, 5))
    assert none.dense().shape == (0, 4, 5) and none.boxes.shape == (0, 4) and none.rle() == []
    assert len(MaskSet.from_rle([], size=(4, 5))) == 0 and none.iou(none).shape == (0, 0)
