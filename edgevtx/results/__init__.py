"""What a predictor returns: dataclasses of numpy arrays, in pixels of the original frame.

Every result validates its arrays when it is made and is never changed afterwards (`dataclasses.replace` makes
another), has `empty()`, `to_dict()` (ready for JSON), `summary()` (one line) and `draw(frame)`, and can be indexed
where it holds N items.
"""

from __future__ import annotations

from edgevtx.results.base import names_of as names_of
from edgevtx.results.classification import Classification as Classification
from edgevtx.results.detections import Detections as Detections
from edgevtx.results.features import Features as Features
from edgevtx.results.panoptic import PanopticSegmentation as PanopticSegmentation
from edgevtx.results.panoptic import Segment as Segment
from edgevtx.results.prompted import Masks as Masks
from edgevtx.results.semantic import SemanticSegmentation as SemanticSegmentation

Result = Classification | Detections | Features | Masks | PanopticSegmentation | SemanticSegmentation
