from __future__ import annotations

import dataclasses
import hashlib
import http.server
import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

import avsseg.cli
from avsseg.errors import WeightsError
from avsseg.model.avs_mamba import AvsMamba
from avsseg.model.config import AvsMambaConfig
from avsseg.weights import conversion, load_model
from avsseg.weights.cache import weights_dir
from avsseg.weights.catalogue import CATALOGUE
from avsseg.weights.registry import DEFAULT_MODEL, shipped_weights

Main = Callable[..., CompletedProcess[str]]
GOLDEN = Path(__file__).parents[1] / "data" / "avs_mamba_golden.safetensors"
DOCS = Path(__file__).parents[2] / "docs"


def saved() -> bytes:
    file = io.BytesIO()
    torch.save({"weight": torch.arange(1000.0)}, file)
    return file.getvalue()


BODY = saved()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AVSSEG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("AVSSEG_OFFLINE", raising=False)
    return tmp_path / "home"


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a catalogue entry that a server on this machine serves."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "tiny.pth").write_bytes(BODY)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path / "www"))

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/tiny.pth"
        entry = dataclasses.replace(CATALOGUE["pvt_v2_b0"], name="tiny", url=url, size_mib=None)
        monkeypatch.setitem(CATALOGUE, "tiny", entry)
        yield "tiny"
        server.shutdown()
        thread.join()


def authors_state_dict(classes: int = 1, device: str = "cpu") -> dict[str, torch.Tensor]:
    """A made-up checkpoint with the authors' names, in small; its encoders are on `device`."""
    config = AvsMambaConfig(backbone="pvt_v2_b0", dim=32, state_size=4, head_hidden=64)
    with torch.device("meta"):
        model = AvsMamba(config)
    with safe_open(GOLDEN, "pt") as file:
        names = [name for name in file.keys() if name.startswith("param/")]  # noqa: SIM118
        theirs = {name.removeprefix("param/"): file.get_tensor(name) for name in names}
    theirs |= {f"input_proj.{i}.0.weight": torch.zeros(32, c, 1, 1) for i, c in enumerate((32, 64, 160, 256))}
    theirs["fc.4.weight"] = torch.rand(classes, 32, 1, 1)
    for ours, prefix in (("visual_backbone", "vision_backbone"), ("audio_encoder", "audio_backbone")):
        shapes = {f"{prefix}.{k}": v.shape for k, v in getattr(model, ours).state_dict().items()}
        theirs |= {name: torch.full(shape, 0.5, device=device) for name, shape in shapes.items()}
    return theirs | {"vision_backbone.head.weight": torch.zeros(3), "query_embed.weight": torch.zeros(5)}


def test_list_shows_what_comes_with_avsseg_and_what_can_be_fetched() -> None:
    outcome = CliRunner().invoke(avsseg.cli.app, ["weights", "list"])
    assert outcome.exit_code == 0
    lines = {line.split()[0]: line for line in outcome.stdout.splitlines()}
    assert "shipped" in lines[DEFAULT_MODEL]
    assert "313 MiB" in lines["pvt_v2_b5"]
    assert "Apache-2.0" in lines["pvt_v2_b5"]
    assert lines["vim-tiny-stride8"].endswith("not supported yet")
    assert lines["vim-tiny"].endswith("Vim backbone, ImageNet (76.1 %)")
    assert ">= 87.3 MiB" in lines["vmamba-tiny-v0"]
    assert not any(line.split()[2] == "?" for line in lines.values())


def test_the_help_and_the_docs_teach_where_files_are_kept_and_how_to_stay_offline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = CliRunner().invoke(avsseg.cli.app, ["weights", "--help"]).stdout
    section = (DOCS / "cli.md").read_text(encoding="utf-8").split("\n## avsseg weights\n")[1].split("\n## ")[0]
    readme = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    for text in (shown, section, readme):
        for taught in ("AVSSEG_HOME", "AVSSEG_OFFLINE=1", "~/.cache/avsseg"):
            assert taught in text
    assert "XDG_CACHE_HOME/avsseg" in shown


def test_the_help_of_every_group_is_in_the_docs() -> None:
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert "\n## avsseg\n\nFind the pixels of a video that make the sound, and mark them.\n" in text
    assert "\n## avsseg data\n\nRender datasets" in text
    assert "\n## avsseg weights\n\nList, download, verify and convert weights.\n" in text


def test_help_imports_no_torch() -> None:
    program = (
        "import sys, avsseg.cli\n"
        "sys.argv = ['avsseg', 'weights', '--help']\n"
        "try: avsseg.cli.main()\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "AVSSEG_OFFLINE" in done.stdout
    assert done.stdout.endswith("False\n")


def test_list_as_json_follows_the_cache(avsseg_main: Main, published: str) -> None:
    def row() -> dict[str, Any]:
        rows = json.loads(avsseg_main("weights", "list", "--json").stdout)
        assert len(rows) == len(shipped_weights()) + len(CATALOGUE)
        return next(row for row in rows if row["name"] == published)

    assert (row()["state"], row()["path"], row()["sha256"]) == ("-", None, None)
    avsseg_main("weights", "download", published)
    assert (row()["state"], row()["bytes"]) == ("cached", len(BODY))
    assert row()["sha256"] == hashlib.sha256(BODY).hexdigest()


def test_download_prints_paths_and_verify_watches_them(avsseg_main: Main, published: str) -> None:
    outcome = avsseg_main("weights", "download", published, DEFAULT_MODEL)
    path = weights_dir() / "tiny.pth"
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.splitlines() == [str(path), str(shipped_weights()[DEFAULT_MODEL].path)]
    assert avsseg_main("weights", "path", published).stdout == f"{path}\n"
    outcome = avsseg_main("weights", "verify")
    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert [line.split()[:2] for line in outcome.stdout.splitlines()] == [[DEFAULT_MODEL, "ok"], [published, "ok"]]
    path.write_bytes(b"damaged")
    outcome = avsseg_main("weights", "verify")
    assert outcome.returncode == 1
    assert f"{published}  differs" in outcome.stdout
    assert "avsseg weights download tiny" in outcome.stderr
    assert avsseg_main("weights", "verify", DEFAULT_MODEL).returncode == 0
    assert avsseg_main("weights", "path", published).returncode == 3


def test_files_that_are_not_whole_are_one_line_each(avsseg_main: Main, published: str, tmp_path: Path) -> None:
    (tmp_path / "www" / "tiny.pth").write_bytes(BODY[:-100])
    outcome = avsseg_main("weights", "download", published)
    assert (outcome.returncode, outcome.stdout, outcome.stderr.count("\n")) == (3, "", 1)
    assert "tiny.pth: is cut off: the zip directory at its end is missing. It was thrown away" in outcome.stderr
    path = weights_dir() / "tiny.pth"
    assert list(path.parent.iterdir()) == []
    path.write_bytes(BODY[:-100])  # as after copying a part of it by hand
    outcome = avsseg_main("weights", "verify", published)
    assert (outcome.returncode, outcome.stderr.count("\n")) == (1, 1)
    assert outcome.stdout.startswith(f"{published}  damaged  ")
    assert f"{path}: is cut off" in outcome.stderr
    assert "Remove the file, then run: avsseg weights download tiny" in outcome.stderr
    assert avsseg_main("weights", "path", published).returncode == 3


def test_a_shipped_file_that_was_damaged(avsseg_main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = dataclasses.replace(shipped_weights()[DEFAULT_MODEL], path=tmp_path / "x")
    damaged.path.write_bytes(b"damaged")
    monkeypatch.setattr("avsseg.weights.registry.shipped_weights", lambda: {DEFAULT_MODEL: damaged})
    outcome = avsseg_main("weights", "verify")
    assert outcome.returncode == 1
    assert "Reinstall avsseg" in outcome.stderr


def test_one_failure_of_several_does_not_stop_the_others(avsseg_main: Main, published: str, tmp_path: Path) -> None:
    gone = dataclasses.replace(CATALOGUE[published], name="gone", url=CATALOGUE[published].url.replace("tiny", "gone"))
    CATALOGUE["gone"] = gone
    try:
        outcome = avsseg_main("weights", "download", "gone", published)
        alone = avsseg_main("weights", "download", "gone")
    finally:
        del CATALOGUE["gone"]
    assert outcome.returncode == 1
    assert outcome.stdout == f"{weights_dir() / 'tiny.pth'}\n"
    assert "404" in outcome.stderr
    assert (alone.returncode, alone.stdout, alone.stderr.count("\n")) == (3, "", 1)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["download"], 2, "or --all"),
        (["download", "vggish", "--all"], 2, "or --all"),
        (["download", "no-such"], 2, "no published weights"),
        (["path", "no-such"], 2, "no published weights"),
        (["path", "vggish"], 3, "avsseg weights download vggish"),
        (["verify", "vggish"], 1, "not in the cache"),
        (["convert", "absent.pth", "out.safetensors"], 3, "no such file"),
        (["convert", "absent.pth", "out.safetensors", "--as", "x"], 2, "unknown kind"),
        (["convert", "absent.pth", "out.pth"], 2, "must end in .safetensors"),
    ],
)
def test_wrong_calls_are_one_line(avsseg_main: Main, arguments: list[str], code: int, message: str) -> None:
    outcome = avsseg_main("weights", *arguments)
    assert outcome.returncode == code
    assert outcome.stdout == ""
    assert message in outcome.stderr
    assert outcome.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [["list"], ["verify"], ["download", "vggish"], ["path", "vggish"]])
def test_a_cache_that_cannot_be_used_is_one_line(
    avsseg_main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    (tmp_path / "file").touch()
    # root can read any folder, but none inside a file or of such a name
    homes = [tmp_path / "file", tmp_path / ("x" * 300)]
    if os.name != "nt":  # which takes any user's folder to lie beside one's own
        homes.append(Path("~nosuch/x"))
    for home in homes:
        monkeypatch.setenv("AVSSEG_HOME", str(home))
        outcome = avsseg_main("weights", *command)
        assert (outcome.returncode, outcome.stdout, outcome.stderr.count("\n")) == (3, "", 1)
        assert str(home) in outcome.stderr
        assert "AVSSEG_HOME" in outcome.stderr


def test_short_names_of_backbones_will_do(avsseg_main: Main) -> None:
    for name, file in (("vmamba-t", "vssm1_tiny_0230s_ckpt_epoch_264.pth"), ("pvt-v2-b5", "pvt_v2_b5.pth")):
        outcome = avsseg_main("weights", "path", name)
        assert (outcome.returncode, outcome.stdout) == (3, "")
        assert f"avsseg weights download {name}" in outcome.stderr
        weights_dir().mkdir(parents=True, exist_ok=True)
        (weights_dir() / file).touch()
        assert avsseg_main("weights", "verify", name).stdout.startswith(f"{name}  damaged")


def test_offline_says_what_to_fetch_and_where_to_put_it(avsseg_main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVSSEG_OFFLINE", "1")
    outcome = avsseg_main("weights", "download", "vggish")
    assert outcome.returncode == 3
    assert CATALOGUE["vggish"].url in outcome.stderr
    assert str(weights_dir()) in outcome.stderr


@pytest.mark.slow
def test_the_authors_checkpoint_becomes_a_model(avsseg_main: Main, tmp_path: Path) -> None:
    theirs = authors_state_dict()
    torch.save(theirs, tmp_path / "theirs.pth")
    out = tmp_path / "ours.safetensors"
    outcome = avsseg_main("weights", "convert", tmp_path / "theirs.pth", out)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout == f"{out}\n"
    assert "avs-mamba" in outcome.stderr
    loaded = load_model(out)
    config = loaded.config
    assert (config.backbone, config.dim, config.state_size, config.head_hidden) == ("pvt_v2_b0", 32, 4, 64)
    assert (config.upsample, config.input_size, loaded.categories) == ("nearest", 512, ("sounding",))
    state = loaded.model.state_dict()
    assert torch.equal(state["head.classify.weight"], theirs["fc.4.weight"])
    assert torch.equal(state["pyramid.levels.0.temporal.scan.A_logs"], theirs["cmfpn.self_attns.2.mamba_block.A_logs"])
    again = avsseg_main("weights", "convert", tmp_path / "theirs.pth", out)
    assert again.returncode == 2
    assert "--overwrite" in again.stderr


def test_the_authors_semantic_checkpoint_has_named_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[AvsMamba, Any]] = []
    monkeypatch.setattr(
        conversion, "save_model", lambda _, model, categories, **__: written.append((model, categories))
    )
    monkeypatch.setattr(conversion, "read_tensors", lambda _: authors_state_dict(71, device="meta"))
    (tmp_path / "theirs.pth").touch()
    assert conversion.convert_file(tmp_path / "theirs.pth", tmp_path / "o.safetensors", "avs-mamba") == "avs-mamba"
    model, categories = written[0]
    assert (model.config.num_classes, model.config.input_size) == (71, 224)
    assert (len(categories), categories[0]) == (71, "background")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mamba_encoder.0.surprise.weight": torch.zeros(1)}, "mamba_encoder.0.surprise.weight is missing or unknown"),
        ({"mlp.layers.0.weight": None}, "mlp.layers.0.weight is missing or unknown"),
        ({"audio_proj.bias": None}, "1 missing (audio_projection.bias)"),
        ({"fc.4.weight": torch.zeros(5, 32, 1, 1)}, "has 5 classes"),
        ({"fc.4.weight": torch.zeros(1)}, "1 of another shape (head.classify.weight"),
        ({"audio_proj.weight": torch.zeros(30, 128)}, "1 of another shape (audio_projection.weight"),
        ({"mamba_encoder.0.mamba_block.out_proj.weight": torch.zeros(30, 60)}, "dim is 30"),
        ({"mamba_encoder.0.mamba_block.out_proj.weight": torch.zeros(30)}, "not the authors' AVS-Mamba"),
    ],
)
def test_checkpoints_that_only_look_like_the_authors(change: dict[str, torch.Tensor | None], message: str) -> None:
    changed = authors_state_dict(device="meta") | change
    with pytest.raises(WeightsError, match=re.escape(message)) as caught:
        conversion.authors_model({name: tensor for name, tensor in changed.items() if tensor is not None}, "x.pth")
    assert str(caught.value).startswith("x.pth: ")
    assert "\n" not in str(caught.value)
