"""Files that are whole and unusual: in their times, their pictures and their sound."""

from __future__ import annotations

import makers
from clips import AAC, H264
from makers import NO_SOUND, bad, copy_of, encoded, good, high_dynamic_range, late, rotated

FFV1 = ("-c:v", "ffv1", "-c:a", "flac")
UNEVEN = ("-vf", "select='not(mod(n*n\\,3))'", "-fps_mode", "vfr")
GAP = ("-vf", "select='not(between(n\\,4\\,15))'", "-fps_mode", "vfr")
NEGATIVE = ("-output_ts_offset", "-2", "-avoid_negative_ts", "disabled")
OVERFLOW = ("-muxdelay", "0", "-output_ts_offset", "95442.7")  # 2^33 ticks of 1/90000 s are 95443.7 s
MPEG2 = ("-r", "25", "-c:v", "mpeg2video", "-flags", "+ilme+ildct", "-c:a", "mp2", "-ar", "44100")
HEVC = ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none:pools=1", *AAC)
VP9 = ("-c:v", "libvpx-vp9", "-cpu-used", "8", "-deadline", "realtime", "-c:a", "libopus", "-ar", "48000")

TIMES = (
    good("jump.ts", "three MPEG-TS in one file, of times far apart", makers.jumping_stream, 8),
    good("negative.mkv", "timestamps from -2 s on", encoded(*H264, "-c:a", "flac", *NEGATIVE)),
    good("overflow.ts", "MPEG-TS whose counter overflows on the way", encoded(*H264, *AAC, *OVERFLOW)),
    good("late_tone.mp4", "sound 3 s after the picture", late("tone", 3), 3, "the picture ends at 2.5 s"),
    good("late_picture.mp4", "picture 3 s after the sound", late("picture", 3), 6),
    good("late_picture_stream.ts", "the same in MPEG-TS", late("picture", 3), 6),
    good("very_late_tone.ts", "MPEG-TS, sound 9 s after the picture", late("tone", 9, 10.5), 11),
    good("uneven.mp4", "frames at uneven times", encoded(*H264, *AAC, *UNEVEN)),
    good("gap.mkv", "no frame for 1.5 s", encoded(*H264, "-c:a", "flac", *GAP)),
    good("one_frame.mp4", "one frame and no sound", encoded(*H264, "-frames:v", "1", tone=None), 1, NO_SOUND),
    good("one_sample.mkv", "one sample of sound", encoded(*H264, "-c:a", "pcm_s16le", "-af", "atrim=end_sample=1")),
    good("short.mp4", "0.25 s", encoded(*H264, *AAC, "-t", "0.25"), 1),
)

RED = "color=red:rate=8:duration=2.5:size=64x48,scale="

PICTURES = (
    good("interlaced.mpg", "interlaced MPEG-2", encoded(*MPEG2)),
    good("interlaced_h264.mp4", "interlaced H.264", encoded(*H264, *AAC, "-x264-params", "interlaced=1")),
    good("ten_bit.mkv", "10 bits", encoded(*FFV1, "-pix_fmt", "yuv420p10le")),
    good("hevc.mp4", "HEVC in 10 bits", encoded(*HEVC, "-pix_fmt", "yuv420p10le")),
    good("alpha.mov", "transparent", encoded("-c:v", "qtrle", "-pix_fmt", "argb", "-c:a", "pcm_s16le")),
    good("alpha_vp9.webm", "transparent VP9", encoded(*VP9, "-pix_fmt", "yuva420p")),
    good("pq.mkv", "HDR by PQ", high_dynamic_range("smpte2084"), 3, "HDR"),
    good("hlg.mkv", "HDR by HLG", high_dynamic_range("arib-std-b67"), 3, "HDR"),
    good("turned_90.mp4", "to be turned by 90 degrees", rotated(90)),
    good("turned_180.mp4", "to be turned by 180 degrees", rotated(180)),
    good("turned_270.mp4", "to be turned by 270 degrees", rotated(270)),
    good("one_pixel.mkv", "1 x 1 pixel", encoded(*FFV1, "-pix_fmt", "bgr0", picture=f"{RED}1:1")),
    good("narrow.mkv", "2 x 1000 pixels", encoded(*FFV1, "-pix_fmt", "bgr0", picture=f"{RED}2:1000")),
    good(
        "two_pictures.mp4", "two video streams of different length", makers.two_pictures, 3, "the picture ends at 2.5 s"
    ),
    good("cover_first.mp4", "a cover, then a video", makers.cover_before_video),
    good("subtitled.mkv", "subtitles", makers.subtitled),
    bad("sound_only.mp4", "no picture", encoded(*AAC, picture=None), "has sound but no picture"),
    bad("cover_art.mp4", "sound and its cover", makers.cover_art, "has sound but no picture"),
    good("moving.gif", "GIF", encoded(tone=None), 3, NO_SOUND),
    good("motion_jpeg.avi", "AVI", copy_of("plain.avi")),
    good("transport.ts", "MPEG-TS", copy_of("plain.ts")),
    good("vp8.webm", "WebM", copy_of("plain.webm")),
    good("flash.flv", "FLV", copy_of("plain.flv")),
    good("windows.wmv", "ASF", copy_of("plain.wmv")),
    good("theora.ogv", "Ogg", copy_of("plain.ogv")),
    good("program.mpg", "MPEG-PS", copy_of("plain.mpg")),
)

SILENCE = "anullsrc=channel_layout=mono:sample_rate=16000:duration=2.5"

SOUNDS = (
    good("surround.mp4", "5.1", encoded(*H264, *AAC, "-ac", "6", "-ar", "48000")),
    good("narrow_band.mkv", "8 kHz", encoded(*H264, "-c:a", "pcm_mulaw", "-ar", "8000")),
    good("wide_band.mkv", "192 kHz in 24 bits", encoded(*H264, "-c:a", "pcm_s24le", "-ar", "192000")),
    good("many_channels.mkv", "16 channels", encoded(*H264, "-c:a", "pcm_s16le", "-ac", "16")),
    good("stereo.mp4", "stereo", encoded(*H264, *AAC, "-ac", "2")),
    good("no_sound.mp4", "no audio track", encoded(*H264, tone=None), 3, NO_SOUND),
    good("silent.mp4", "an audio track of zeros", encoded(*H264, *AAC, tone=SILENCE)),
)
