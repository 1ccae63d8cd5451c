"""Segments the pixels of a video that sound (AVS-Mamba).

>>> import avsseg
>>> for mask in avsseg.segment("clip.mp4"):
...     print(mask.timestamp_s, (mask.probability[0] > 0.5).mean())
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avsseg.pipeline.options import SegmentOptions
    from avsseg.pipeline.segment import segment
    from avsseg.weights import load_model

__version__ = "0.1.0"
__all__ = ["SegmentOptions", "__version__", "load_model", "segment"]


def __getattr__(name: str) -> Any:
    # PyTorch takes a second or two to import: it comes with the first use, not with the package
    if name == "segment":
        from avsseg.pipeline.segment import segment

        return segment
    if name == "load_model":
        from avsseg.weights import load_model

        return load_model
    if name == "SegmentOptions":
        from avsseg.pipeline.options import SegmentOptions

        return SegmentOptions
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
