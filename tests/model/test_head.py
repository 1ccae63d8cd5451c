from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from avsseg.model.config import preset
from avsseg.model.head import MaskHead, SimilarityLift


def plain(lift: SimilarityLift, similarity: torch.Tensor) -> torch.Tensor:
    first, second, third = lift.layers
    return third(second(first(similarity).relu()).relu())


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
@pytest.mark.parametrize("hidden", [1, 7, 256])
def test_segment_table_equals_the_convolutions(hidden: int, scale: float) -> None:
    torch.manual_seed(0)
    lift = SimilarityLift(hidden, 8)
    similarity = torch.randn(2, 1, 50, 61) * scale
    with torch.no_grad():
        exact = plain(lift.double(), similarity.double())
        fast = lift.float()(similarity)
    assert fast.shape == (2, 8, 50, 61)
    assert ((fast - exact).abs().max() / exact.abs().max()).item() < 2e-6


def test_segment_table_follows_the_weights() -> None:
    lift = SimilarityLift(16, 4)
    similarity = torch.randn(1, 1, 5, 5)
    with torch.no_grad():
        lift(similarity)
        lift.layers[0].bias += 1.0
        torch.testing.assert_close(lift(similarity), plain(lift, similarity))


def test_dead_units_and_knots_at_the_same_place() -> None:
    lift = SimilarityLift(6, 3).double()
    with torch.no_grad():
        lift.layers[0].weight.flatten()[:] = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.0, -3.0])
        lift.layers[0].bias[:] = torch.tensor([0.5, 0.0, 0.0, 0.0, -1.0, 1.5])
        similarity = torch.linspace(-2, 2, 101, dtype=torch.float64).view(1, 1, 1, 101)
        torch.testing.assert_close(lift(similarity), plain(lift, similarity))
        lift.layers[0].weight.zero_()
        torch.testing.assert_close(lift(similarity), plain(lift, similarity))


def test_nan_and_infinity_pass_through() -> None:
    lift = SimilarityLift(16, 4)
    similarity = torch.zeros(1, 1, 1, 3)
    similarity[..., 0], similarity[..., 1] = float("nan"), float("inf")
    with torch.no_grad():
        out = lift(similarity)
    assert out[..., 0].isnan().all()
    assert not out[..., 1].isfinite().any()
    assert out[..., 2].isfinite().all()


def test_gradients_go_through_the_convolutions() -> None:
    lift = SimilarityLift(5, 3).double()
    similarity = torch.randn(1, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lift, (similarity,))


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (2, 5), (8, 6)])
@pytest.mark.parametrize("classes", [1, 5])
def test_full_size_by_cells_equals_the_layers_as_they_are_written(size: tuple[int, int], classes: int) -> None:
    torch.manual_seed(0)
    head = MaskHead(preset("avs-mamba-tiny", num_classes=classes)).double()
    x = torch.randn(2, 24, *size, dtype=torch.float64, requires_grad=True)
    upsampled = F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False)
    expected = head.classify(F.relu(head.refine(upsampled)))
    logits = head.full_size(x)
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)
    learned = [x, *head.refine.parameters(), *head.classify.parameters()]
    weights = torch.randn_like(expected)
    for ours, theirs in zip(*(torch.autograd.grad(y, learned, weights) for y in (logits, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [(1, 1), (2, 5)])
def test_full_size_without_gradients_equals_that_with_them(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    head = MaskHead(preset("avs-mamba-tiny", num_classes=3)).double()
    x = torch.randn(3, 24, *size, dtype=torch.float64)
    expected = head.full_size(x)
    with torch.inference_mode():
        logits = head.full_size(x)
    assert expected.requires_grad
    assert not logits.requires_grad
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)


def test_kernels_of_cells_are_not_rounded_by_autocast() -> None:
    torch.manual_seed(0)
    head = MaskHead(preset("avs-mamba-tiny"))
    x = torch.randn(1, 24, 8, 8)
    seen: list[torch.Tensor] = []
    convolve = F.conv2d

    def spied(of: torch.Tensor, kernels: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        seen.append(kernels)
        return convolve(of, kernels, *rest)

    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
        patch.setattr(F, "conv2d", spied)
        head.full_size(x)
    assert seen[0].dtype == torch.float32


def test_a_head_built_on_meta_has_what_its_checkpoint_lacks() -> None:
    here = MaskHead(preset("avs-mamba-tiny"))
    with torch.device("meta"):
        there = MaskHead(preset("avs-mamba-tiny"))
    there.load_state_dict(here.state_dict(), assign=True)
    assert torch.equal(there.cell_weights, here.cell_weights)
