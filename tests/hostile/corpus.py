"""Hostile media: files as damaged, odd or malicious as users have them, each with what avsseg is to make of it.

    python tests/hostile/corpus.py FOLDER

writes them, the same bytes every time with the same ffmpeg; `CORPUS` is the table. POSIX only: Windows knows neither
such names nor named pipes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from clips import Workshop
from damaged import CUT, FLIPPED, LIES
from disguised import CONTENTS, NAMES, PLACES, POINTERS
from makers import SERVER, HostileFile
from odd import PICTURES, SOUNDS, TIMES
from surgery import corrupt

from avsseg.errors import AvssegError, printable
from avsseg.media.ffmpeg import find_ffmpeg

CORPUS: tuple[HostileFile, ...] = (
    *CUT,
    *FLIPPED,
    *LIES,
    *TIMES,
    *PICTURES,
    *SOUNDS,
    *CONTENTS,
    *NAMES,
    *PLACES,
    *POINTERS,
)
CORRUPTED = ("front.mp4", "plain.mkv", "plain.ts", "plain.avi")


def make_corpus(folder: Path, *, server: str = SERVER, files: Iterable[HostileFile] = CORPUS) -> None:
    """Writes the files below a folder; `server` is the address that playlists point at."""
    with tempfile.TemporaryDirectory() as aside:
        shop = Workshop(Path(aside), str(find_ffmpeg().path))
        for file in files:
            path = folder / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            file.make(shop, path)
            if server != SERVER and path.is_file():
                data = path.read_bytes()
                if SERVER.encode() in data:
                    # of the same length, so that no size in the file is wrong
                    path.write_bytes(data.replace(SERVER.encode(), server.encode().ljust(len(SERVER), b"/")))


def make_corrupted(folder: Path, count: int) -> None:
    """Writes `count` files, each one of four containers with a damage of its own, by the numbers 0 to `count` - 1."""
    with tempfile.TemporaryDirectory() as aside:
        shop = Workshop(Path(aside), str(find_ffmpeg().path))
        for seed in range(count):
            source = CORRUPTED[seed % len(CORRUPTED)]
            path = folder / f"{seed:04d}{Path(source).suffix}"
            path.write_bytes(corrupt(shop.bytes_of(source), seed // len(CORRUPTED)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a folder of hostile media to test programs that read video.")
    parser.add_argument("folder", type=Path, help="a folder that does not exist yet")
    parser.add_argument("--corrupted", type=int, metavar="N", help="instead, N files of four kinds damaged at random")
    parser.add_argument(
        "--list", action="store_true", help="tell of each file how it is made and what avsseg makes of it"
    )
    arguments = parser.parse_args()
    if os.name == "nt":
        parser.error("needs a POSIX system")
    try:
        arguments.folder.mkdir(parents=True)
        if arguments.corrupted is not None:
            make_corrupted(arguments.folder, arguments.corrupted)
        else:
            make_corpus(arguments.folder)
    except (OSError, AvssegError) as error:
        sys.exit(f"corpus.py: {error}")
    if arguments.list and arguments.corrupted is None:
        for file in CORPUS:
            outcome = f"{' or '.join(map(str, file.masks))} masks" if file.masks else f"error: {file.error}"
            warned = f" (warned: {', '.join(file.warnings)})" if file.warnings else ""
            print(f"{printable(file.name)}\t{file.how}\t{outcome}{warned}")


if __name__ == "__main__":
    main()
