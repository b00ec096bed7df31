"""The table of what compilers get wrong: each row can be found in a graph, and has a remedy that removes it."""

from __future__ import annotations

import re

import numpy as np
import pytest

pytest.importorskip("onnxscript")

from edgevtx.errors import BundleError
from edgevtx.export.operators import versions
from edgevtx.export.rewrite import COMMON, VARIANTS, Variant, lower
from edgevtx.export.rewrite.patterns import PATTERNS, nodes_of, rows_of
from edgevtx.export.rewrite.remedies import REMEDIES, TYPED, remedies, typed_remedies
from edgevtx.runtimes.known_bad import EVERY, REFUSE, TABLE, WARN, find
from edgevtx.versions import in_range

TARGETS = ("tensorrt", "tensorrt-rtx")


@pytest.mark.parametrize("row", TABLE, ids=[row.id for row in TABLE])
def test_each_row_is_whole(row):
    assert row.pattern in PATTERNS
    assert row.target in TARGETS
    assert re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", row.issue)
    assert row.remedy in (REFUSE, WARN, *REMEDIES, *TYPED)
    assert bool(row.advice) == (row.remedy in (REFUSE, WARN))
    assert set(row.precisions) <= set(EVERY)
    assert all(re.fullmatch(r"sm\d+", gpu) for gpu in row.gpus)
    assert isinstance(in_range(versions(row.target)[-1], row.versions), bool)


def test_ids_are_unique():
    assert len({row.id for row in TABLE}) == len(TABLE)


def test_a_row_is_found_by_version_precision_and_gpu():
    def ids(*asked):
        return {row.id for row in find("tensorrt", *asked)}

    assert "grid-sample-linear" in ids("10.13.3.9", "bf16")
    assert "grid-sample-deformable" not in ids("10.13.3.9") and "grid-sample-deformable" in ids("10.14.1.48")
    assert "conv-transpose-bf16" not in ids("11.1", "fp16") and "conv-transpose-bf16" in ids("11.1", "bf16")
    assert "parallel-products-thor" in ids("10.13.3", "fp16", "sm110")
    assert "parallel-products-thor" not in ids("10.13.3", "fp16", "sm87")
    assert "parallel-products-thor" not in ids("10.13.3", "fp16", "")  # not known: none of those named
    assert "parallel-products-thor" in ids("10.13.3")  # not asked
    assert "parallel-products-thor" not in ids("10.15", "fp16", "sm110")
    assert find("openvino") == ()
    with pytest.raises(BundleError):
        find("tensorrt", "newest")


@pytest.mark.parametrize("target", TARGETS)
def test_every_remedy_that_is_a_rewrite_is_given_by_name(target):
    named = {row.remedy for row in find(target)} - {REFUSE, WARN}
    given = {**remedies(target), **typed_remedies(target, "fp16"), **typed_remedies(target, "bf16")}
    assert set(given) == named
    assert "conv-transpose-in-fp32" not in typed_remedies(target, "fp16")


ATTENTION = """(float[1,2,7,8] q, float[1,2,7,8] k, float[1,2,7,8] v) => (float[1,2,7,8] y)
    { ["m/attention"] y = Attention(q, k, v) }"""
SAMPLE = """(float[n,3,9,11] x, float[n,5,4,2] grid) => (float[n,3,5,4] y)
    { ["m/sample"] y = GridSample <mode = "linear"> (x, grid) }"""
SUM = """(float[n,7] x, int64 axis) => (float[n,7] y) { ["m/sum"] y = CumSum(x, axis) }"""
FRAME = """(uint8[n,h,w,3] pixels) => (int64[4] s, float[n,h,w,3] x)
    { ["m/size"] s = Shape(pixels) ["m/cast"] x = Cast <to = 1>(pixels) }"""


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("text", "constants", "patterns"),
    [
        (ATTENTION, {}, ("attention",)),
        (SAMPLE, {}, ("grid-sample-linear",)),
        (SUM, {"axis": np.array(1)}, ("cumsum",)),
        (FRAME, {}, ("uint8-reader",)),
    ],
    ids=["attention", "sample", "sum", "frame"],
)
def test_the_remedies_remove_what_they_are_for_and_it_is_said(target, text, constants, patterns, graph, monkeypatch):
    model = graph(text, **constants)
    rows = rows_of(model, target, ("fp32",))
    assert {row.pattern for row in rows} >= set(patterns)
    monkeypatch.setitem(VARIANTS, target, (Variant("", ">=1.0", ("fp32",), {**COMMON, **remedies(target)}),))
    (lowered,) = lower(model, target)
    assert lowered.patterns == ()
    assert lowered.avoids == tuple(row.id for row in rows)
    assert {row.remedy for row in rows} & set(REMEDIES) <= set(lowered.rewrites)
    assert not any(nodes_of(lowered.model, target, version) for version in versions(target))


def test_what_has_no_remedy_in_a_graph_is_said_too(graph, monkeypatch):
    monkeypatch.setitem(VARIANTS, "tensorrt", (Variant("", ">=10.3", ("fp32",), remedies("tensorrt")),))
    (lowered,) = lower(graph(SAMPLE.replace("linear", "nearest")), "tensorrt")
    assert lowered.patterns == ("grid-sample",) and lowered.avoids == ()


def test_query_key_and_value_are_products_of_one_tensor_in_every_precision(graph, monkeypatch):
    """Nothing rewrites them, so no graph may claim to avoid what is known of them."""
    weights = {name: np.eye(8, dtype=np.float32) for name in "ab"}
    model = graph(
        """(float[1,7,8] x, float[8,8] a, float[8,8] b) => (float[1,7,8] z)
        { [q] q = MatMul(x, a) [k] k = MatMul(x, b) [z] z = Add(q, k) }""",
        **weights,
    )
    for lowered in lower(model, "tensorrt"):
        assert lowered.patterns == ("parallel-products",), lowered.precisions
        assert lowered.avoids == ()


def test_a_type_counts_where_the_graph_has_types(graph):
    """In a float32 graph a softmax may be lowered yet; in a typed one it is what its type says."""
    plain = graph("(float[1,4] x) => (float[1,4] y) { [a] y = Softmax(x) }")
    assert [row.id for row in rows_of(plain, "tensorrt", ("fp16",))] == ["attention-fused-sm120"]
    assert rows_of(plain, "tensorrt", ("fp32",)) == ()
    kept = graph(
        """(float[1,4] x) => (float[1,4] z)
        { [a] l = Cast <to = 10>(x) [b] r = Relu(l) [c] f = Cast <to = 1>(r) [d] z = Softmax(f) }"""
    )
    assert rows_of(kept, "tensorrt", ("fp16",)) == ()
