"""Visual backbones: each maps (N, 3, H, W) to four feature maps at strides 4, 8, 16, 32."""

from __future__ import annotations

from torch import nn

from avsseg.model.backbones.efficientnet_lite import EFFICIENTNET_LITE, EfficientNetLite
from avsseg.model.backbones.pvt_v2 import PVT_V2, PyramidVisionTransformerV2
from avsseg.model.backbones.resnet import ResNet18Slim, ResNet50
from avsseg.model.backbones.vim import VIM, Vim
from avsseg.model.backbones.vmamba import VMAMBA, VMamba


def build_backbone(name: str, *, drop_path: float = 0.1) -> tuple[nn.Module, tuple[int, int, int, int]]:
    """The backbone of that name and the channels of its four outputs. Raises KeyError on an unknown name."""
    if name in ("resnet50", "resnet18_slim"):
        network = ResNet50() if name == "resnet50" else ResNet18Slim()
        return network, network.widths
    if name in EFFICIENTNET_LITE:
        return EfficientNetLite(EFFICIENTNET_LITE[name]), EFFICIENTNET_LITE[name].dims
    if name in VMAMBA:
        return VMamba(VMAMBA[name], drop_path=drop_path), VMAMBA[name].dims
    if name in VIM:
        return Vim(VIM[name], drop_path=drop_path), VIM[name].dims
    model = PyramidVisionTransformerV2(PVT_V2[name], drop_path=drop_path)
    return model, PVT_V2[name].dims
