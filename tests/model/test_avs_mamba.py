from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from avsseg.errors import UsageError
from avsseg.model.avs_mamba import AvsMamba, normalise
from avsseg.model.config import (
    ABLATIONS,
    BACKBONE_ALIASES,
    FIGURE_10_MODELS,
    PRESETS,
    TEMPORAL_DIRECTIONS,
    VISUAL_BACKBONES,
    AvsMambaConfig,
    preset,
)

SMALL = AvsMambaConfig(
    backbone="pvt_v2_b0", audio_encoder="compact", dim=32, state_size=2, head_hidden=16, head_channels=(8, 4)
)


def build(config: AvsMambaConfig) -> AvsMamba:
    torch.manual_seed(0)
    return AvsMamba(config).eval()


def clip(T: int, H: int, W: int, B: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(B, T, 3, H, W, generator=generator), torch.randn(B, T, 1, 96, 64, generator=generator)


@pytest.mark.parametrize("T", [1, 3, 7])
def test_any_number_of_frames(T: int) -> None:
    with torch.no_grad():
        assert build(SMALL)(*clip(T, 32, 64, B=2)).shape == (2, T, 1, 32, 64)


def test_sizes_that_32_does_not_divide_are_padded_and_cropped() -> None:
    model = build(SMALL)
    frames, log_mel = clip(2, 40, 50)
    with torch.no_grad():
        logits = model(frames, log_mel)
        padded = model(F.pad(frames, (0, 14, 0, 24)), log_mel)
    assert logits.shape == (1, 2, 1, 40, 50)
    torch.testing.assert_close(logits, padded[..., :40, :50])


@pytest.mark.parametrize("name", sorted(set(ABLATIONS) - {f"k{k}" for k in TEMPORAL_DIRECTIONS}))
def test_every_ablation_runs_and_removes_parameters(name: str) -> None:
    full, ablated = build(SMALL), build(replace(SMALL, **ABLATIONS[name]))
    with torch.no_grad():
        assert ablated(*clip(2, 32, 32)).shape == (1, 2, 1, 32, 32)
    assert sum(p.numel() for p in ablated.parameters()) < sum(p.numel() for p in full.parameters())


# Ablation -> the modules that must be gone; all others stay.
REMOVED = {
    "no-mte": ["encoder.layers."],
    "no-vss": ["encoder.layers.0.vss.", "encoder.layers.1.vss."],
    "no-mte-temporal": ["encoder.layers.0.temporal.", "encoder.layers.1.temporal."],
    "no-mad": ["decoder.layers."],
    "no-mad-frame": [f"decoder.layers.{layer}.{scale}.frame." for layer in range(2) for scale in range(3)],
    "no-mad-temporal": [f"decoder.layers.{layer}.{scale}.temporal." for layer in range(2) for scale in range(3)],
    "no-cip": [f"pyramid.levels.{i}.{part}." for i in range(4) for part in ("temporal", "audio_to_visual")],
    "no-cip-temporal": [f"pyramid.levels.{i}.temporal." for i in range(4)],
    "no-cip-a2v": [f"pyramid.levels.{i}.audio_to_visual." for i in range(4)],
}


@pytest.mark.parametrize("name", sorted(set(ABLATIONS) - {f"k{k}" for k in TEMPORAL_DIRECTIONS}))
def test_each_ablation_removes_its_part_and_no_other(name: str) -> None:
    with torch.device("meta"):
        full, ablated = AvsMamba(SMALL).state_dict(), AvsMamba(replace(SMALL, **ABLATIONS[name])).state_dict()
    assert set(ablated) == {key for key in full if not key.startswith(tuple(REMOVED[name]))}
    assert all(any(key.startswith(part) for key in full) for part in REMOVED[name])


# The rows of the paper's ablation tables, "ours" left out, which is no ablation; row -> name.
TABLES = {
    "III": {"w/o MTE": "no-mte", "w/o MAD": "no-mad", "w/o CIP": "no-cip"},
    "IV": {"w/o Encoder": "no-mte", "w/o VSS Block": "no-vss", "w/o Temporal Mamba": "no-mte-temporal"},
    "V": {"w/o Decoder": "no-mad", "w/o Frame-level": "no-mad-frame", "w/o Temporal-level": "no-mad-temporal"},
    "VI": {"w/o CIP": "no-cip", "w/o Temporal Mamba": "no-cip-temporal", "w/o A2V Selective Scan": "no-cip-a2v"},
    "VII": {str(k): f"k{k}" for k in (2, 4, 6, 8, 10, 12)},
}


def test_every_row_of_the_ablation_tables_has_a_name() -> None:
    assert {name for rows in TABLES.values() for name in rows.values()} == set(ABLATIONS)


def test_the_guide_lists_the_rows() -> None:
    guide = Path(__file__).parents[2] / "docs" / "training.md"
    if not guide.exists():
        pytest.skip("docs/ is not here")
    lines = guide.read_text(encoding="utf-8").splitlines()
    for table, rows in TABLES.items():
        listed = "; ".join(f"{row}: `{name}`" for row, name in rows.items())
        assert any(line.startswith(f"| {table}, ") and line.endswith(f"| {listed} |") for line in lines), table


def test_a_direction_less_costs_each_temporal_mamba_its_parameters() -> None:
    with torch.device("meta"):
        sizes = {
            k: sum(p.numel() for p in AvsMamba(replace(SMALL, **ABLATIONS[f"k{k}"])).parameters()) for k in (2, 8, 12)
        }
    D, N, R = SMALL.inner_dim, SMALL.state_size, SMALL.dt_rank
    one = (R + 2 * N) * D + D * R + D + D * N + D  # x_proj, dt_proj and its bias, A, the skip
    blocks = SMALL.encoder_layers + 4  # in the MTE, and at each scale of the CIP
    assert all(size - sizes[2] == (k - 2) * blocks * one for k, size in sizes.items())


@pytest.mark.parametrize("name", ["vmamba-t", "vim-t"])
def test_the_model_runs_on_a_mamba_backbone(name: str) -> None:
    with torch.no_grad():
        logits = build(replace(SMALL, backbone=name))(*clip(2, 40, 64))
    assert logits.shape == (1, 2, 1, 40, 64)
    assert logits.isfinite().all()


def test_short_names_stand_for_backbones() -> None:
    for short, full in BACKBONE_ALIASES.items():
        assert full in VISUAL_BACKBONES
        assert AvsMambaConfig(backbone=short) == AvsMambaConfig(backbone=full)
    assert AvsMambaConfig(backbone="pvt-v2-b0").backbone == "pvt_v2_b0"
    assert preset("avs-mamba-vmamba-t").backbone == "vmamba-tiny-s1l8"
    assert preset("avs-mamba-vim-s").to_dict() == {**AvsMambaConfig().to_dict(), "backbone": "vim-small"}
    assert {"avs-mamba-pvt-v2-b5", "avs-mamba-vmamba-t", "avs-mamba-vim-t"} < set(FIGURE_10_MODELS) < set(PRESETS)


def test_visual_features_are_normalised_in_32_groups() -> None:
    projection = build(replace(SMALL, dim=64)).visual_projections[2].double()
    feature = torch.randn(2, 160, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        projection[1].weight.uniform_(0.5, 1.5)
        projection[1].bias.uniform_(-1, 1)
        raw = projection[0](feature)
        expected = torch.empty_like(raw)
        for sample in range(2):
            for first in range(0, 64, 2):
                group = raw[sample, first : first + 2]
                spread = (group.var(correction=0) + 1e-5).sqrt()
                expected[sample, first : first + 2] = (group - group.mean()) / spread
        expected = expected * projection[1].weight[:, None, None] + projection[1].bias[:, None, None]
        torch.testing.assert_close(projection(feature), expected)


def test_vggish_is_never_trained() -> None:
    with torch.device("meta"):
        model = AvsMamba(replace(SMALL, audio_encoder="vggish")).train()
    assert model.visual_backbone.training
    assert not model.audio_encoder.training
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert not any(name.startswith("audio_encoder.") for name in trained)
    assert any(name.startswith("audio_projection.") for name in trained)


@pytest.mark.parametrize("directions", TEMPORAL_DIRECTIONS)
def test_every_number_of_directions(directions: int) -> None:
    model = build(replace(SMALL, **ABLATIONS[f"k{directions}"]))
    assert model.encoder.layers[0].temporal.scan.x_proj_weight.shape[0] == directions
    assert model.pyramid.levels[0].temporal.scan.x_proj_weight.shape[0] == directions
    with torch.no_grad():
        assert model(*clip(2, 32, 32)).isfinite().all()


def test_batch_entries_do_not_mix() -> None:
    model = build(SMALL).double()
    frames, log_mel = (x.double() for x in clip(3, 32, 32, B=2))
    with torch.no_grad():
        both = model(frames, log_mel)
        torch.testing.assert_close(both[1:], model(frames[1:], log_mel[1:]))


def test_sound_changes_the_masks() -> None:
    model = build(SMALL)
    frames, log_mel = clip(3, 32, 32)
    with torch.no_grad():
        assert not torch.allclose(model(frames, log_mel), model(frames, torch.zeros_like(log_mel)))


@pytest.mark.parametrize("without", ["", "no-cip-temporal", "no-cip"])
def test_several_sounds_to_a_clip_share_only_what_does_not_hear(without: str) -> None:
    config = replace(SMALL, **ABLATIONS[without]) if without else SMALL
    model = build(config).double()
    generator = torch.Generator().manual_seed(1)
    shapes = [(c, 32 // s, 64 // s) for c, s in zip((32, 64, 160, 256), (4, 8, 16, 32), strict=True)]
    features = [torch.randn(2, 3, *shape, generator=generator, dtype=torch.float64) for shape in shapes]
    embedding = torch.randn(4, 3, 128, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        shared = model.fuse(features, embedding, sounds=2)
        apart = model.fuse([feature.repeat_interleave(2, 0) for feature in features], embedding)
    torch.testing.assert_close(shared.mask_feature, apart.mask_feature)
    torch.testing.assert_close(shared.queries, apart.queries)
    assert shared.encoded[0].shape[0] == 2
    assert not torch.allclose(shared.mask_feature[0], shared.mask_feature[1]) or without == "no-cip"


def test_several_views_of_a_clip_are_seen_with_each_of_its_sounds() -> None:
    model = build(SMALL).double()
    frames, log_mel = (x.double() for x in clip(2, 32, 32, B=4))
    with torch.no_grad():
        shared = model.stages(frames, log_mel, sounds=2, views=2).mask_feature
        for view in range(4):
            both = log_mel[view // 2 * 2 :][:2]
            alone = model.stages(frames[view : view + 1], both, sounds=2).mask_feature
            torch.testing.assert_close(shared[2 * view : 2 * view + 2], alone)


def test_single_pictures_take_the_way_of_a_model_that_neither_hears_nor_remembers() -> None:
    model = build(replace(SMALL, encoder_layers=0, pyramid_temporal=False, pyramid_audio=False))
    frames, log_mel = clip(3, 32, 64, B=2)
    with torch.no_grad():
        expected = model.stages(frames, log_mel).mask_feature.flatten(0, 1)
        torch.testing.assert_close(model.picture_feature(frames.flatten(0, 1)), expected)


@pytest.mark.parametrize("sounds", [1, 2])
def test_resting_blocks_are_the_identity_and_are_skipped(sounds: int) -> None:
    model = build(SMALL).double()
    frames, log_mel = (x.double() for x in clip(3, 32, 64, B=2))
    frames = frames[: 2 // sounds]
    before = model.layer_logits(frames, log_mel, sounds=sounds)[-1]
    model.rest_blocks()
    (resting,) = model.layer_logits(frames, log_mel, sounds=sounds)
    resting.sum().backward()
    skipped = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is None}
    assert skipped == {"encoder", "decoder", "pyramid"}
    assert model.pyramid.levels[0].adapter.weight.grad is not None
    model.blocks_rest = False
    with torch.no_grad():
        awake = model.layer_logits(frames, log_mel, sounds=sounds)
    assert len(awake) == 2
    torch.testing.assert_close(awake[-1], resting.detach())
    assert not torch.allclose(before, resting)


def test_layer_logits_end_with_the_prediction_and_train_every_parameter() -> None:
    model = build(replace(SMALL, drop_path=0.0)).train()
    layers = model.layer_logits(*clip(2, 32, 32, B=2))
    assert len(layers) == 2
    sum(layer.square().mean() for layer in layers).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


def test_no_decoder_means_the_audio_itself_is_the_query() -> None:
    model = build(replace(SMALL, decoder_layers=0))
    features = [torch.randn(1, 2, c, 16 // s, 16 // s) for c, s in zip((32, 64, 160, 256), (1, 2, 4, 8), strict=True)]
    embedding = torch.randn(1, 2, 128)
    with torch.no_grad():
        assert torch.equal(model.fuse(features, embedding).queries[0], model.audio_projection(embedding))


def test_normalise() -> None:
    frames = torch.randint(0, 256, (2, 4, 5, 3), dtype=torch.uint8)
    expected = (frames[1, 2, 3, 2].item() / 255 - 0.406) / 0.225
    assert normalise(frames).shape == (2, 3, 4, 5)
    assert normalise(frames)[1, 2, 2, 3].item() == pytest.approx(expected, rel=1e-5)


def test_presets() -> None:
    with torch.device("meta"):
        sizes = {name: sum(p.numel() for p in AvsMamba(config).parameters()) for name, config in PRESETS.items()}
    assert sizes["avs-mamba-tiny"] < 15_000_000
    tiny = PRESETS["avs-mamba-tiny"]
    assert tiny.encoder_layers == tiny.decoder_layers == 2
    parts = (
        "encoder_vss",
        "encoder_temporal",
        "decoder_frame",
        "decoder_temporal",
        "pyramid_temporal",
        "pyramid_audio",
    )
    assert all(getattr(tiny, part) for part in parts)
    assert 64 <= tiny.dim <= 96
    assert 8 <= tiny.state_size <= 16
    assert tiny.head_hidden <= 256


def test_config_round_trip_and_refusals() -> None:
    config = preset("avs-mamba-tiny", ablate="k12", num_classes=71)
    assert AvsMambaConfig.from_dict(config.to_dict()) == config
    assert config.temporal_directions == 12
    for bad in (
        {"backbone": "vit"},
        {"temporal_directions": 5},
        {"dim": 48},
        {"upsample": "cubic"},
        {"audio_encoder": "clap"},
        {"width": 3},
    ):
        with pytest.raises(UsageError, match=str(next(iter(bad.values())) if "width" not in bad else "width")):
            AvsMambaConfig.from_dict(bad)
    with pytest.raises(UsageError, match="nope"):
        preset("nope")
    with pytest.raises(UsageError, match="k5"):
        preset("avs-mamba-tiny", ablate="k5")
