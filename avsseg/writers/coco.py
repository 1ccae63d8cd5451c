"""COCO JSON with run-length encoded masks, in the form that image and video readers both take (CocoVID).

Image-style COCO (`images`, `annotations`, `categories`) plus `videos` and the keys that tie images and annotations to
them. `pycocotools.coco.COCO` loads it; its `annotations` list alone is a result list for `COCO.loadRes`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as run_length

from avsseg.writers.base import PartialOutput, TrackSettings, output_errors
from avsseg.writers.labels import label_map, marked_labels
from avsseg.writers.masks import frame_index, mask_file_name
from avsseg.writers.naming import final_categories

if TYPE_CHECKING:
    from avsseg.media.picture_end import PictureEnd
    from avsseg.media.probe import VideoInfo
    from avsseg.pipeline.segment import Mask

VIDEO_ID = 1


class CocoWriter:
    """Writes one JSON file; holds the run lengths, and nothing larger, until the end."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.warnings: tuple[str, ...] = ()
        self._output: PartialOutput | None = None
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, object]] = []
        self._categories: list[tuple[int, int]] = []

    def open(self, info: VideoInfo, settings: TrackSettings) -> None:
        self._info, self._settings = info, settings
        self._output = PartialOutput(self.target)
        with output_errors(self.target):
            self._output.path.touch()  # an unwritable folder is found before the work, not after it

    def write(self, mask: Mask) -> None:
        info = self._info
        labels = label_map(mask.probability, info.width, info.height, self._settings.threshold)
        image_id = len(self._images) + 1
        self._images.append(
            {
                "id": image_id,
                "video_id": VIDEO_ID,
                "timestamp": mask.timestamp_s,
                "file_name": mask_file_name(mask.index, info, self._settings),
                "width": info.width,
                "height": info.height,
            }
        )
        for label in marked_labels(labels):
            self._categories.append((mask.index, self._settings.category(label, mask.heard)))
            self._annotations.append(
                {
                    "id": len(self._annotations) + 1,
                    "image_id": image_id,
                    "video_id": VIDEO_ID,
                    **encoded(labels == label),
                    "iscrowd": 0,
                    "score": score(mask.probability, label, self._settings.threshold),
                }
            )

    def finish(self, picture_end: PictureEnd | None = None) -> list[Path]:
        assert self._output is not None
        info = self._info
        categories = final_categories(self._settings, self._categories)
        for annotation, category in zip(self._annotations, categories, strict=True):
            # datumaro and CVAT keep a track only from the attributes
            annotation.update(category_id=category, track_id=category, attributes={"track_id": category})
        for index, image in enumerate(self._images):
            image["frame_index"] = frame_index(image["timestamp"], index, info, picture_end)
        document = {
            "info": {"description": f"Sounding pixels of {info.path.name}", **self._settings.as_json()},
            "videos": [
                {
                    "id": VIDEO_ID,
                    "name": info.path.name,
                    "width": info.width,
                    "height": info.height,
                    "duration": info.duration_s,
                    "frame_rate": info.frame_rate,
                    "length": len(self._images),
                }
            ],
            "images": self._images,
            "categories": [
                {"id": label, "name": name, "supercategory": "sound"} for label, name in self._settings.named().items()
            ],
            "annotations": self._annotations,
        }
        with output_errors(self.target), self._output.path.open("w", encoding="utf-8") as file:
            json.dump(document, file)
            file.write("\n")
        self._output.commit()
        self._output = None
        return [self.target]

    def abort(self) -> None:
        if self._output is not None:
            self._output.discard()
            self._output = None


def encoded(region: NDArray[np.bool_]) -> dict[str, object]:
    """The COCO keys of a region (H, W): `segmentation` with ASCII counts, `area` in pixels, `bbox` [x, y, w, h]."""
    lengths = run_length.encode(np.asfortranarray(region, np.uint8))
    return {
        "segmentation": {"size": [int(side) for side in lengths["size"]], "counts": lengths["counts"].decode("ascii")},
        "area": int(run_length.area(lengths)),
        "bbox": [float(side) for side in run_length.toBbox(lengths)],
    }


def score(probability: NDArray[np.float32], label: int, threshold: float) -> float:
    """Mean probability over the pixels (at the model's resolution) that carry the label; the largest if none does."""
    plane = probability[0] if len(probability) == 1 else probability[label]
    inside = plane > threshold if len(probability) == 1 else probability.argmax(axis=0) == label
    return round(float(plane[inside].mean() if inside.any() else plane.max()), 4)
