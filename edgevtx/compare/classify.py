"""Classes: scores are compared class by class, since two equal scores may swap their places."""

from __future__ import annotations

import numpy as np

from edgevtx.compare.tolerance import Tolerance, round_error, values_check
from edgevtx.manifest import Check
from edgevtx.rules import ClassifyDecode
from edgevtx.runtimes.base import Arrays


def compare_classes(reference: Arrays, outputs: Arrays, rule: ClassifyDecode, tolerance: Tolerance) -> list[Check]:
    """Scores are compared class by class, since two equal scores may swap their places."""
    wanted, got, missing, ties, wrong, unsorted = [], [], 0, 0, 0, 0
    for want_ids, want, ids, scores in zip(
        reference["class_ids"], reference["scores"], outputs["class_ids"], outputs["scores"], strict=True
    ):
        place = {int(class_id): at for at, class_id in enumerate(ids)}
        common = [at for at, class_id in enumerate(want_ids) if int(class_id) in place]
        found = np.array([scores[place[int(want_ids[at])]] for at in common])
        wanted.append(want[common])
        got.append(found)
        margin = tolerance.tie * (float(np.abs(found - want[common]).max()) if common else 0.0)
        lost = [at for at in range(len(want)) if at not in common]
        tied = sum(bool(want[at] - want[-1] <= margin) for at in lost)
        ties, missing = ties + tied, missing + len(lost) - tied
        unsorted += int((np.diff(scores) > margin).sum())
        if want_ids[0] != ids[0]:
            at = place.get(int(want_ids[0]))
            close = at is not None and bool(scores[0] - scores[at] <= margin)
            ties, wrong = ties + close, wrong + (not close)
    values = values_check("scores", np.concatenate(wanted), np.concatenate(got), tolerance, ties)
    images, rows = reference["scores"].shape
    failed_rows = missing if tolerance.rows else 0
    allowed = (1 - tolerance.agreement) * images
    return [
        values,
        Check(
            name="task: classes",
            level="task",
            passed=failed_rows == 0
            and unsorted == 0
            and wrong <= allowed
            # one tie is luck, however few rows there are
            and (not tolerance.rows or ties <= max(1.0, tolerance.ties * images * rows)),
            compared=images,
            error=float(wrong + failed_rows + unsorted),
            tolerance=round_error(allowed),
            ties=ties,
            note=f"{unsorted} scores out of order" if unsorted else "",
        ),
    ]
