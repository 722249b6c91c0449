"""Image files as 8-bit RGB: every form read alike, everything unfit refused in one line."""

import io
import struct
import threading

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from dpar.data.decoding import FORMATS, PIXELS, RATIO, SUFFIXES, decode, decode_whole
from tests.data.samples import image_bytes, png, sample_image

LOSSLESS = {
    "PNG": {},
    "GIF": {},
    "BMP": {},
    "TIFF": {},
    "PPM": {},
    "QOI": {},
    "JPEG2000": {},
    "WEBP": {"lossless": True},
}


def encode_image(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def deep_tiff(channels):
    """A TIFF of 2 x 2 pixels of 16 bits, without compression."""
    pixels = struct.pack(f"<{4 * channels}H", *range(0, 40_000, 40_000 // (4 * channels))[: 4 * channels])
    depths, where = 3 if channels == 3 else 1, 8 + len(pixels)
    bits = (258, 3, depths, where) if channels == 3 else (258, 3, 1, 16)
    kind = 2 if channels == 3 else 1
    tags = [(256, 3, 1, 2), (257, 3, 1, 2), bits, (259, 3, 1, 1), (262, 3, 1, kind), (273, 4, 1, 8)]
    tags += [(277, 3, 1, channels), (278, 3, 1, 2), (279, 4, 1, len(pixels))]
    folder = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return struct.pack("<2sHI", b"II", 42, where + 6) + pixels + struct.pack("<3H", 16, 16, 16) + folder


def deep_jpeg2000():
    """A JPEG 2000 file whose size marker promises 16 bits of each of three channels."""
    data = bytearray(encode_image(sample_image(1, 32, 32), "JPEG2000"))
    start = data.index(b"\xff\x4f\xff\x51") + 42
    for channel in range(3):
        data[start + 3 * channel] = 15
    return bytes(data)


def same(image, expected):
    return image.mode == "RGB" and np.array_equal(np.array(image), np.array(expected.convert("RGB")))


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "LA", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    image = sample_image(1).convert("L").convert(mode) if mode in ("LA", "1") else sample_image(1).convert(mode)
    data = image_bytes(image, "TIFF" if mode == "CMYK" else "PNG")
    assert same(decode(data), image)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_its_pixels(form):
    smooth = Image.fromarray(np.add.outer(np.arange(32), 3 * np.arange(32)).astype(np.uint8)).convert("RGB")
    image = smooth.convert("L") if form == "GIF" else smooth  # whose palettes hold 256 colours
    found = decode(encode_image(image, form, **LOSSLESS.get(form, {"quality": 95})))
    if form in LOSSLESS:
        assert same(found, image)
    else:
        assert np.abs(np.array(found, int) - np.array(smooth, int)).max() <= 6


def test_grey_is_repeated_and_alpha_is_dropped():
    grey = np.array(decode(image_bytes(sample_image(1).convert("L"))))
    assert (grey == grey[..., :1]).all()
    clear = sample_image(1).convert("RGBA")
    clear.putalpha(0)
    assert same(decode(image_bytes(clear)), sample_image(1))


def test_a_cmyk_photo_is_not_inverted():
    colours = Image.new("RGB", (16, 16), (200, 40, 90))
    found = np.array(decode(encode_image(colours.convert("CMYK"), "JPEG", quality=95)), int)  # with Adobe's mark
    assert np.abs(found - (200, 40, 90)).max() <= 4


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "AVIF", "TIFF", "MPO"])
def test_of_several_frames_the_first_is_taken(form):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    found = np.array(decode(encode_image(frames[0], form, save_all=True, append_images=frames[1:])), int)
    assert np.abs(found - (250, 0, 0)).max() <= 6


def test_what_the_file_was_is_told():
    assert [decode_whole(image_bytes(sample_image(1).convert(m))).mode for m in ("L", "RGB", "P")] == ["L", "RGB", "P"]
    clear = [sample_image(1).convert("RGBA"), sample_image(1).convert("L").convert("LA"), sample_image(1)]
    assert [decode_whole(image_bytes(image)).transparent for image in clear] == [True, True, False]
    palette = encode_image(sample_image(1).convert("P"), "PNG", transparency=3)
    assert decode_whole(palette).transparent


def test_exif_orientation_is_ignored_and_a_tiff_turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    for form in ("JPEG", "PNG", "WEBP"):
        assert decode(encode_image(sample_image(1, 20, 10), form, exif=exif)).size == (20, 10)
    assert decode(encode_image(sample_image(1, 20, 10), "TIFF", tiffinfo={0x0112: 6})).size == (10, 20)


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_cut_off_anywhere_is_refused(form, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as other packages leave it
    data = image_bytes(sample_image(1, 60, 60).convert("L" if form == "GIF" else "RGB"), form)
    for length in (0, 10, *range(len(data) // 8, len(data) - 8, len(data) // 8), len(data) - 9):
        with pytest.raises(ValueError, match=r".+"):
            decode(data[:length])


def test_jpeg_2000_without_its_last_layers_is_refused():
    data = encode_image(sample_image(1, 48, 48), "JPEG2000", irreversible=True, quality_layers=[40, 20, 10])
    for length in range(100, len(data) - 1):
        with pytest.raises(ValueError, match=r".+"):
            decode(data[:length])


def test_a_png_whose_checksums_are_wrong_is_refused():
    data = image_bytes(sample_image(1, 30, 30))
    for place in range(40, len(data) - 12, 7):
        with pytest.raises(ValueError, match=r".+"):
            decode(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


@pytest.mark.parametrize(
    "data",
    [
        image_bytes(Image.fromarray(np.full((4, 4), 40_000, np.uint16))),
        *(png(4, 4, 16, colour, bytes(4 * (1 + 8 * n))) for colour, n in ((0, 1), (2, 3), (4, 2), (6, 4))),
        image_bytes(Image.fromarray(np.full((4, 4), 40_000, np.uint16)), "TIFF"),
        image_bytes(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"),
        image_bytes(Image.fromarray(np.ones((4, 4), np.int32)), "TIFF"),
        deep_tiff(3),
        image_bytes(Image.fromarray(np.ones((4, 4), np.float32)), "PPM"),
        b"P5 # grey\n4 4\n65535\n" + bytes(32),
        b"P6\n4 4\n1023\n" + bytes(96),
        b"P3\n#\n1 1 #\n300\n1 2 3\n",
        image_bytes(Image.fromarray(np.full((4, 4), 40_000, np.uint16)), "JPEG2000"),
        deep_jpeg2000(),
    ],
)
def test_more_than_eight_bits_are_refused(data):
    with pytest.raises(ValueError, match="more than 8 bits"):
        decode(data)


def test_signed_numbers_are_refused():
    grey = Image.fromarray(np.full((4, 4), 200, np.uint8))
    assert same(decode(encode_image(grey, "TIFF", tiffinfo={339: 1})), grey)
    with pytest.raises(ValueError, match="mode L of TIFF with signed numbers"):
        decode(encode_image(grey, "TIFF", tiffinfo={339: 2}))  # which are -56


def test_fewer_bits_are_read_in_full_range():
    grey = decode(b"P5\n16 1\n15\n" + bytes(range(16)))
    assert np.array(grey)[0, :, 0].tolist() == [17 * value for value in range(16)]


def test_bombs_have_a_clear_limit():
    with pytest.raises(ValueError, match=rf"900000000 pixels.* limit of {PIXELS}"):
        decode(png(30_000, 30_000, 8, 2, b"\0"))
    with pytest.raises(ValueError, match="20001 x 20 pixels, whose sides may be 1000 to 1"):
        decode(image_bytes(Image.new("L", (20 * RATIO + 1, 20))))
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 2**21, zip=True)
    with pytest.raises(ValueError, match="too large"):
        decode(encode_image(sample_image(1), "PNG", pnginfo=text))


def test_a_large_image_is_taken():
    assert decode(image_bytes(Image.new("1", (10_000, 10_000)))).size == (10_000, 10_000)  # half as many would warn


def test_formats_that_run_programs_are_not_tried(monkeypatch):
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(ValueError, match="cannot identify"):
        decode(eps)


@pytest.mark.parametrize("error", [RuntimeError, TypeError, NotImplementedError, MemoryError, KeyError, struct.error])
def test_whatever_a_decoder_raises_is_an_unreadable_image(error, monkeypatch):
    def fail(*_, **__):
        raise error("two\nlines")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(ValueError, match=rf"^damaged: {error.__name__}, .*two") as caught:
        decode(image_bytes(sample_image(1)))
    assert "\n" not in str(caught.value)


def test_ctrl_c_is_no_damage(monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(ImageFile.ImageFile, "load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decode(image_bytes(sample_image(1)))


def test_random_damage_is_an_image_or_one_line():
    rng = np.random.default_rng(0)
    said = []
    for form in FORMATS:
        whole = image_bytes(sample_image(1, 24, 24).convert("L" if form == "GIF" else "RGB"), form)
        for _ in range(40):
            data = bytearray(whole)
            for place in rng.integers(0, min(len(data), 400), 3):
                data[place] = rng.integers(256)
            try:
                assert decode(bytes(data)).mode == "RGB"
            except ValueError as error:
                said.append(str(error))
    assert len(said) > 50
    assert all(said)
    assert "\n" not in "".join(said)


def test_what_is_no_image_is_refused_without_addresses():
    with pytest.raises(ValueError, match=r"^cannot identify image file$"):
        decode(b"hello")


def test_the_suffixes_are_those_that_pillow_gives_the_formats():
    own = {suffix for suffix, form in Image.registered_extensions().items() if form in (*FORMATS, "MPO")}
    assert set(SUFFIXES) <= own
    assert {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".jp2", ".tif"} <= set(SUFFIXES)


def test_small_files_that_people_report(shared):
    cases = [
        *shared.glob("cases/decode/*.bin"),
        *(shared / "cases/grey16" / f for f in ("ihdr2.png", "bomb.png", "grey16.png")),
    ]
    assert len(cases) >= 6
    for path in cases:
        with pytest.raises(ValueError, match=r".+"):
            decode(path.read_bytes())
    assert decode((shared / "cases/grey16/grey8.png").read_bytes()).size == (64, 64)


def test_threads_decode_at_once():
    data, found = image_bytes(sample_image(1, 200, 200)), []
    threads = [threading.Thread(target=lambda: found.append(decode(data))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(same(image, sample_image(1, 200, 200)) for image in found)
