"""Render the scenes that an export is verified on when the user gives no images of their own.

    python scripts/render_sample_scenes.py

They are stored as files, and not rendered at export, because the renderer needs OpenCV and belongs to a sample.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# name -> (renderer, seed, height, width): unlike aspect ratios, many objects and few
SCENES = {
    "1-wide": ("render_dense", 11, 480, 720),
    "2-tall": ("render_dense", 23, 640, 427),
    "3-square": ("render_scene", 38, 500, 500),
    "4-panorama": ("render_dense", 41, 360, 853),
}


def main() -> None:
    import cv2

    from samples.forest_fire import scenes

    folder = ROOT / "export" / "scenes"
    folder.mkdir(exist_ok=True)
    for name, (renderer, seed, height, width) in SCENES.items():
        scene = getattr(scenes, renderer)(seed, (height, width))
        cv2.imwrite(str(folder / f"{name}.jpg"), scene.frame, [cv2.IMWRITE_JPEG_QUALITY, 88])


if __name__ == "__main__":
    main()
