"""AVS-Mamba (Fig. 2 of the paper): frames and log-mels of a clip in, mask logits out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avsseg.model.agreement import ClassAgreement
from avsseg.model.backbones import build_backbone
from avsseg.model.config import AvsMambaConfig
from avsseg.model.decoder import ModalityAggregationDecoder
from avsseg.model.encoder import MixFFN, MultiScaleTemporalEncoder
from avsseg.model.head import STRIDE, MaskHead
from avsseg.model.pyramid import ContextualIntegrationPyramid
from avsseg.model.scan_block import GatedScanBlock
from avsseg.model.scan_plan import TokenGrid, flatten_scales, split_scales
from avsseg.model.vggish import EMBEDDING_DIM, build_audio_encoder

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
COARSEST_STRIDE = 32


def normalise(frames: Tensor) -> Tensor:
    """uint8 RGB frames (..., H, W, 3) -> float32 (..., 3, H, W) with ImageNet's mean 0 and deviation 1."""
    mean = torch.tensor(IMAGENET_MEAN, device=frames.device)
    std = torch.tensor(IMAGENET_STD, device=frames.device)
    return ((frames.float() / 255.0 - mean) / std).movedim(-1, -3)


def pad_picture(picture: Tensor) -> Tensor:
    """Zeros at the right and below of (N, C, H, W), to sides that every stride of the backbone divides."""
    # -W % 32 is what torch.compile cannot take of a size that it keeps as a symbol
    right, below = ((COARSEST_STRIDE - side % COARSEST_STRIDE) % COARSEST_STRIDE for side in picture.shape[:-3:-1])
    return F.pad(picture, (0, right, 0, below))


@dataclass(frozen=True)
class Stages:
    """What the stages behind the encoders give, for tests and visualisation.

    embedding: what the audio encoder gave, (B, T, 128). encoded: F_v'^2..4, each (B, T, h_i, w_i, C). queries: one
    (B, T, C) a MAD layer. mask_feature: (B, T, C, h_1, w_1).
    """

    embedding: Tensor
    encoded: list[Tensor]
    queries: list[Tensor]
    mask_feature: Tensor


class AvsMamba(nn.Module):
    """The whole model; `config` decides every shape and which parts exist.

    `channels` are those of the backbone's four scales, finest first.
    """

    blocks_rest = False

    def __init__(self, config: AvsMambaConfig) -> None:
        super().__init__()
        self.config = config
        self.visual_backbone, self.channels = build_backbone(config.backbone, drop_path=config.drop_path)
        self.audio_encoder = build_audio_encoder(config.audio_encoder)
        self._build_fusion(config, self.channels)

    def _build_fusion(self, config: AvsMambaConfig, channels: Sequence[int]) -> None:
        self.audio_projection = nn.Linear(EMBEDDING_DIM, config.dim)
        self.visual_projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, config.dim, 1), nn.GroupNorm(32, config.dim)) for c in channels
        )
        self.encoder = MultiScaleTemporalEncoder(config)
        self.decoder = ModalityAggregationDecoder(config)
        self.pyramid = ContextualIntegrationPyramid(config)
        self.head = MaskHead(config)
        self.heard_head = nn.Linear(EMBEDDING_DIM, config.heard_classes) if config.heard_classes else None
        self.agreement = ClassAgreement(config.dim, config.heard_classes) if config.agreement else None

    @torch.no_grad()
    def rest_blocks(self) -> None:
        """Makes every block of MTE, MAD and CIP's contexts the identity, by zeros in its last layer; `fuse` then skips
        them. Without `blocks_rest` the same weights give the same, and the blocks can learn on from there.
        """
        for parameter in self._last_of_blocks():
            parameter.zero_()
        self.blocks_rest = True

    def blocks_give_nothing(self) -> bool:
        """Whether they are as `rest_blocks` leaves them."""
        return not any(parameter.any() for parameter in self._last_of_blocks())

    def _last_of_blocks(self) -> Iterator[Tensor]:
        for module in (m for part in (self.encoder, self.decoder, self.pyramid) for m in part.modules()):
            if isinstance(module, GatedScanBlock):
                yield module.out_proj.weight
            elif isinstance(module, MixFFN):
                yield from (module.fc2.weight, module.fc2.bias)

    def forward(self, frames: Tensor, log_mel: Tensor) -> Tensor:
        """frames (B, T, 3, H, W) from `normalise`, log_mel (B, T, 1, 96, 64) -> logits (B, T, N_class, H, W).

        H and W that 32 does not divide are padded at the right and the bottom and cropped back.
        """
        return self.layer_logits(frames, log_mel, last_only=True)[-1]

    def masks_and_sounds(self, frames: Tensor, log_mel: Tensor) -> tuple[Tensor, Tensor | None]:
        """`forward`, and the logits (B, T, K) of `heard_classes` K classes that sound in each second; None without."""
        stages = self.stages(frames, log_mel)
        (logits,) = self.layer_logits_of(stages, frames.shape[-2:], last_only=True)
        return logits, None if self.heard_head is None else self.heard_head(stages.embedding)

    def layer_logits(
        self, frames: Tensor, log_mel: Tensor, *, sounds: int = 1, last_only: bool = False
    ) -> list[Tensor]:
        """As `forward`, but the logits of every MAD layer; the last is the prediction, the others deep supervision.

        With `sounds` S to a clip log_mel is (B * S, T, 1, 96, 64), a clip's one behind the other, as are the logits.
        """
        stages = self.stages(frames, log_mel, sounds=sounds)
        return self.layer_logits_of(stages, frames.shape[-2:], last_only=last_only)

    def layer_logits_of(self, stages: Stages, size: Sequence[int], *, last_only: bool = False) -> list[Tensor]:
        """`layer_logits` of stages that are there already, from frames of `size` H, W."""
        H, W = size
        queries = stages.queries[-1:] if last_only else stages.queries
        layers = [self.head(query, stages.mask_feature.flatten(0, 1)) for query in queries]
        if self.agreement is not None:
            assert self.heard_head is not None
            B, T = stages.embedding.shape[:2]
            heard = self.heard_head(stages.embedding.flatten(0, 1))
            agreed = self.agreement(stages.mask_feature.flatten(0, 1), heard)
            agreed = F.interpolate(agreed, scale_factor=STRIDE, mode="bilinear").unflatten(0, (B, T))
            layers = [logits + agreed for logits in layers]
        return [logits[..., :H, :W] for logits in layers]

    def stages(self, frames: Tensor, log_mel: Tensor, *, sounds: int = 1, views: int = 1) -> Stages:
        """Everything before the head, of inputs as in `layer_logits`.

        With `views` V of a clip, one behind the other, log_mel is (B / V * S, T, 1, 96, 64): each is seen with all S.
        """
        B, T = frames.shape[:2]
        pictures = pad_picture(frames.flatten(0, 1))
        features = [feature.unflatten(0, (B, T)) for feature in self.visual_backbone(pictures)]
        embedding = self.audio_encoder(log_mel.flatten(0, 1)).unflatten(0, (B // views, sounds, T))
        return self.fuse(features, embedding.repeat_interleave(views, 0).flatten(0, 1), sounds)

    def picture_feature(self, frames: Tensor) -> Tensor:
        """The mask feature without what joins seconds and hears: of frames (N, 3, H, W), each alone, (N, C, h_1, w_1).

        Every weight on its way is on that of `stages` too, so that it can be trained on single pictures. 32 must
        divide H and W.
        """
        features = self.visual_backbone(frames)
        return self.pyramid.plain([p(f) for p, f in zip(self.visual_projections, features, strict=True)])

    def fuse(self, features: Sequence[Tensor], embedding: Tensor, sounds: int = 1) -> Stages:
        """Everything between the encoders and the head.

        features: the backbone's four scales, (B, T, c_i, h_i, w_i), finest first; embedding (B * S, T, 128) with
        `sounds` S to a clip, one behind the other: what they share, everything that does not hear, is computed once.
        The stages have B * S clips, but `encoded` has B.
        """
        B, T = features[0].shape[:2]
        audio = self.audio_projection(embedding)
        finest, *coarser = (
            projection(feature.flatten(0, 1))
            for projection, feature in zip(self.visual_projections, features, strict=True)
        )
        tokens, frame_grid = flatten_scales(coarser)  # (B * T, M, C)
        grid = TokenGrid(T, frame_grid.sizes)
        if not self.blocks_rest:
            tokens = self.encoder(tokens.reshape(B, grid.tokens, -1), grid).reshape(tokens.shape)
        scales = [
            scale.unflatten(0, (B, T)) for scale in tokens.split([h * w for h, w in grid.sizes], dim=1)
        ]  # (B, T, h_i * w_i, C)
        pyramid_scales = [finest, *split_scales(tokens, frame_grid)]
        if self.blocks_rest:
            queries = [audio]
            mask_feature = self.pyramid.plain(pyramid_scales).unflatten(0, (B, T)).repeat_interleave(sounds, 0)
        else:
            heard_scales = scales if sounds == 1 else [scale.repeat_interleave(sounds, 0) for scale in scales]
            queries = self.decoder(audio, heard_scales, grid.sizes)
            mask_feature = self.pyramid(pyramid_scales, audio, sounds).unflatten(0, embedding.shape[:2])
        encoded = [scale.unflatten(2, size) for scale, size in zip(scales, grid.sizes, strict=True)]
        return Stages(embedding, encoded, queries, mask_feature)
