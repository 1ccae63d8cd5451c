"""From the authors' AVS-Mamba state dicts to ours (spec of their names: the released `torch.save` of a plain dict)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

# Only used by the training objective of their AVSS runs, not for the masks; `mixffn.norm` exists and is never called.
UNUSED = re.compile(
    r"^(query_embed|audio_feature_projection|audio_recons_proj|mamba_decoder_block)(\.|$)"
    r"|\.mixffn\.norm\."
    r"|^vision_backbone\.(head|fc)\.|^audio_backbone\.pproc\."
    r"|^cmfpn\.self_attns\.3\."
)

SCAN_BLOCK = {
    "in_proj": "in_proj_visual",
    "in_proj_vis": "in_proj_visual",
    "in_proj_audio": "in_proj_audio",
    "conv2d": "conv2d",
    "conv3d": "conv2d",
    "conv1d": "conv1d",
    "x_proj_weight": "scan.x_proj_weight",
    "dt_projs_weight": "scan.dt_projs_weight",
    "dt_projs_bias": "scan.dt_projs_bias",
    "A_logs": "scan.A_logs",
    "Ds": "scan.Ds",
    "out_norm": "out_norm",
    "out_proj": "out_proj",
}
LEVELS = 4
_LEVEL = {"0": "frame", "1": "temporal"}
_MODALITY = {"v": "visual", "a": "audio"}
_HEAD = {"0": "reduce", "2": "refine", "4": "classify"}


def _scan_block(part: str) -> str:
    """`in_proj.weight` -> `in_proj_visual.weight`, and so on inside a scan block."""
    head, _, tail = part.partition(".")
    return SCAN_BLOCK[head] + (f".{tail}" if tail else "")


_RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"audio_backbone\.(.+)", lambda m: f"audio_encoder.{m[1]}"),
        (r"vision_backbone\.(.+)", lambda m: f"visual_backbone.{m[1]}"),
        (r"audio_proj\.(.+)", lambda m: f"audio_projection.{m[1]}"),
        (r"input_proj\.(.+)", lambda m: f"visual_projections.{m[1]}"),
        (r"mamba_encoder\.(\d+)\.ln_l\.(.+)", lambda m: f"encoder.layers.{m[1]}.vss.norm_visual.{m[2]}"),
        (r"mamba_encoder\.(\d+)\.mamba_block\.(.+)", lambda m: f"encoder.layers.{m[1]}.vss.{_scan_block(m[2])}"),
        (r"mamba_encoder\.(\d+)\.norm2\.(.+)", lambda m: f"encoder.layers.{m[1]}.mix_ffn.norm.{m[2]}"),
        (r"mamba_encoder\.(\d+)\.mixffn\.(.+)", lambda m: f"encoder.layers.{m[1]}.mix_ffn.{m[2]}"),
        (r"mamba_encoder\.(\d+)\.norm3\.(.+)", lambda m: f"encoder.layers.{m[1]}.temporal.norm_visual.{m[2]}"),
        (
            r"mamba_encoder\.(\d+)\.temporal_mamba\.(.+)",
            lambda m: f"encoder.layers.{m[1]}.temporal.{_scan_block(m[2])}",
        ),
        (
            r"mamba_decoder\.(\d+)\.(\d+)\.([01])\.norm_([va])\.(.+)",
            lambda m: f"decoder.layers.{m[1]}.{m[2]}.{_LEVEL[m[3]]}.norm_{_MODALITY[m[4]]}.{m[5]}",
        ),
        (
            r"mamba_decoder\.(\d+)\.(\d+)\.([01])\.vision_to_audio_layer\.(.+)",
            lambda m: f"decoder.layers.{m[1]}.{m[2]}.{_LEVEL[m[3]]}.{_scan_block(m[4])}",
        ),
        # adapters and layers count from the finest, attentions from the coarsest
        (r"cmfpn\.adapter_(\d)\.(.+)", lambda m: f"pyramid.levels.{int(m[1]) - 1}.adapter.{m[2]}"),
        (r"cmfpn\.layer_(\d)\.(.+)", lambda m: f"pyramid.levels.{int(m[1]) - 1}.smooth.{m[2]}"),
        (
            r"cmfpn\.self_attns\.(\d)\.ln_l\.(.+)",
            lambda m: f"pyramid.levels.{LEVELS - 1 - int(m[1])}.temporal.norm_visual.{m[2]}",
        ),
        (
            r"cmfpn\.self_attns\.(\d)\.mamba_block\.(.+)",
            lambda m: f"pyramid.levels.{LEVELS - 1 - int(m[1])}.temporal.{_scan_block(m[2])}",
        ),
        (
            r"cmfpn\.cross_attns\.(\d)\.norm_([va])\.(.+)",
            lambda m: f"pyramid.levels.{LEVELS - 1 - int(m[1])}.audio_to_visual.norm_{_MODALITY[m[2]]}.{m[3]}",
        ),
        (
            r"cmfpn\.cross_attns\.(\d)\.audio_to_vision_layer\.(.+)",
            lambda m: f"pyramid.levels.{LEVELS - 1 - int(m[1])}.audio_to_visual.{_scan_block(m[2])}",
        ),
        (r"cmfpn\.mask_features\.(.+)", lambda m: f"pyramid.mask_feature.{m[1]}"),
        (r"mlp\.layers\.(\d)\.(.+)", lambda m: f"head.lift.layers.{m[1]}.{m[2]}"),
        (r"fc\.([024])\.(.+)", lambda m: f"head.{_HEAD[m[1]]}.{m[2]}"),
    )
]


def convert_authors_name(name: str) -> str | None:
    """Our parameter name for one of theirs; None for one that the masks do not need. Raises KeyError if unknown."""
    if UNUSED.search(name):
        return None
    for pattern, replacement in _RULES:
        match = pattern.match(name)
        if match:
            return replacement(match)
    raise KeyError(name)


def convert_authors_state_dict(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict from theirs. Raises KeyError, with the name, when theirs holds something unknown.

    Their pyramid's finest level runs the stride-8 level's Temporal Mamba (`self_attns.2`) and never its own
    (`self_attns.3`), so `.2` is written to both.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        converted = convert_authors_name(name)
        if converted is None:
            continue
        if ".conv3d.weight" in name:
            tensor = tensor.squeeze(2)  # (D, 1, 1, 3, 3): the same 3x3 on every frame
        ours[converted] = tensor
        if name.startswith("cmfpn.self_attns.2."):
            ours[converted.replace("pyramid.levels.1.", "pyramid.levels.0.")] = tensor
    return ours
