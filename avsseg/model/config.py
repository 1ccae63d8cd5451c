"""Configuration of AVS-Mamba, its presets and the paper's ablations. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from avsseg.errors import UsageError

AUDIO_ENCODERS = ("vggish", "yamnet", "compact")
TEMPORAL_DIRECTIONS = (2, 4, 6, 8, 10, 12)
VISUAL_BACKBONES = (
    *("pvt_v2_b0", "pvt_v2_b1", "pvt_v2_b2", "pvt_v2_b3", "pvt_v2_b4", "pvt_v2_b5"),
    *("resnet50", "resnet18_slim"),
    *("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"),
    *("vmamba-tiny-v0", "vmamba-small-v0", "vmamba-base-v0"),
    *("vmamba-tiny-s2l5", "vmamba-tiny-s1l8", "vmamba-small-s2l15", "vmamba-small-s1l20"),
    *("vmamba-base-s2l15", "vmamba-base-s1l20"),
    *("vim-tiny", "vim-small", "vim-base"),
)
# Short names. Of VMamba's second release they are the variants that its paper calls VMamba-T, -S and -B.
BACKBONE_ALIASES = {
    "vmamba-t": "vmamba-tiny-s1l8",
    "vmamba-s": "vmamba-small-s2l15",
    "vmamba-b": "vmamba-base-s2l15",
    "vmamba-t-v0": "vmamba-tiny-v0",
    "vmamba-s-v0": "vmamba-small-v0",
    "vmamba-b-v0": "vmamba-base-v0",
    "vim-t": "vim-tiny",
    "vim-s": "vim-small",
    "vim-b": "vim-base",
}


def backbone_name(name: str) -> str:
    """The full name of a backbone: itself, or what a short name stands for; `-` does for `_`. Unknown names stay."""
    underscored = name.replace("-", "_")
    return BACKBONE_ALIASES.get(name, underscored if underscored in VISUAL_BACKBONES else name)


@dataclass(frozen=True)
class AvsMambaConfig:
    """Everything that decides the shapes and the arithmetic of one AVS-Mamba; saved inside its checkpoints.

    The defaults are the paper's (IV, V-B). Switching a part off gives the rows of its Tables III to VII.
    """

    # encoders
    backbone: str = "pvt_v2_b5"
    audio_encoder: Literal["vggish", "yamnet", "compact"] = "vggish"
    # widths: C, N, and D = expand * C
    dim: int = 256
    state_size: int = 16
    expand: int = 2
    drop_path: float = 0.1
    # Multi-scale Temporal Encoder (IV-B); 0 layers: no MTE
    encoder_layers: int = 2
    encoder_vss: bool = True
    encoder_temporal: bool = True
    temporal_directions: int = 8  # K of every Temporal Mamba, Table VII
    # Modality Aggregation Decoder (IV-C); 0 layers: the query is F_a itself
    decoder_layers: int = 2
    decoder_frame: bool = True
    decoder_temporal: bool = True
    # Contextual Integration Pyramid (IV-D); both off: a plain feature pyramid
    pyramid_temporal: bool = True
    pyramid_audio: bool = True
    upsample: Literal["bilinear", "nearest"] = "bilinear"
    # head
    head_hidden: int = 2048
    head_channels: tuple[int, int] = (128, 32)
    num_classes: int = 1
    # classes of sound that the audio embedding is told apart into, beside the masks; 0: none
    heard_classes: int = 0
    # whether masks also go by where these classes are seen (avsseg.model.agreement); not in the paper
    agreement: bool = False
    # side of the square that frames are squashed to when a video is segmented
    input_size: int = 224

    def __post_init__(self) -> None:
        object.__setattr__(self, "head_channels", tuple(self.head_channels))
        object.__setattr__(self, "backbone", backbone_name(self.backbone))
        if self.backbone not in VISUAL_BACKBONES:
            names = ", ".join((*VISUAL_BACKBONES, *BACKBONE_ALIASES))
            raise UsageError(f"unknown backbone {self.backbone!r}. Choose one of: {names}")
        if self.audio_encoder not in AUDIO_ENCODERS:
            names = ", ".join(AUDIO_ENCODERS)
            raise UsageError(f"unknown audio encoder {self.audio_encoder!r}. Choose one of: {names}")
        if self.temporal_directions not in TEMPORAL_DIRECTIONS:
            raise UsageError(
                f"temporal_directions is {self.temporal_directions}, must be one of {TEMPORAL_DIRECTIONS} (Table VII)"
            )
        if self.upsample not in ("bilinear", "nearest"):
            raise UsageError(f"upsample is {self.upsample!r}, must be bilinear or nearest")
        if self.agreement and (not self.heard_classes or self.num_classes > 1):
            raise UsageError("agreement is of heard_classes, in models of one mask: it needs those, and num_classes 1")
        if self.dim <= 0 or self.dim % 32:
            raise UsageError(f"dim is {self.dim}, must be a positive multiple of 32 (GroupNorm has 32 groups)")

    @property
    def inner_dim(self) -> int:
        """D, the width inside a scan block."""
        return self.expand * self.dim

    @property
    def dt_rank(self) -> int:
        """R = ceil(C / 16)."""
        return -(-self.dim // 16)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and TOML."""
        return {**asdict(self), "head_channels": list(self.head_channels)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> AvsMambaConfig:
        """The inverse of `to_dict`; raises UsageError on unknown names."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise UsageError(f"unknown model settings: {', '.join(unknown)}. They need a newer avsseg or are misspelt")
        return cls(**values)


PRESETS: dict[str, AvsMambaConfig] = {
    "avs-mamba-pvt-v2-b5": AvsMambaConfig(),
    "avs-mamba-resnet50": AvsMambaConfig(backbone="resnet50"),
    "avs-mamba-tiny": AvsMambaConfig(
        backbone="efficientnet_lite0",
        audio_encoder="compact",
        dim=64,
        state_size=8,
        head_hidden=128,
        head_channels=(24, 8),
    ),
    **{f"avs-mamba-{short}": AvsMambaConfig(backbone=short) for short in ("vmamba-t", "vmamba-s", "vmamba-b")},
    **{f"avs-mamba-{short}": AvsMambaConfig(backbone=short) for short in ("vim-t", "vim-s")},
}

# The paper's study of backbone against resolution (V-F, Fig. 10): Vim, VMamba and PVT-v2. Its text names neither the
# variants nor the resolutions: these are all that have a preset, at the two sizes that the paper's models are trained
# at and one between them.
FIGURE_10_MODELS = (
    "avs-mamba-pvt-v2-b5",
    *(name for name in PRESETS if name.startswith(("avs-mamba-vmamba-", "avs-mamba-vim-"))),
)
FIGURE_10_SIZES = (224, 384, 512)

# Rows of Tables III (whole modules), IV (MTE), V (MAD), VI (CIP) and VII (scan directions) as changes to a preset.
ABLATIONS: dict[str, dict[str, Any]] = {
    "no-mte": {"encoder_layers": 0},
    "no-vss": {"encoder_vss": False},
    "no-mte-temporal": {"encoder_temporal": False},
    "no-mad": {"decoder_layers": 0},
    "no-mad-frame": {"decoder_frame": False},
    "no-mad-temporal": {"decoder_temporal": False},
    "no-cip": {"pyramid_temporal": False, "pyramid_audio": False},
    "no-cip-temporal": {"pyramid_temporal": False},
    "no-cip-a2v": {"pyramid_audio": False},
    **{f"k{k}": {"temporal_directions": k} for k in TEMPORAL_DIRECTIONS},
}


def preset(name: str, *, ablate: str | None = None, **changes: Any) -> AvsMambaConfig:
    """The named preset, with one ablation and single fields changed. Raises UsageError on an unknown name."""
    if name not in PRESETS:
        raise UsageError(f"unknown model {name!r}. Choose one of: {', '.join(PRESETS)}, or give a .safetensors file")
    if ablate is not None and ablate not in ABLATIONS:
        raise UsageError(f"unknown ablation {ablate!r}. Choose one of: {', '.join(ABLATIONS)}")
    return replace(PRESETS[name], **(ABLATIONS[ablate] if ablate else {}), **changes)
