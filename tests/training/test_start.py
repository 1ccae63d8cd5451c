"""The model that a run begins with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from avsseg.errors import UsageError
from avsseg.model.backbones import build_backbone
from avsseg.model.backbones.vim import VIM, Vim
from avsseg.model.config import ABLATIONS, preset
from avsseg.training.checkpoints import load_checkpoint
from avsseg.training.optimizer import parameter_groups
from avsseg.training.run import TrainingRun
from avsseg.training.settings import DEFAULT_SIZE, TrainingSettings
from avsseg.training.start import build_model, frozen_statistics, with_size
from avsseg.weights.store import load_model


def test_fine_tuning_starts_from_a_checkpoint(tmp_path: Path, quick: TrainingSettings) -> None:
    best = TrainingRun(tmp_path / "first", quick).train()
    start = build_model(replace(quick, start_from=str(best), size=64))
    assert start.config.input_size == 64
    for name, tensor in load_model(best).model.state_dict().items():
        assert torch.equal(start.state_dict()[name], tensor)
    going = TrainingRun(tmp_path / "second", replace(quick, start_from=str(best), size=0))
    assert going.clips[0].frames.shape[-2] == quick.size != DEFAULT_SIZE
    assert f"size = {quick.size}\n" in (tmp_path / "second" / "settings.toml").read_text()
    assert with_size(TrainingSettings()).size == DEFAULT_SIZE
    semantic = build_model(replace(quick, start_from=str(best), subset="avss"))
    assert semantic.config.num_classes == 71


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_is_what_is_built(name: str, quick: TrainingSettings) -> None:
    settings = replace(quick, model="avs-mamba-tiny", ablate=name)
    with torch.device("meta"):
        built = build_model(settings).config
    for setting, value in ABLATIONS[name].items():
        assert getattr(built, setting) == value


def test_published_weights_come_from_where_they_are_found(tmp_path: Path, quick: TrainingSettings) -> None:
    torch.manual_seed(3)
    backbone = build_backbone(preset(quick.model).backbone)[0]
    torch.save(backbone.state_dict(), tmp_path / "found.pth")
    asked: list[str | Path] = []

    def find(name: str | Path) -> Path:
        asked.append(name)
        return tmp_path / "found.pth"

    start = build_model(replace(quick, init_visual="named"), find=find)
    assert asked == ["named"]
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(start.visual_backbone.state_dict()[name], tensor)


def test_stage_plain_says_that_it_drops_what_blocks_learned(
    tmp_path: Path, quick: TrainingSettings, caplog: pytest.LogCaptureFixture
) -> None:
    dropped = "what its scan blocks learned is lost"
    build_model(replace(quick, start_from="avs-mamba-tiny"))
    assert dropped not in caplog.text
    build_model(replace(quick, start_from="avs-mamba-tiny", stage="plain"))
    assert f"avs-mamba-tiny: {dropped}" in caplog.text
    caplog.clear()
    for stage in ("encoders", "plain"):
        best = TrainingRun(tmp_path / stage, replace(quick, stage=stage, epochs=1)).train()
        build_model(replace(quick, start_from=str(best), stage="plain"))
    assert dropped not in caplog.text
    # the encoders of a trained model come with its blocks
    settings = replace(quick, stage="encoders", epochs=1, start_from="avs-mamba-tiny")
    best = TrainingRun(tmp_path / "given", settings).train()
    build_model(replace(quick, start_from=str(best), stage="plain"))
    assert dropped in caplog.text


def test_a_model_that_learns_the_classes_names_them_and_they_are_not_passed_on(
    tmp_path: Path, quick: TrainingSettings, caplog: pytest.LogCaptureFixture
) -> None:
    run = TrainingRun(tmp_path / "named", replace(quick, class_weight=0.5))
    best = run.train()
    loaded = load_model(best)
    assert loaded.heard == run.clips.sound_classes
    assert loaded.config.heard_classes == len(loaded.heard) > 2
    averaged = load_checkpoint(tmp_path / "named" / "best.pt")["average"]["model.heard_head.bias"]
    assert torch.equal(loaded.model.state_dict()["heard_head.bias"], averaged)
    assert averaged.abs().max() > 0
    # in another order, with a class that is new
    again = build_model(replace(quick, start_from=str(best)), heard=["new", *reversed(loaded.heard)])
    for name in ("heard_head.weight", "heard_head.bias"):
        now, before = again.state_dict()[name], loaded.model.state_dict()[name]
        assert torch.equal(now[1:], before.flip(0))
        assert not any(torch.equal(now[0], row) for row in before)
    assert "names what sounds" not in caplog.text
    start = build_model(replace(quick, start_from=str(best)))
    assert start.config.heard_classes == 0
    assert "best.safetensors names what sounds, and the model trained from it will not" in caplog.text
    kept = "pyramid.", "head.", "audio_encoder."
    assert all(
        torch.equal(v, start.state_dict()[k]) for k, v in loaded.model.state_dict().items() if k.startswith(kept)
    )


def test_masks_that_go_by_classes_keep_them_where_the_clips_have_none(
    tmp_path: Path, quick: TrainingSettings, caplog: pytest.LogCaptureFixture
) -> None:
    agreeing = replace(quick, class_weight=0.5, agreement=True)
    best = TrainingRun(tmp_path / "agreeing", agreeing).train()
    loaded = load_model(best)
    assert loaded.config.agreement
    learned = loaded.model.state_dict()
    assert learned["agreement.weight"] != 0.25
    # a stage that tells the classes hands them on
    encoders = TrainingRun(tmp_path / "encoders", replace(agreeing, stage="encoders", epochs=1)).train()
    kernel = load_checkpoint(tmp_path / "encoders" / "best.pt")["average"]["model.agreement.seen_head.weight"]
    assert torch.equal(load_model(encoders, allow_untrained=True).model.agreement.seen_head.weight, kernel)
    # clips whose classes are not told leave everything where it is, but for the names
    start = build_model(replace(quick, start_from=str(best)))
    assert all(torch.equal(tensor, learned[name]) for name, tensor in start.state_dict().items())
    unnamed = TrainingRun(tmp_path / "unnamed", replace(quick, start_from=str(best), epochs=1)).train()
    assert load_model(unnamed).heard == ("",) * len(loaded.heard)
    assert load_model(unnamed).config.agreement
    # others take over the classes that they share
    seen = "agreement.seen_head.weight"
    again = build_model(replace(agreeing, start_from=str(best)), heard=["new", loaded.heard[1]]).state_dict()
    assert torch.equal(again[seen][1], learned[seen][1])
    assert torch.equal(again["agreement.weight"], learned["agreement.weight"])
    # to what is new nothing is assigned yet, and with nothing in common the masks learn anew how to go by it
    assert again["agreement.seen_head.bias"][0] == again["heard_head.bias"][0] == -4
    apart = build_model(replace(agreeing, start_from=str(best)), heard=["new", "newer"]).state_dict()
    assert (apart["agreement.weight"], apart["agreement.offset"]) == (0.25, 0)
    assert apart["heard_head.bias"].abs().max() < 1
    # without sound nothing agrees, and no class is told
    muted = replace(quick, start_from=str(best), class_weight=0.5, mute=True, epochs=1)
    assert load_model(TrainingRun(tmp_path / "muted", muted).train()).config.agreement
    # and maps of classes have no such term
    assert not build_model(replace(quick, start_from=str(best), subset="avss")).config.agreement


@pytest.mark.parametrize("model", ["avs-mamba-resnet50", "avs-mamba-pvt-v2-b5", "avs-mamba-vim-t"])
def test_a_vggish_that_would_stay_random_is_refused(quick: TrainingSettings, model: str) -> None:
    with pytest.raises(UsageError, match=f"{model} hears through a VGGish.*--init-audio vggish"):
        build_model(replace(quick, model=model))


@pytest.mark.parametrize(
    ("changes", "frozen"),
    [
        ({}, ()),
        ({"init_visual": "v.pth"}, ("visual_backbone",)),
        ({"init_audio": "a.pth"}, ("audio_encoder",)),
        ({"init_visual": "v.pth", "init_audio": "a.pth"}, ("visual_backbone", "audio_encoder")),
        ({"start_from": "avs-mamba-tiny"}, ("",)),
        ({"frozen_statistics": "yes"}, ("",)),
        ({"start_from": "avs-mamba-tiny", "frozen_statistics": "no"}, ()),
        ({"frozen_audio": True, "init_audio": "a.pth", "frozen_statistics": "no"}, ("audio_encoder",)),
        ({"frozen_audio": True, "start_from": "avs-mamba-tiny"}, ("",)),
        ({"frozen_audio": True, "start_from": "avs-mamba-tiny", "frozen_statistics": "no"}, ("audio_encoder",)),
    ],
)
def test_statistics_are_frozen_where_they_are_trained(
    quick: TrainingSettings, changes: dict[str, object], frozen: tuple[str, ...]
) -> None:
    assert frozen_statistics(replace(quick, **changes)) == frozen  # type: ignore[arg-type]


def test_a_mamba_backbone_starts_from_its_published_weights(tmp_path: Path, quick: TrainingSettings) -> None:
    published = Vim(VIM["vim-tiny"]).state_dict()
    published = {name: tensor for name, tensor in published.items() if not name.startswith("feature_pyramid.")}
    torch.save({"model": {**published, "head.bias": torch.zeros(1000)}}, tmp_path / "vim_t.pth")
    model = build_model(replace(quick, backbone="vim-t", init_visual=str(tmp_path / "vim_t.pth")))
    assert model.config.backbone == "vim-tiny"
    state = model.visual_backbone.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in published.items())
    groups = parameter_groups(model.visual_backbone, 1e-3, 0.1)
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    spared = {name.split(".")[-1] for name, p in model.visual_backbone.named_parameters() if id(p) not in decayed}
    assert spared >= {"A_log", "A_b_log", "D", "D_b", "cls_token", "pos_embed", "bias"}
    assert id(model.visual_backbone.layers[0].mixer.in_proj.weight) in decayed
