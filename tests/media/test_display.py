"""A frame as it is to be shown: square pixels, upright, cropped, in the range of other videos, in a lasting shape."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import ColorPrimaries, ColorTrc

from avdistill.inference.file_windows import file_items
from avdistill.inputs import VideoInput
from avdistill.media import read_clip
from avdistill.media.tone_mapping import tone_map
from avdistill.preparation.prepare import PrepareConfig
from support.media_files import write_timed

HEIGHT, WIDTH = 48, 64
TENTHS = [n / 10 for n in range(4)]


def marked(height=HEIGHT, width=WIDTH, count=4):
    """Grey, the upper left quarter white, the upper right black."""
    frames = np.full((count, height, width, 3), 128, np.uint8)
    frames[:, : height // 2, : width // 2], frames[:, : height // 2, width // 2 :] = 235, 20
    return frames


def with_aspect(aspect, matrix=None):
    def prepare_stream(stream):
        stream.codec_context.sample_aspect_ratio = aspect
        stream.codec_context.bit_rate = 4_000_000
        if matrix:
            stream.set_display_matrix(matrix)

    return prepare_stream


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mp4", "libx264"), ("mov", "mpeg4"), ("mkv", "libx264"), ("ts", "libx264"), ("avi", "mpeg4")]
)
@pytest.mark.parametrize("aspect", [Fraction(2), Fraction(12, 11), Fraction(4, 3), Fraction(1, 2)])
def test_pixels_are_square(tmp_path, suffix, codec, aspect):
    prepare_stream = with_aspect(aspect)
    path = write_timed(tmp_path / f"a.{suffix}", TENTHS, frames=marked(), codec=codec, prepare_stream=prepare_stream)
    width = round(WIDTH * aspect)
    clip = read_clip(path, fps=10)
    assert clip.frames.shape[1:3] == (HEIGHT, width)
    assert clip.notes == ()
    shorter = min(HEIGHT, width)
    assert read_clip(path, short_side=24).frames.shape[1:3] == (
        round(HEIGHT * 24 / shorter),
        round(width * 24 / shorter),
    )
    assert read_clip(path, size=(20, 30)).frames.shape[1:3] == (20, 30)
    white = read_clip(path, region=(2, 2, width // 2 - 6, 18)).frames  # in pixels as displayed
    assert white.shape[1:3] == (18, width // 2 - 6)
    assert white.mean() > 220


@pytest.mark.parametrize(
    ("aspect", "width"), [((256, 255), WIDTH), ((65, 64), 65), ((63, 64), 63), ((254, 255), WIDTH)]
)
def test_the_rest_of_a_rounded_width_does_not_resample_the_frames(tmp_path, aspect, width):
    """An encoder that scales 320 x 240 to 170 x 128 states pixels of 256:255, which are less than a column in all."""
    frames = np.repeat(
        np.random.default_rng(0).integers(16, 236, (4, HEIGHT, WIDTH // 2, 3), dtype=np.uint8), 2, axis=2
    )
    pair = [
        write_timed(tmp_path / name, TENTHS, frames=frames, codec="libx264", prepare_stream=with_aspect(stated))
        for name, stated in (("a.mp4", Fraction(*aspect)), ("b.mp4", Fraction(1)))
    ]
    found, square = (read_clip(path, fps=10).frames for path in pair)
    assert found.shape == (4, HEIGHT, width, 3)
    assert np.array_equal(found, square) is (width == WIDTH)


@pytest.mark.parametrize("region", [None, (4, 4, 16, 24)])
def test_a_turned_frame_of_long_pixels_is_turned_with_them(tmp_path, region):
    quarter = [0, 65536, 0, -65536, 0, 0, 0, 0, 2**30]  # clockwise
    prepare_stream = with_aspect(Fraction(2), quarter)
    path = write_timed(tmp_path / "a.mp4", TENTHS, frames=marked(), codec="libx264", prepare_stream=prepare_stream)
    frames = read_clip(path, region=region).frames
    if region:
        assert frames.shape[1:3] == (24, 16)
        assert abs(frames.mean() - 128) < 4  # the lower half, now at the left
    else:
        assert frames.shape[1:3] == (2 * WIDTH, HEIGHT)
        assert [frames[0, 20, 40].mean(), frames[0, 100, 40].mean()] == pytest.approx([235, 20], abs=8)
        assert abs(frames[0, :, 10].mean() - 128) < 4


def test_the_aspect_of_pixels_may_change(tmp_path):
    for name, aspect in (("a", 1), ("b", 2)):
        prepare_stream = with_aspect(Fraction(aspect))
        times, frames = [n / 10 for n in range(8)], marked(count=8)
        write_timed(tmp_path / f"{name}.ts", times, frames=frames, codec="libx264", prepare_stream=prepare_stream)
    path = tmp_path / "both.ts"
    path.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    clip = read_clip(path, fps=None)
    assert clip.frames.shape == (16, HEIGHT, WIDTH, 3)
    assert "frame size changes from 64x48 to 128x48" in clip.notes
    assert not clip.frames[8:, :11].any()  # within the first shape it is 64 x 24
    assert not clip.frames[8:, -11:].any()
    assert clip.frames[9, 18, 10].mean() > 220


@pytest.mark.parametrize(("suffix", "codec"), [("ts", "mpeg2video"), ("webm", "libvpx"), ("mpg", "mpeg2video")])
@pytest.mark.parametrize("options", [{}, {"short_side": 24}, {"size": (60, 60)}])
def test_a_size_that_changes_keeps_its_shape(tmp_path, suffix, codec, options):
    rate = {"tick": Fraction(1, 25), "codec": codec}
    times = [n / 25 for n in range(8)]
    write_timed(tmp_path / f"a.{suffix}", times, frames=marked(count=8), **rate)
    write_timed(tmp_path / f"b.{suffix}", times, frames=marked(WIDTH, HEIGHT, count=8), **rate)
    path = tmp_path / f"both.{suffix}"
    path.write_bytes((tmp_path / f"a.{suffix}").read_bytes() + (tmp_path / f"b.{suffix}").read_bytes())
    clip = read_clip(path, fps=None, **options)
    _, height, width, _ = clip.frames.shape
    assert (height, width) == options.get("size", (24, 32) if options else (HEIGHT, WIDTH))
    upright = round(width * 36 / 64)  # 48 x 64 within 64 x 48 is 36 wide
    later = clip.frames[-4:].mean(-1)
    left = (width - upright) // 2
    assert later[:, :, : left - 1].max(initial=0) < 8
    assert later[:, :, left + upright + 1 :].max(initial=0) < 8
    assert later[:, 2, left + 3].min() > 200
    assert later[:, -3, left + 3].mean() == pytest.approx(128, abs=8)
    assert "frame size changes from 64x48 to 48x64" in clip.notes


def test_a_size_that_grows_in_the_same_shape_fills_the_frame(tmp_path):
    for name, factor in (("a", 1), ("b", 2)):
        frames = marked(factor * HEIGHT, factor * WIDTH)
        write_timed(tmp_path / f"{name}.ts", TENTHS, frames=frames, codec="mpeg2video", tick=Fraction(1, 25))
    path = tmp_path / "both.ts"
    path.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    clip = read_clip(path, fps=None)
    assert clip.frames.shape[1:3] == (HEIGHT, WIDTH)
    assert np.abs(clip.frames[-1].astype(int) - clip.frames[0]).mean() < 4
    assert "frame size changes from 64x48 to 128x96" in clip.notes


def test_a_size_that_changes_between_two_pieces_of_a_long_file(tmp_path):
    times = [n / 2 for n in range(70)]
    for name, (height, width) in (("a", (HEIGHT, WIDTH)), ("b", (WIDTH, HEIGHT))):
        frames = marked(height, width, 70)
        write_timed(tmp_path / f"{name}.ts", times, frames=frames, codec="mpeg2video", tick=Fraction(1, 25))
    path = tmp_path / "both.ts"
    path.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    config = PrepareConfig(fps=1.0, short_side=24)
    frames = np.concatenate(list(file_items(path, VideoInput(frames=2, size=(24, 32)), config).segments()))
    whole = read_clip(path, fps=1.0, short_side=24).frames
    assert frames.shape == whole.shape
    assert np.abs(frames.astype(int) - whole).mean((1, 2, 3)).max() < 2  # the last piece is scaled twice


def with_clean_aperture(path, box):
    """An MP4 with a `clap` box in its video's description, and the boxes around it as much longer."""
    data = bytearray(path.read_bytes())
    place = data.rindex(b"avcC") - 4
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        at = data.rindex(name, 0, place) - 4
        struct.pack_into(">I", data, at, struct.unpack_from(">I", data, at)[0] + 40)
    data[place:place] = struct.pack(">I4s8i", 40, b"clap", *box)
    path.write_bytes(data)


def with_pixel_crop(path, element, pixels):
    """A Matroska file with an element of its video's description replaced by one of PixelCrop."""
    data = path.read_bytes()
    assert data.count(b"\x54\xb2\x81\x04") == 1  # the unit of the display's size
    path.write_bytes(data.replace(b"\x54\xb2\x81\x04", bytes([0x54, element, 0x81, pixels])))


@pytest.mark.parametrize(
    ("suffix", "change", "shape", "shown"),
    [
        ("mp4", (40, 1, 48, 1, -12, 1, 0, 1), (48, 40), (0, 0)),  # width, height, offset of the center
        ("mov", (32, 1, 24, 1, 16, 1, -12, 1), (24, 32), (0, 32)),
        ("mkv", (0xCC, 24), (48, 40), (0, 24)),
        ("mkv", (0xDD, 24), (48, 40), (0, 0)),
        ("mkv", (0xBB, 24), (24, 64), (24, 0)),
    ],
)
def test_what_the_container_crops_is_not_shown(tmp_path, suffix, change, shape, shown):
    path = write_timed(tmp_path / f"a.{suffix}", TENTHS, frames=marked(), codec="libx264")
    whole = read_clip(path).frames
    if suffix == "mkv":
        with_pixel_crop(path, *change)
    else:
        with_clean_aperture(path, change)
    level = av.logging.get_level()
    frames = read_clip(path).frames
    assert av.logging.get_level() == level
    top, left = shown
    np.testing.assert_array_equal(frames, whole[:, top : top + shape[0], left : left + shape[1]])
    assert read_clip(path, short_side=12).frames.shape[1:3] == (
        12 * shape[0] // min(shape),
        12 * shape[1] // min(shape),
    )


COLORS = np.array(
    [[[235, 235, 235], [200, 30, 30], [30, 30, 200]], [[30, 160, 30], [128, 128, 128], [20, 20, 20]]], np.uint8
)
# Chromaticities of red, green and blue (ITU-R BT.709, BT.2020; SMPTE EG 432), the white is D65.
CHROMATICITIES = {
    ColorPrimaries.BT709: ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)),
    ColorPrimaries.BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    ColorPrimaries.SMPTE432: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}


def to_xyz(primaries):
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in CHROMATICITIES[primaries]]).T
    white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
    return columns * np.linalg.solve(columns, white)


def as_hdr(colors, transfer, primaries):
    """8-bit colors of BT.1886 at a white of 203 cd/m², as a 16-bit signal of HDR."""
    light = 203 * (colors / 255) ** 2.4
    light = light @ (np.linalg.inv(to_xyz(primaries)) @ to_xyz(ColorPrimaries.BT709)).T
    if transfer == ColorTrc.SMPTE2084:
        power = (np.maximum(light, 0) / 10000) ** 0.1593017578125
        signal = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    else:
        light = np.maximum(light, 1e-9) / 1000
        light *= (light @ [0.2627, 0.6780, 0.0593])[..., None] ** (1 / 1.2 - 1)
        signal = np.where(
            light <= 1 / 12,
            np.sqrt(3 * light),
            0.17883277 * np.log(np.maximum(12 * light - 0.28466892, 1e-9)) + 0.55991073,
        )
    return np.round(65535 * np.clip(signal, 0, 1)).astype(np.uint16)


@pytest.mark.parametrize("transfer", [ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67])
@pytest.mark.parametrize("primaries", CHROMATICITIES)
def test_colors_of_high_dynamic_range_become_those_they_are_made_of(transfer, primaries):
    found = tone_map(as_hdr(COLORS, transfer, primaries), transfer, primaries).astype(int)
    assert np.abs(found - COLORS).max() <= 2


@pytest.mark.parametrize("transfer", [ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67])
def test_highlights_keep_their_order_and_hue(transfer):
    brighter = np.linspace(100, 255 * 1.9, 60)[None, :, None] * [1.0, 0.8, 0.5]
    found = tone_map(as_hdr(brighter, transfer, ColorPrimaries.BT2020), transfer, ColorPrimaries.BT2020).astype(int)
    assert (np.diff(found[0, :, 0]) >= 0).all()
    assert found[0, -1, 0] >= 250
    ratios = (found / found[..., :1])[0]
    np.testing.assert_allclose(ratios, np.broadcast_to([1, 0.8, 0.5], ratios.shape), atol=0.02)


@pytest.mark.parametrize(
    ("suffix", "codec", "pixels"),
    [("mkv", "ffv1", "gbrp10le"), ("mp4", "libx264", "yuv420p10le"), ("mkv", "libx264", "yuv422p10le")],
)
@pytest.mark.parametrize(("transfer", "name"), [(ColorTrc.SMPTE2084, "PQ"), (ColorTrc.ARIB_STD_B67, "HLG")])
def test_a_file_of_high_dynamic_range(tmp_path, suffix, codec, pixels, transfer, name):
    colors = np.repeat(np.repeat(COLORS, 32, 0), 32, 1)
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=5, options={"crf": "6"})
        context = stream.codec_context
        context.height, context.width, context.pix_fmt = 64, 96, pixels
        context.color_trc, context.color_primaries = transfer, ColorPrimaries.BT2020
        if pixels != "gbrp10le":
            context.colorspace, context.color_range = 9, 1
        signal = av.VideoFrame.from_ndarray(as_hdr(colors, transfer, ColorPrimaries.BT2020), format="rgb48le")
        frame = signal.reformat(format=pixels, dst_colorspace=None if pixels == "gbrp10le" else "BT2020")
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for options in ({}, {"short_side": 64}, {"region": (0, 0, 96, 64)}):
        clip = read_clip(path, **options)
        assert clip.notes == (f"high dynamic range ({name}), tone-mapped",)
        found = clip.frames[0, 16::32, 16::32].astype(int)
        assert np.abs(found - COLORS).max() <= 8


def test_interlaced_video_is_noted(tmp_path):
    def prepare_stream(stream):
        stream.codec_context.flags |= 1 << 29 | 1 << 18  # interlaced motion estimation and transform

    interlaced = {"tick": Fraction(1, 25), "codec": "mpeg2video", "prepare_stream": prepare_stream}
    clip = read_clip(write_timed(tmp_path / "a.ts", TENTHS, frames=marked(), **interlaced))
    assert clip.notes == ("interlaced video, not deinterlaced",)
