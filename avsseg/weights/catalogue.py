"""Published weights that people already have or can fetch. Imports no torch.

Sizes are the rounded figures of the publishers; where there is none, the published count of parameters gives a lower
bound. Where a file name ends in eight hexadecimal digits its publisher follows PyTorch's habit: they are the first of
its sha256. Licences are those of the publishing repositories.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from avsseg.errors import UsageError, printable
from avsseg.model.config import backbone_name

MIB = 1 << 20
_ROUNDING_MIB = 1


@dataclass(frozen=True)
class CatalogueEntry:
    """One published file.

    Attributes:
        name: what the command line calls it.
        kind: the module that it fills: a visual backbone's name, or "vggish".
        url: where it is published.
        licence: of the repository that publishes it.
        purpose: one line for people.
        size_mib: the publisher's rounded size, or None.
        parameters: how many values the model has, where no size is published. All are float32.
        sha256: the whole digest where it is published; otherwise it is recorded at the first download.
        supported: whether this version has the module.
    """

    name: str
    kind: str
    url: str
    licence: str
    purpose: str
    size_mib: float | None = None
    parameters: int | None = None
    sha256: str | None = None
    supported: bool = True

    @property
    def file_name(self) -> str:
        return self.url.rsplit("/", 1)[1]

    @property
    def min_bytes(self) -> int:
        """What a whole file has at least, 0 if nothing is known: training checkpoints carry more than the weights."""
        if self.size_mib is not None:
            return int((self.size_mib - _ROUNDING_MIB) * MIB)
        return 4 * (self.parameters or 0)

    @property
    def sha256_prefix(self) -> str:
        """What is known of the digest before the first download: all of it, its first 8 digits, or nothing."""
        named = re.search(r"-([0-9a-f]{8})\.pth$", self.file_name)
        return self.sha256 or (named[1] if named else "")


_PVT = "https://github.com/whai362/PVT/releases/download/v2/"
_TORCHVISION = "https://download.pytorch.org/models/"
_VGGISH = "https://github.com/harritaylor/torchvggish/releases/download/v0.1/"
_VMAMBA = "https://github.com/MzeroMiko/VMamba/releases/download/"
_VIM = "https://huggingface.co/hustvl/"

_PVT_SIZES_MIB = {"b0": 14, "b1": 54, "b2": 97, "b3": 173, "b4": 239, "b5": 313}

_RESNET50 = (
    ("resnet50", "resnet50-19c8e357.pth", "ImageNet; the file that AVSBench and AVS-Mamba name", 97.8),
    ("resnet50-v1", "resnet50-0676ba61.pth", "ImageNet, torchvision's present V1 file", 97.8),
    ("resnet50-v2", "resnet50-11ad3fa6.pth", "ImageNet, torchvision's V2 recipe", 97.8),
    ("resnet50-maskrcnn", "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth", "COCO, out of Mask R-CNN", 169.8),
    ("resnet50-fasterrcnn", "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth", "COCO, out of Faster R-CNN", 159.7),
)

_VMAMBA_FILES = (
    ("vmamba-tiny-v0", "%23v0cls/vssmtiny_dp01_ckpt_epoch_292.pth", "82.2 %", 22_893_448),
    ("vmamba-small-v0", "%23v0cls/vssmsmall_dp03_ckpt_epoch_238.pth", "83.5 %", 44_417_416),
    ("vmamba-base-v0", "%23v0cls/vssmbase_dp06_ckpt_epoch_241.pth", "83.7 %", 76_254_056),
    ("vmamba-tiny-s2l5", "%23v2cls/vssm_tiny_0230_ckpt_epoch_262.pth", "82.5 %", 30_705_832),
    ("vmamba-tiny-s1l8", "%23v2cls/vssm1_tiny_0230s_ckpt_epoch_264.pth", "82.6 %", 30_249_064),
    ("vmamba-small-s2l15", "%23v2cls/vssm_small_0229_ckpt_epoch_222.pth", "83.6 %", 50_147_752),
    ("vmamba-small-s1l20", "%23v2cls/vssm1_small_0229s_ckpt_epoch_240.pth", "83.3 %", 49_012_840),
    ("vmamba-base-s2l15", "%23v2cls/vssm_base_0229_ckpt_epoch_237.pth", "83.9 %", 88_557_800),
    ("vmamba-base-s1l20", "%23v2cls/vssm1_base_0229s_ckpt_epoch_225.pth", "83.8 %", 86_614_504),
)

# with stride 8 there are 27 x 27 + 1 position embeddings instead of 14 x 14 + 1
_VIM_FILES = (
    ("vim-tiny", "Vim-tiny-midclstok", "vim_t_midclstok_76p1acc.pth", "76.1 %", 7_148_008),
    ("vim-tiny-stride8", "Vim-tiny-midclstok", "vim_t_midclstok_ft_78p3acc.pth", "78.3 %, stride 8", 7_250_344),
    ("vim-small", "Vim-small-midclstok", "vim_s_midclstok_80p5acc.pth", "80.5 %", 25_796_584),
    ("vim-small-stride8", "Vim-small-midclstok", "vim_s_midclstok_ft_81p6acc.pth", "81.6 %, stride 8", 26_001_256),
    ("vim-base", "Vim-base-midclstok", "vim_b_midclstok_81p9acc.pth", "81.9 %", 97_598_440),
)

CATALOGUE: dict[str, CatalogueEntry] = {
    entry.name: entry
    for entry in (
        *(
            CatalogueEntry(
                f"pvt_v2_{b}",
                f"pvt_v2_{b}",
                f"{_PVT}pvt_v2_{b}.pth",
                "Apache-2.0",
                "PVT-v2 backbone, ImageNet" + ("; the paper's" if b == "b5" else ""),
                size,
            )
            for b, size in _PVT_SIZES_MIB.items()
        ),
        *(
            CatalogueEntry(
                name, "resnet50", _TORCHVISION + file, "BSD-3-Clause", f"ResNet50 backbone, {trained_on}", size
            )
            for name, file, trained_on, size in _RESNET50
        ),
        CatalogueEntry(
            "resnet50-detr",
            "resnet50",
            "https://dl.fbaipublicfiles.com/detr/detr-r50-e632da11.pth",
            "Apache-2.0",
            "ResNet50 backbone, COCO, out of DETR",
            size_mib=159,
        ),
        CatalogueEntry(
            "vggish",
            "vggish",
            f"{_VGGISH}vggish-10086976.pth",
            "Apache-2.0",
            "VGGish audio encoder, AudioSet; the paper's",
            parameters=72_141_184,
        ),
        *(
            CatalogueEntry(
                name,
                name,
                _VMAMBA + file,
                "MIT",
                f"VMamba backbone, ImageNet ({accuracy})",
                parameters=parameters,
            )
            for name, file, accuracy, parameters in _VMAMBA_FILES
        ),
        *(
            CatalogueEntry(
                name,
                name,
                f"{_VIM}{repository}/resolve/main/{file}",
                "Apache-2.0",
                f"Vim backbone, ImageNet ({accuracy})",
                parameters=parameters,
                # its patches overlap, which the backbone here does not
                supported=not name.endswith("-stride8"),
            )
            for name, repository, file, accuracy, parameters in _VIM_FILES
        ),
    )
}


def catalogue_entry(name: str) -> CatalogueEntry:
    """The entry of that name, or short name of a backbone. Raises UsageError, with the names, if there is none."""
    entry = CATALOGUE.get(backbone_name(name))
    if entry is None:
        raise UsageError(f"{printable(name)}: no published weights of this name. Names: {', '.join(CATALOGUE)}")
    return entry
