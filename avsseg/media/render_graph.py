"""What the masks' videos consist of: ffmpeg's filter graph, encoders, audio tracks and container for each style."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import ffmpeg

from avsseg.errors import EnvironmentFault
from avsseg.media.ffmpeg import command, encoders, file_url, run_ffmpeg
from avsseg.media.frames import audio_tracks, on_container_clock, seek_point, tone_map
from avsseg.media.probe import VideoInfo, can_tone_map, open_input

LONGEST_S = 4 * 3600.0  # of an overlay whose end is not known; 1/120000 s in 31 bits, the longest frame of MP4, is 5 h
MUXERS = {"mp4": "mp4", "mov": "mov", "mkv": "matroska", "webm": "webm"}

# What each container holds so that common players play it; Matroska holds almost anything, but not what DVDs have.
COPIED_AUDIO = {
    "mp4": frozenset({"aac", "mp3", "mp2", "ac3", "eac3", "opus", "alac"}),
    "mov": frozenset({"aac", "mp3", "ac3", "eac3", "alac", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be"}),
    "mkv": frozenset(
        {
            *("aac", "ac3", "eac3", "dts", "truehd", "mlp", "mp1", "mp2", "mp3", "opus", "vorbis"),
            *("alac", "flac", "tta", "wavpack", "wmav1", "wmav2", "pcm_u8", "pcm_alaw", "pcm_mulaw"),
            *("pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_s32be", "pcm_f32le", "pcm_f64le"),
        }
    ),
    "webm": frozenset({"opus", "vorbis"}),
}

ADTS_CONTAINERS = frozenset({"mpegts", "mpeg", "wtv"})

# The encoder's clock ticks once a frame by default, which moves the frames of a variable frame rate, or of a picture
# that starts between two ticks. All common rates, 24000/1001 to 120, divide 120,000.
EXACT_TIMES = {"enc_time_base": "1:120000"}

H264_ENCODERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("libx264", {"preset": "veryfast", "crf": 20, **EXACT_TIMES}),
    ("libopenh264", {"b:v": "6M", **EXACT_TIMES}),
    ("h264_videotoolbox", {"q:v": 60, **EXACT_TIMES}),
    ("h264_mf", {"rate_control": "quality", "quality": 70, **EXACT_TIMES}),
    ("mpeg4", {"q:v": 3}),  # its time base has 16 bits
)
VP9_ENCODERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("libvpx-vp9", {"crf": 31, "b:v": 0, "deadline": "realtime", "cpu-used": 5, "row-mt": 1, **EXACT_TIMES}),
    ("libvpx", {"crf": 10, "b:v": "4M", "deadline": "realtime", "cpu-used": 5, **EXACT_TIMES}),
)
# libvpx codes transparency only without its alternate reference frames
VP9_ALPHA_ENCODERS = tuple((name, {**options, "auto-alt-ref": 0}) for name, options in VP9_ENCODERS)
PRORES_ENCODERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("prores_ks", {"profile:v": "4444", "alpha_bits": 16, "vendor": "apl0", **EXACT_TIMES}),
)
WHITE = (255, 255, 255)
CUTOUT_CONTAINERS = ("mov", "webm", "mkv")

Style = Literal["overlay", "matte", "cutout"]
ARTICLE: dict[Style, str] = {"overlay": "an overlay", "matte": "a matte", "cutout": "a cutout"}


def rendering(
    info: VideoInfo, path: Path, masks: Any, style: Style, container: str, start_s: float, end_s: float | None
) -> tuple[Any, tuple[str, ...]]:
    """The ffmpeg-python output node: graph, encoders and container; and what of it the user should know."""
    seek_s = seek_point(start_s)
    source = open_input(info, **{"reinit_filter:v": 0}, **({"ss": f"{seek_s:.6f}"} if seek_s else {}))
    # To planes first, at low resolution: four planes scale faster than packed RGBA.
    masks = masks.filter("scale", "iw", "ih", out_color_matrix=_color_matrix(info)).filter("format", "yuva420p")
    masks = masks.filter("scale", info.width, info.height, flags="bilinear")
    if start_s:
        masks = masks.filter("settb", "1/1000000").filter("setpts", f"PTS+{round((start_s - seek_s) * 1e6)}")
    picture = _composed(info, source, masks, style, container)
    tracks: list[Any] = []
    options: dict[str, Any] = {}
    warnings: list[str] = []
    if style != "matte":
        tracks, options, warnings = _audio(info, source, container, style, seek_s)
        if info.is_hdr:
            warnings.append(
                f"the HDR picture is mapped to SDR (bt709) in the {style}"
                if can_tone_map()
                else "the HDR picture is kept as it is in 8 bits and may look wrong; an ffmpeg with zscale maps it"
            )
    options.update(fps_mode="passthrough", max_muxing_queue_size=4096)
    options["max_error_rate"] = 1  # however damaged, what can be read is rendered
    candidates = _encoder_candidates(container, style)
    encoder, encoder_options = _video_encoder(candidates, container, style)
    options.update({"c:v": encoder, **encoder_options})
    if encoder != candidates[0][0]:
        warnings.append(f"this ffmpeg has no {candidates[0][0]}; the {style} is encoded with {encoder}")
    if start_s:
        options["ss"] = f"{start_s - seek_s:.6f}"
    if end_s is None and info.duration_s is not None:
        # Timestamps of a damaged file may jump to far beyond its end, and no container takes them there. The duration
        # that it announces may be far too short, though.
        end_s = max(1.5 * info.duration_s + 60, LONGEST_S)
    if end_s is not None:
        options["t"] = f"{end_s - start_s:.6f}"
    if MUXERS[container] in ("mp4", "mov"):
        options["movflags"] = "+faststart"
    if MUXERS[container] in ("mp4", "mov") and info.timecode and not start_s:
        options["timecode"] = info.timecode
    else:
        options["metadata"] = "timecode="  # a container's own would be copied, whatever the start
    output = ffmpeg.output(picture, *tracks, file_url(path), format=MUXERS[container], **options)
    if len(tracks) < len(audio_tracks(info)):
        # the masks are timed by all tracks
        output = on_container_clock(info, source, output, **({"t": options["t"]} if "t" in options else {}))
    return output, tuple(warnings)


def _composed(info: VideoInfo, source: Any, masks: Any, style: Style, container: str) -> Any:
    """The picture to encode, of the source's picture and the masks at its size."""
    # Scaling does nothing to most videos, and keeps those in shape that change their size on the way.
    picture = tone_map(info, source["V:0"]).filter("scale", info.width, info.height)
    right, bottom = info.width % 2, info.height % 2
    if right or bottom:
        # 4:2:0 video has even sides: the last column and row are repeated. Until then in 4:4:4, since on subsampled
        # pictures the filters leave out half a chroma sample, and with it that column and row.
        picture = picture.filter("format", "yuv444p").filter("pad", info.width + right, info.height + bottom)
        picture = picture.filter("fillborders", right=right, bottom=bottom, mode="smear")
    if style == "overlay":
        return ffmpeg.filter([picture, masks], "overlay", shortest=1).filter("format", "yuv420p")
    if style == "cutout":
        parts = picture.split()
        picture = parts[0]
    # The masks take the frames' timestamps by being laid over them, blackened. Grey has no HDR: without the source's
    # tags a player would map its levels.
    black = parts[1].filter("scale") if style == "cutout" else picture  # else the picture would be made 4:2:0, too
    black = black.filter("format", "yuv420p")
    black = black.filter("drawbox", color="black", t="fill")
    matte = ffmpeg.filter([black, masks], "overlay", shortest=1).filter("format", "yuv420p")
    if style == "matte":
        return matte.filter("setparams", range="tv", color_primaries="bt709", color_trc="bt709", colorspace="bt709")
    alpha = matte.filter("format", "gray")  # as alpha has it: from 0, not from 16
    if info.has_alpha:
        # alphaextract takes no palette
        own = source["V:0"].filter("format", "rgba").filter("alphaextract")
        own = own.filter("scale", info.width, info.height).filter("format", "gray")
        own = own.filter("pad", info.width + right, info.height + bottom)
        alpha = ffmpeg.filter([alpha, own], "blend", all_mode="multiply", shortest=1)
    depth = "yuva420p" if container == "webm" else "yuva444p10le"
    return (
        ffmpeg.filter([picture, alpha], "alphamerge", shortest=1)
        .filter("format", depth)
        .filter("crop", info.width, info.height, 0, 0, exact=1)
    )


def _color_matrix(info: VideoInfo) -> str:
    """The name that ffmpeg's scale filter has for the matrix of the picture under the masks."""
    if info.is_hdr and can_tone_map():
        return "bt709"
    known = {"bt709": "bt709", "bt2020nc": "bt2020", "bt2020c": "bt2020", "smpte240m": "smpte240m", "fcc": "fcc"}
    return known.get(info.color_space or "", "bt601")


def _encoder_candidates(container: str, style: Style) -> tuple[tuple[str, dict[str, Any]], ...]:
    if style == "cutout":
        return VP9_ALPHA_ENCODERS if container == "webm" else PRORES_ENCODERS
    return VP9_ENCODERS if container == "webm" else H264_ENCODERS


def _video_encoder(
    candidates: tuple[tuple[str, dict[str, Any]], ...], container: str, style: Style
) -> tuple[str, dict[str, Any]]:
    available = encoders()
    for name, options in candidates:
        if name in available:
            return name, options
    raise EnvironmentFault(
        f"This ffmpeg has no encoder for a .{container} {style} ({', '.join(name for name, _ in candidates)}). "
        "Run `pip install imageio-ffmpeg` and unset AVSSEG_FFMPEG."
    )


def _audio(
    info: VideoInfo, source: Any, container: str, style: Style, seek_s: float
) -> tuple[list[Any], dict[str, Any], list[str]]:
    """The audio tracks to map, how each is coded (copied wherever the container takes it), what is not as it was."""
    warnings: list[str] = []
    tracks: list[Any] = []
    options: dict[str, Any] = {}
    for index in audio_tracks(info):
        codec = info.audio_codecs[index]
        copied = codec in COPIED_AUDIO[container]
        if not copied and not _gives_sound(info, index, seek_s):
            warnings.append(f"an audio track of which nothing can be decoded is left out of the {style}")
            continue
        track = len(tracks)
        tracks.append(source[f"a:{index}"])
        if copied:
            options[f"c:a:{track}"] = "copy"
            if codec == "aac" and info.container in ADTS_CONTAINERS:
                # The muxer inserts this filter itself, but then one damaged packet ends the whole file.
                options[f"bsf:a:{track}"] = "aac_adtstoasc"
        else:
            options[f"c:a:{track}"] = "libopus" if container == "webm" else "aac"
            # libopus refuses layouts such as 5.1(side), which most 5.1 tracks have, and aac more than 8 channels.
            layouts = "7.1|5.1|stereo|mono" if container == "webm" else "7.1|5.1|5.0|4.0|3.0|stereo|mono"
            options[f"filter:a:{track}"] = f"aformat=channel_layouts={layouts}"
        if options[f"c:a:{track}"] != "copy":
            written = "Opus" if container == "webm" else "AAC"
            warnings.append(f"a .{container} file cannot hold its {codec} audio; it is re-encoded as {written}")
    if "none" in info.audio_codecs:
        warnings.append(f"an audio track of unknown codec is left out of the {style}")
    return tracks, options, list(dict.fromkeys(warnings))


def _gives_sound(info: VideoInfo, index: int, seek_s: float) -> bool:
    """Whether anything of an audio track can be decoded: an encoder that is given nothing fails the whole file."""
    track = open_input(info, **({"ss": f"{seek_s:.6f}"} if seek_s else {}))[f"a:{index}"]
    try:
        decoded, _, _ = run_ffmpeg(command(ffmpeg.output(track, "pipe:1", format="framecrc", **{"frames:a": 1})))
    except TimeoutError:
        return False
    return re.search(r"^0,", decoded, flags=re.MULTILINE) is not None
