"""YAMNet against its definition, in float64 and from the waveform on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from avsseg.errors import WeightsError
from avsseg.media.audio import EXAMPLE_SAMPLES, SILENT_LOG_MEL, log_mel, mel_matrix
from avsseg.model.vggish import EMBEDDING_DIM, CompactAudioEncoder, build_audio_encoder
from avsseg.model.yamnet import BLOCKS, Yamnet
from avsseg.weights.pretrained import load_audio_weights


def trained(seed: int = 0) -> Yamnet:
    """Of weights with which every layer still says something."""
    torch.manual_seed(seed)
    model = Yamnet(EMBEDDING_DIM).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)
    return model


def tensorflow_conv(x: Tensor, state: dict[str, Tensor], name: str, stride: int, groups: int = 1) -> Tensor:
    """A convolution with padding="SAME", and ReLU."""
    weight = state[f"{name}.weight"]
    pads: list[int] = []
    for side, kernel in zip(x.shape[:1:-1], weight.shape[:1:-1], strict=True):
        pad = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        pads += [pad // 2, pad - pad // 2]
    return F.relu(F.conv2d(F.pad(x, pads), weight, state[f"{name}.bias"], stride, groups=groups))


def test_it_is_yamnet_from_the_waveform_on() -> None:
    model = trained()
    waveform = 0.1 * torch.randn(2, EXAMPLE_SAMPLES, generator=torch.Generator().manual_seed(1))
    waveform[1] *= 1e-3  # as quiet as the offset of the logarithm
    frames = waveform.double().unfold(-1, 400, 160) * torch.hann_window(400, dtype=torch.float64)
    magnitude = torch.fft.rfft(frames, n=512).abs() @ mel_matrix().double()
    state = {name: tensor.double() for name, tensor in model.state_dict().items()}
    x = tensorflow_conv(torch.log(magnitude + 0.001)[:, None], state, "stem", 2)
    assert x.shape == (2, 32, 48, 32)
    for i, (_, stride) in enumerate(BLOCKS):
        x = tensorflow_conv(x, state, f"blocks.{i}.depthwise", stride, groups=x.shape[1])
        x = tensorflow_conv(x, state, f"blocks.{i}.pointwise", 1)
    assert x.shape == (2, 1024, 3, 2)
    expected = x.mean((2, 3))
    heard = model.features(log_mel(waveform)[:, None]).double()
    assert expected.std() > 1e-3
    torch.testing.assert_close(heard, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_only_its_projection_learns() -> None:
    model = build_audio_encoder("yamnet").train()
    out = model(torch.randn(3, 1, 96, 64))
    assert out.shape == (3, EMBEDDING_DIM)
    out.sum().backward()
    learning = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learning == {name for name, _ in model.named_parameters() if name.startswith("projection.")}


def test_below_the_floor_of_the_log_mel_is_silence() -> None:
    model = trained()
    silence = torch.full((1, 1, 96, 64), SILENT_LOG_MEL)
    assert torch.equal(model(silence - 1), model(silence - 2))
    assert torch.allclose(model(silence - 1), model(silence), atol=1e-5)


def test_its_file_leaves_the_projection_as_it_is(tmp_path: Path) -> None:
    given, model = trained(1), trained(2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    published = {n: t for n, t in given.state_dict().items() if not n.startswith("projection.")}
    save_file({**published, "classifier.weight": torch.rand(521, 1024)}, tmp_path / "yamnet.safetensors")
    load_audio_weights(model, tmp_path / "yamnet.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, published.get(name, before[name])), name
    with pytest.raises(WeightsError, match="does not fit"):
        load_audio_weights(CompactAudioEncoder(), tmp_path / "yamnet.safetensors")
    del published["blocks.3.pointwise.bias"]
    save_file(published, tmp_path / "part.safetensors")
    with pytest.raises(WeightsError, match=r"1 missing \(blocks\.3\.pointwise\.bias\)"):
        load_audio_weights(model, tmp_path / "part.safetensors")
