"""Makes the interim default weights, avs-mamba-tiny, from rendered scenes alone; nothing is downloaded.

    python weights/train_rendered.py visual --folder runs/rendered --minutes 25 --learning-rate 1e-3
    python weights/train_rendered.py audio  --folder runs/rendered --minutes 12 --learning-rate 1e-3
    torchrun --nproc-per-node 2 weights/train_rendered.py joint --folder runs/rendered --minutes 67 --threads 1
    python weights/train_rendered.py export --folder runs/rendered

`visual` teaches the backbone to tell the classes of single pictures, `audio` teaches the audio encoder to tell the
timbres of single seconds, `joint` starts from both and trains the whole model on clips. Every stage goes on from its
last checkpoint when started again, and every stage may run under torchrun. Seeds are of the train and val splits only.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging
from pathlib import Path

import torch
import torch.distributed
from rendered_clips import ClipSettings, batches, clip, picture, sound
from torch import Tensor, nn

from avsseg.data.synthetic_shapes import CLASSES
from avsseg.model.avs_mamba import AvsMamba, normalise
from avsseg.model.config import preset
from avsseg.training.checkpoints import load_checkpoint
from avsseg.training.distributed import process_group
from avsseg.training.objectives import AudioObjective, JointObjective, VisualObjective, iou_and_silent_area
from avsseg.training.trainer import Trainer, TrainerSettings
from avsseg.weights.store import save_model

MODEL = "avs-mamba-tiny"
BACKBONE_CHANNELS = (32, 64, 160, 256)
# objects cover little of a picture
FOREGROUND_WEIGHT = 2.5
SIZE = 128
# up to which progress, which clips, how many a step and process: short clips first, for more scenes in the same time
PHASES = (
    (0.55, ClipSettings(size=SIZE, seconds=3, easy_fraction=0.7), 2),
    (1.0, ClipSettings(size=SIZE, seconds=5, easy_fraction=0.3), 1),
)
FIRST_SEED = {"visual": 10_000_000, "audio": 20_000_000, "joint": 30_000_000}
VALIDATION_SEEDS = range(24)
ENCODER_BATCH = 16
RANK_SEEDS = 1_000_000
RATE_SCALES = {"model.visual_backbone.": 0.7, "model.audio_encoder.": 0.3}


@torch.no_grad()
def validate(objective: nn.Module) -> dict[str, float]:
    """Strict M_J (frames with truth) and area on silent frames, over fixed clips of the val split."""
    assert isinstance(objective, JointObjective)
    settings = ClipSettings(size=SIZE, variants=1, easy_fraction=0.0)
    ious, areas = [], []
    for seed in VALIDATION_SEEDS:
        example = clip(seed, "val", settings)
        logits = objective.model(normalise(example["frames"])[None], example["log_mel"])
        iou, area = iou_and_silent_area(logits, example["masks"])
        ious.append(iou)
        areas.append(area)
    m_j, silent_area = float(torch.cat(ious).nanmean()), float(torch.cat(areas).nanmean())
    return {"M_J": m_j, "silent_area": silent_area, "score": m_j - 2 * silent_area}


def rank() -> int:
    """This process's number under torchrun, else 0."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def pretrained(run: Path, stage: str, prefix: str) -> dict[str, Tensor]:
    """The averaged weights of one part of an earlier stage."""
    average: dict[str, Tensor] = load_checkpoint(run / stage / "last.pt")["average"]
    return {name.removeprefix(prefix): tensor for name, tensor in average.items() if name.startswith(prefix)}


def train(stage: str, options: argparse.Namespace) -> None:
    """Runs or continues one stage."""
    torch.manual_seed(options.seed)
    model = AvsMamba(preset(MODEL, backbone="pvt_v2_b0", input_size=SIZE))
    settings = TrainerSettings(learning_rate=options.learning_rate, minutes=options.minutes)
    if stage == "joint":
        model.visual_backbone.load_state_dict(pretrained(options.folder, "visual", "backbone."))
        model.audio_encoder.load_state_dict(pretrained(options.folder, "audio", "encoder."))
        objective = JointObjective(
            model, seen=1 + len(CLASSES), heard=len(CLASSES), foreground_weight=FOREGROUND_WEIGHT
        )
        joint = Trainer(objective, options.folder / stage, settings, learning_rate_scales=RATE_SCALES)
        train_joint(joint, options)
        return
    encoder = (
        VisualObjective(model.visual_backbone, BACKBONE_CHANNELS, 1 + len(CLASSES), FOREGROUND_WEIGHT)
        if stage == "visual"
        else AudioObjective(model.audio_encoder, len(CLASSES))
    )
    trainer = Trainer(encoder, options.folder / stage, settings)
    trainer.restore()
    render = (
        functools.partial(picture, split="train", size=SIZE)
        if stage == "visual"
        else functools.partial(sound, split="train")
    )
    first_seed = FIRST_SEED[stage] + RANK_SEEDS * rank() + trainer.step * ENCODER_BATCH
    trainer.train(batches(render, first_seed, ENCODER_BATCH, options.workers))


def train_joint(trainer: Trainer, options: argparse.Namespace) -> None:
    """The phases of the joint stage that are still to do."""
    trainer.restore()
    for until, clips, pictures in PHASES:
        if trainer.progress < until:
            render = functools.partial(clip, split="train", settings=clips)
            # no step takes more than 4 pictures, so no seed comes twice
            first_seed = FIRST_SEED["joint"] + RANK_SEEDS * rank() + trainer.step * 4
            trainer.train(batches(render, first_seed, pictures, options.workers), validate, until=until)


def export(options: argparse.Namespace) -> None:
    """Writes the best joint checkpoint's averaged model and the manifest entry."""
    state = load_checkpoint(options.folder / "joint" / options.checkpoint)
    model = AvsMamba(preset(MODEL, backbone="pvt_v2_b0", input_size=SIZE))
    model.load_state_dict({k.removeprefix("model."): v for k, v in state["average"].items() if k.startswith("model.")})
    target = options.out / f"{MODEL}.safetensors"
    provenance = {
        "data": "rendered scenes of avsseg.data.synthetic, split train",
        "recipe": "weights/train_rendered.py",
        "joint_steps": state["step"],
        "minutes": round(state["elapsed_s"] / 60, 1),
        "classes": [c.name for c in CLASSES],
    }
    digest = save_model(target, model.eval(), training=provenance, half=True)
    manifest = {
        MODEL: {
            "file": target.name,
            "sha256": digest,
            "description": "PVT-v2-b0, C = 64, trained on rendered scenes only",
            "licence": "Apache-2.0",
        }
    }
    (options.out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["visual", "audio", "joint", "export"])
    parser.add_argument("--folder", type=Path, default=Path("runs/rendered"))
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", default="best.pt", help="what `export` reads: best.pt or last.pt")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    if options.stage == "export":
        export(options)
        return
    with process_group() if torch.distributed.is_torchelastic_launched() else contextlib.nullcontext():
        train(options.stage, options)


if __name__ == "__main__":
    main()
