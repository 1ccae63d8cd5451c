from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from corpus import CORPUS, make_corpus, make_corrupted
from makers import SECRET, HostileFile
from PIL import Image

from avsseg.media.probe import probe
from avsseg.pipeline.plan import VIDEO_SUFFIXES

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows knows neither such names nor named pipes")

WATCHDOG_S = 900  # for the whole batch, on a busy machine
PATIENCE_S = 120  # for one file, the loading of the model included
CORRUPTED = 200
LONGEST_NAME = 255

# what the run says of every file here, or of a format, and not of what is hostile about a file
EXPECTED_ANYWHERE = ("was never trained", "it is re-encoded as AAC")


@dataclass(frozen=True)
class Batch:
    """What one run of the command line made of a folder."""

    media: Path
    out: Path
    code: int
    records: dict[str, dict]
    stdout: str
    stderr: str


def avsseg(folder: Path, *arguments: object, watchdog_s: float = WATCHDOG_S) -> subprocess.CompletedProcess[str]:
    """`python -m avsseg ARGUMENTS...` in a folder, with a folder for temporary files beside it that stays empty."""
    temporary = folder.parent / "temporary"
    temporary.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", "avsseg", *map(str, arguments)],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        env=environment,
        timeout=watchdog_s,
        check=False,
    )
    assert [
        path for path in temporary.iterdir() if not path.name.startswith("torchinductor")
    ] == []  # that is PyTorch's
    return done


def run_batch(media: Path, untrained_file: Path) -> Batch:
    out = media.parent / "out"
    # what a search passes over by its suffix has to be named
    named = [path for path in sorted(media.rglob("*")) if not path.is_dir() and path.suffix not in VIDEO_SUFFIXES]
    model = ("--model", untrained_file, "--allow-untrained", "--size", "64", "--threads", "1")
    done = avsseg(media, "run", "-r", media, *named, "--out", out, "--format", "overlay,masks,coco", "--json", *model)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    records = {os.path.relpath(line["input"], media): line for line in lines}
    assert len(records) == len(lines), "a file was reported twice"
    return Batch(media, out, done.returncode, records, done.stdout, done.stderr)


def remains(out: Path) -> set[Path]:
    """All that lies below an output folder but for masks, the journal and the folders on the way."""
    files = {path for path in out.rglob("*") if not path.is_dir() and ".avsseg" not in path.parts}
    folders = {path.parent for path in files if path.name == "masks.json"}
    return folders | {path for path in files if path.parent not in folders}


def assert_nothing_was_left_half_done(batch: Batch) -> None:
    assert "Traceback" not in batch.stderr
    assert "unexpected" not in batch.stderr
    finished = {Path(path) for record in batch.records.values() for path in record["outputs"]}
    assert remains(batch.out) == finished
    assert all(record["outputs"] for record in batch.records.values() if record["status"] == "done")


@pytest.fixture(scope="module")
def requests() -> list[str]:
    """The paths that were asked of the server on which playlists point."""
    return []


@pytest.fixture(scope="module")
def server(requests: list[str]) -> Iterator[str]:
    class Witness(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_error(404)

        do_HEAD = do_POST = do_GET  # noqa: N815 (names that http.server looks for)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Witness) as witness:
        threading.Thread(target=witness.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{witness.server_port}"
        witness.shutdown()


@pytest.fixture(scope="module")
def batch(server: str, untrained_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Batch:
    media = tmp_path_factory.mktemp("hostile") / "media"
    media.mkdir()
    make_corpus(media, server=server)
    return run_batch(media, untrained_file)


def identifier(file: HostileFile) -> str:
    return file.name.encode("ascii", "replace").decode().replace("\n", "?")[-40:]


@pytest.mark.slow
@pytest.mark.parametrize("file", CORPUS, ids=identifier)
def test_each_file_ends_as_the_table_says(file: HostileFile, batch: Batch) -> None:
    record = batch.records[file.name]
    assert record["seconds"] < PATIENCE_S
    if not file.masks:
        assert (record["status"], record["outputs"]) == ("failed", []), record
        assert file.error
        assert file.error in record["error"]
        assert f"avsseg: error: {record['error']}\n" in batch.stderr
        return
    assert record["status"] == "done", record
    assert record["masks"] in file.masks
    told = [text for text in record["warnings"] if not any(words in text for words in EXPECTED_ANYWHERE)]
    assert all(any(words in text for text in told) for words in file.warnings), told
    assert all(any(words in text for words in (*file.warnings, *file.rarely)) for text in told), told
    overlay, masks, coco = map(Path, record["outputs"])
    pictures = sorted(masks.glob("*.png"))
    shown = probe(batch.media / file.name)
    digits = 6 if (shown.duration_s or 0) > 1e5 else 5
    assert [path.name for path in pictures] == [f"{index:0{digits}d}.png" for index in range(record["masks"])]
    for path in pictures:
        with Image.open(path) as picture:
            assert picture.size == (shown.width, shown.height)
    document = json.loads(coco.read_bytes())
    assert len(document["images"]) == record["masks"]
    assert overlay.stat().st_size > 0


@pytest.mark.slow
def test_the_batch_says_that_some_failed_and_leaves_nothing_half_done(batch: Batch) -> None:
    assert batch.code == 1
    assert set(batch.records) == {file.name for file in CORPUS}
    assert_nothing_was_left_half_done(batch)
    failed = sum(not file.masks for file in CORPUS)
    assert batch.stderr.splitlines()[-1] == f"{len(CORPUS) - failed} done, 0 skipped, {failed} failed"
    last = [line for line in batch.stderr.splitlines() if line.startswith("failed: ")]
    assert len(last) == failed  # one line each, whatever the names hold


@pytest.mark.slow
def test_nothing_was_asked_of_a_server(batch: Batch, requests: list[str], server: str) -> None:
    assert requests == []
    subprocess.run([sys.executable, "-c", f"import urllib.request as u; u.urlopen('{server}/here')"], stderr=-3)
    assert requests == ["/here"]  # it would have noticed


@pytest.mark.slow
def test_nothing_of_a_local_file_is_shown(batch: Batch) -> None:
    line = Path(SECRET).read_bytes().splitlines()[0]
    assert len(line) > 10
    assert line.decode() not in batch.stdout + batch.stderr
    assert [path for path in batch.out.rglob("*") if path.is_file() and line in path.read_bytes()] == []


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes in /proc")
def test_no_process_is_left(batch: Batch) -> None:
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            commands.append(path.read_bytes())
        except OSError:  # it has just ended
            continue
    assert [command for command in commands if os.fsencode(batch.media) in command] == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "media").mkdir()
    return tmp_path / "media"


@pytest.mark.slow
def test_a_name_like_an_option_is_taken_after_two_dashes(folder: Path, untrained_file: Path) -> None:
    make_corpus(folder, files=[file for file in CORPUS if file.name == "-y.mp4"])
    options = ("--out", "o.json", "--model", untrained_file, "--allow-untrained", "--size", "64")
    done = avsseg(folder, "run", *options, "--", "-y.mp4")
    assert (done.returncode, done.stdout) == (0, "o.json\n"), done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["-y.mp4", "o.json"]


@pytest.mark.parametrize("option", ["input", "--model"])
def test_a_named_pipe_is_not_waited_for(option: str, folder: Path, clip: Path) -> None:
    os.mkfifo(folder / "pipe.safetensors")
    pipe = ("pipe.safetensors",) if option == "input" else (clip, "--model", "pipe.safetensors")
    done = avsseg(folder, "run", *pipe, "--out", "o.json", watchdog_s=PATIENCE_S)
    assert (done.returncode, done.stdout) == (1 if option == "input" else 3, "")
    assert len(done.stderr.splitlines()) == 1
    assert "pipe.safetensors: is not a regular file" in done.stderr
    assert not (folder / "o.json").exists()


def test_an_empty_folder_called_mp4_is_no_video(folder: Path) -> None:
    (folder / "x.mp4").mkdir()
    done = avsseg(folder, "run", "x.mp4", "--out", "o", watchdog_s=PATIENCE_S)
    assert done.returncode == 2
    assert "no videos found in x.mp4" in done.stderr


def test_a_folder_linked_to_itself_is_searched_once(folder: Path, clip: Path) -> None:
    (folder / "a.mp4").symlink_to(clip)
    (folder / "circle").symlink_to(".")
    done = avsseg(folder, "run", "-r", ".", "--out", "o", "--dry-run", "--json", watchdog_s=PATIENCE_S)
    assert [json.loads(line)["input"] for line in done.stdout.splitlines()] == ["a.mp4"]


def test_the_script_makes_the_same_bytes_every_time(folder: Path) -> None:
    some = [file for file in CORPUS if file.name in ("flips_in_mdat.mp4", "cut_in_cluster.mkv", "cut_at_both_ends.ts")]
    (folder / "again").mkdir()
    make_corpus(folder, files=some)
    make_corpus(folder / "again", files=some)
    assert len(some) == 3
    assert all((folder / file.name).read_bytes() == (folder / "again" / file.name).read_bytes() for file in some)
    script = Path(__file__).with_name("corpus.py")
    help_text = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True).stdout
    assert "hostile media" in help_text


@pytest.mark.slow
@pytest.mark.long
def test_random_damage_ends_in_masks_or_in_an_error_of_the_file(folder: Path, untrained_file: Path) -> None:
    make_corrupted(folder, CORRUPTED)
    batch = run_batch(folder, untrained_file)
    assert_nothing_was_left_half_done(batch)
    assert len(batch.records) == CORRUPTED
    assert len({path.read_bytes() for path in folder.iterdir()}) > CORRUPTED * 0.9
    done = [record for record in batch.records.values() if record["status"] == "done"]
    assert len(done) > CORRUPTED / 2
    for record in batch.records.values():
        assert record["seconds"] < PATIENCE_S, record
        if record["status"] == "failed":
            assert record["error"].startswith(record["input"]), record
        else:
            assert 1 <= record["masks"] <= 64, record
