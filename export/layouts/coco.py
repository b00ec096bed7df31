"""COCO's class names as detectors number them: 80 things in ids up to 90, 53 kinds of stuff in ids 92 to 200."""

from __future__ import annotations

from edgevtx.export.labels import COCO
from edgevtx.export.layouts.mapping import numbered

# ids up to 90 that COCO gives to nothing
_SKIPPED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
_STUFF_FROM = {
    92: "banner, blanket",
    95: "bridge",
    100: "cardboard",
    107: "counter",
    109: "curtain",
    112: "door-stuff",
    118: "floor-wood, flower",
    122: "fruit",
    125: "gravel",
    128: "house",
    130: "light",
    133: "mirror-stuff",
    138: "net",
    141: "pillow",
    144: "platform, playingfield",
    147: "railroad, river, road",
    151: "roof",
    154: "sand, sea, shelf",
    159: "snow",
    161: "stairs",
    166: "tent",
    168: "towel",
    171: "wall-brick",
    175: "wall-stone, wall-tile, wall-wood, water-other",
    180: "window-blind, window-other",
    184: "tree-merged, fence-merged, ceiling-merged, sky-other-merged, cabinet-merged, table-merged, "
    "floor-other-merged, pavement-merged, mountain-merged, grass-merged, dirt-merged, paper-merged, "
    "food-other-merged, building-other-merged, rock-merged, wall-other-merged, rug-merged",
}
STUFF = {first + step: name for first, names in _STUFF_FROM.items() for step, name in enumerate(names.split(", "))}
"""The 53 kinds of stuff by id: they have no instances, and in COCO's panoptic annotations no `isthing`."""

PANOPTIC = 250
"""How many ids DETR's panoptic models count: things, stuff, and those that COCO gives to nothing."""

UNUSED = "N/A"
"""The name of an id that COCO gives to nothing."""


def _things() -> dict[int, str]:
    return dict(zip((index for index in range(1, 91) if index not in _SKIPPED), COCO, strict=True))


def id2label(classes: int) -> dict[str, str]:
    """Class names by the number of classes: COCO's for 80, 91 and 250 of them, else the numbers.

    80 are the things without gaps (RT-DETR), 91 the things by COCO's ids (DETR), 250 things and stuff by their ids
    (DETR's panoptic models).
    """
    if classes == 80:
        return {str(index): name for index, name in enumerate(COCO)}
    if classes not in (91, PANOPTIC):
        return numbered(classes)
    known = _things() if classes == 91 else _things() | STUFF
    return {str(index): known.get(index, UNUSED) for index in range(classes)}
