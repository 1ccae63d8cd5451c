"""`torch.export` and `torch.compile` of the model, whose scans are one registered operator. Warnings are errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from avsseg.model.avs_mamba import AvsMamba
from avsseg.model.config import AvsMambaConfig
from avsseg.model.scan_block import GatedScanBlock
from avsseg.model.scan_plan import TokenGrid, temporal_plan, visual_to_audio_plan
from avsseg.ops import cpu

SMALLEST = AvsMambaConfig(
    backbone="resnet18_slim",
    audio_encoder="compact",
    dim=32,
    state_size=2,
    drop_path=0.0,
    encoder_layers=1,
    decoder_layers=1,
    temporal_directions=2,
    head_hidden=16,
    head_channels=(8, 4),
    heard_classes=3,
    agreement=True,
)
CPU = torch.device("cpu")


@pytest.fixture
def model() -> AvsMamba:
    torch.manual_seed(0)
    return AvsMamba(SMALLEST).eval()


def clip(T: int, H: int, W: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(1, T, 3, H, W, generator=generator), torch.randn(1, T, 1, 96, 64, generator=generator)


def assert_equal_gradients(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Against the largest gradient of all: some are zero but for rounding."""
    largest = max(gradient.abs().max() for gradient in expected.values())
    assert largest > 0
    for name, gradient in expected.items():
        assert (ours[name] - gradient).abs().max() <= 1e-5 * largest, name


def gradients(module: torch.nn.Module, out: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*module.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(out.square().mean(), parameters), strict=True))


@pytest.mark.slow
def test_export_of_the_whole_model(model: AvsMamba) -> None:
    # a shape that no other test has: its plans are first asked for while tracing, and must not be kept from there
    example = clip(3, 32, 96)
    with torch.no_grad():
        program = torch.export.export(model, example)
        expected = model(*example)
    torch.testing.assert_close(program.module()(*example), expected)
    if not cpu.UNAVAILABLE_REASON:
        scans = [node for node in program.graph.nodes if str(node.target) == "avsseg.selective_scan.default"]
        # MTE: VSS and Temporal Mamba; MAD: frame and clip at 3 scales; CIP: Temporal Mamba and A2V at 4
        assert len(scans) == 2 + 3 * 2 + 4 * 2


@pytest.mark.parametrize(
    ("target", "backend"),
    [
        ("visual", "aot_eager"),
        ("audio", "aot_eager"),
        # the default one, which compiles C++ for a minute; PyTorch itself imports what it deprecates
        pytest.param(
            "visual",
            "inductor",
            marks=[pytest.mark.long, pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")],
        ),
    ],
)
def test_a_scan_block_compiles_without_a_break_and_learns(target: str, backend: str) -> None:
    torch.manual_seed(0)
    grid = TokenGrid(3, ((2, 5),))
    with_audio = target == "audio"
    block = GatedScanBlock(SMALLEST, directions=4, target=target, audio=with_audio)
    visual, audio = torch.randn(2, grid.tokens, 32), torch.randn(2, 3, 32) if with_audio else None

    def run(visual: Tensor, audio: Tensor | None) -> Tensor:
        plan = visual_to_audio_plan(grid, CPU) if with_audio else temporal_plan(grid, 4, CPU)
        return block(visual, grid, plan, audio)

    torch.compiler.reset()
    out = torch.compile(run, backend=backend, fullgraph=True)(visual, audio)
    expected = run(visual, audio)
    torch.testing.assert_close(out, expected)
    assert_equal_gradients(gradients(block, out), gradients(block, expected))


@pytest.mark.slow
@torch.no_grad()
def test_the_whole_model_compiles_without_a_break(model: AvsMamba) -> None:
    example = clip(2, 32, 32)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*example), model(*example))
    # a size that 32 does not divide, too: from the second on, sizes are symbols
    other = clip(2, 64, 40)
    torch.testing.assert_close(compiled(*other), model(*other))
