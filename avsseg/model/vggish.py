"""Audio encoders: VGGish (arXiv 1609.09430) as AudioSet trained it, and a compact one of the same shape."""

from __future__ import annotations

from torch import Tensor, nn

from avsseg.model.yamnet import Yamnet

EMBEDDING_DIM = 128


class Vggish(nn.Module):
    """VGGish without its PCA; the keys `features.*` and `embeddings.*` are those of the public PyTorch port.

    It comes trained on AudioSet and stays as it is (V-B): in eval mode always, without gradients for its weights.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for width in (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool"):
            if isinstance(width, str):
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(512 * 6 * 4, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, EMBEDDING_DIM),
            nn.ReLU(inplace=True),
        )
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Vggish:
        """Stays in eval mode."""
        return super().train(False)

    def forward(self, log_mel: Tensor) -> Tensor:
        """log_mel (N, 1, 96, 64) -> (N, 128)."""
        # TensorFlow's order: channels last before flattening
        return self.embeddings(self.features(log_mel).permute(0, 2, 3, 1).flatten(1))


class CompactAudioEncoder(nn.Module):
    """VGGish's shape at about a twentieth of its size, with batch normalisation because it is trained from nothing.

    Batch statistics rather than group statistics: the level of a sound must survive, or silence would be amplified.
    """

    WIDTHS = ((32,), (64,), (128, 128), (192, 192))

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for stage in self.WIDTHS:
            for width in stage:
                layers += [
                    nn.Conv2d(channels, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(channels * 6 * 4, 384),
            nn.ReLU(inplace=True),
            nn.Linear(384, EMBEDDING_DIM),
            nn.ReLU(inplace=True),
        )

    def forward(self, log_mel: Tensor) -> Tensor:
        """log_mel (N, 1, 96, 64) -> (N, 128)."""
        return self.embeddings(self.features(log_mel).permute(0, 2, 3, 1).flatten(1))


def build_audio_encoder(name: str) -> nn.Module:
    """The encoder that `AvsMambaConfig.audio_encoder` names."""
    if name == "yamnet":
        return Yamnet(EMBEDDING_DIM)
    return Vggish() if name == "vggish" else CompactAudioEncoder()
