"""Images of other colours than sRGB, animated images as clips, and names that are spelled in another way."""

from __future__ import annotations

import io
import json
import struct
import unicodedata
import zlib
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from musubi_backend.architectures.wan.card import CARD
from musubi_backend.dataset import tone
from musubi_backend.dataset.clips import frame_rate, frames_of
from musubi_backend.dataset.decoding import decode
from musubi_backend.dataset.discovery import discover
from musubi_backend.dataset.images import image_notes, open_image, read_image
from musubi_backend.dataset.media import videos_in
from musubi_backend.dataset.problems import UnusableMedium
from musubi_backend.dataset.timing import timing_of
from musubi_backend.tools.inspect_dataset import inspect
from PIL import Image, ImageCms

COLOURS = np.array([[(180, 90, 60), (90, 150, 90), (60, 70, 160), (128, 128, 128)]], np.uint8)
P3_PRIMARIES = {b"rXYZ": (0.51512, 0.24120, -0.00105), b"gXYZ": (0.29198, 0.69225, 0.04189), b"bXYZ": (0.15710, 0.06657, 0.78407)}


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def display_p3() -> bytes:
    """sRGB's curve with the primaries of Display P3 (adapted to D50, as ICC.1 asks for)."""
    profile = bytearray(srgb_profile())
    for tag, numbers in P3_PRIMARIES.items():
        place = profile.index(tag)
        (start,) = struct.unpack(">I", profile[place + 4 : place + 8])
        profile[start + 8 : start + 20] = struct.pack(">3i", *(round(number * 65536) for number in numbers))
    return bytes(profile)


def p3_in_srgb(colours: np.ndarray) -> np.ndarray:
    """By IEC 61966-2-1 and the primaries of SMPTE RP 431-2 with white D65."""
    signal = colours / 255
    light = np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)
    light = np.clip(light @ np.array([(1.22494, -0.22494, 0), (-0.04206, 1.04206, 0), (-0.01964, -0.07864, 1.09827)]).T, 0, 1)
    return 255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def notes_of(path: Path) -> tuple[str, ...]:
    with open_image(path) as image:
        return image_notes(path, image)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tif", "avif", "palette.png", "alpha.png", "turned.jpg"])
def test_display_p3_is_brought_to_srgb_in_every_kind_of_image(tmp_path: Path, ending: str) -> None:
    image = Image.fromarray(COLOURS.repeat(32, 0).repeat(32, 1))
    path = tmp_path / f"a.{ending}"
    options: dict[str, object] = {"quality": 100} if ending in ("jpg", "avif") else {"lossless": True} if ending == "webp" else {}
    if ending == "alpha.png":
        image.putalpha(255)
    if ending == "turned.jpg":
        options = {"quality": 100, "exif": Image.Exif()}
        options["exif"][0x0112] = 3  # type: ignore[index]  # by half a turn
    (image.quantize(8) if ending == "palette.png" else image).save(path, icc_profile=display_p3(), **options)
    found = read_image(path)[16, 16::32].astype(int)
    found = found[::-1] if ending == "turned.jpg" else found
    assert np.abs(found - p3_in_srgb(COLOURS)[0]).max() <= 5 and np.abs(found - COLOURS[0].astype(int)).max() >= 15
    assert notes_of(path)[0].startswith("colour profile") and "brought to sRGB" in notes_of(path)[0]


def test_srgb_profiles_leave_pixels_and_damaged_ones_are_reported(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(3 * 256, dtype=np.uint16).astype(np.uint8).reshape(1, 256, 3))
    damaged = display_p3()[:300]
    for name, profile, reported in (
        ("plain", None, ""),
        ("srgb", srgb_profile(), ""),
        ("cut", damaged, "damaged"),
        ("noise", b"?" * 400, "damaged"),
    ):
        image.save(tmp_path / f"{name}.png", icc_profile=profile)
        assert np.array_equal(read_image(tmp_path / f"{name}.png"), np.asarray(image)), name
        assert reported in " ".join(notes_of(tmp_path / f"{name}.png")) and bool(reported) == bool(notes_of(tmp_path / f"{name}.png"))
    image.convert("CMYK").save(tmp_path / "ink.tif", icc_profile=display_p3())
    assert "of other colours" in notes_of(tmp_path / "ink.tif")[0] and read_image(tmp_path / "ink.tif").shape == (1, 256, 3)
    image.convert("CMYK").save(tmp_path / "bare.tif")
    assert "CMYK without a colour profile" in notes_of(tmp_path / "bare.tif")[0]


def test_grey_of_sixteen_bits_keeps_its_numbers_whatever_its_profile(tmp_path: Path) -> None:
    depth = Image.fromarray(np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(8, 0))
    depth.save(tmp_path / "depth.png", icc_profile=display_p3())
    assert np.array_equal(read_image(tmp_path / "depth.png")[0, :, 0], np.arange(256)) and not notes_of(tmp_path / "depth.png")


@pytest.mark.parametrize(
    ("numbers", "reported"), [((9, 16), "HDR (PQ)"), ((9, 18), "HDR (HLG)"), ((12, 13), "wide colours (P3)"), ((1, 13), "")]
)
def test_colours_coded_by_numbers_are_brought_to_the_standard(tmp_path: Path, numbers: tuple[int, int], reported: str) -> None:
    """PNG's chunk cICP, which counts more than a profile; 0.58 of PQ and 0.75 of HLG are white paper (BT.2408, table 1)."""
    grey = {16: 148, 18: 191}.get(numbers[1], 128)
    image = np.full((8, 8, 3), grey, np.uint8)
    image[0] = (200, 60, 60)
    plain = io.BytesIO()
    Image.fromarray(image).save(plain, "PNG", icc_profile=srgb_profile())
    chunk = b"cICP" + bytes((*numbers, 0, 1))
    head, rest = plain.getvalue()[:33], plain.getvalue()[33:]  # behind IHDR
    path = tmp_path / "a.png"
    path.write_bytes(head + struct.pack(">I", 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + rest)
    found = read_image(path)
    assert reported in " ".join(notes_of(path)) and bool(reported) == bool(notes_of(path))
    if numbers[1] in (tone.PQ, tone.HLG):
        assert 230 < found[4, 4, 0] < 250
    elif numbers[0] == 12:
        assert np.abs(found[0, 0] - p3_in_srgb(image)[0, 0]).max() < 13 and found[4, 4].tolist() == [128, 128, 128]  # of another curve
    else:
        assert np.array_equal(found, image)


def test_an_avif_of_ten_bits_in_pq_is_toned_down_and_reported(tmp_path: Path) -> None:
    if "libsvtav1" not in av.codecs_available:
        pytest.skip("this FFmpeg writes no AV1")
    path = tmp_path / "a.avif"
    with av.open(str(path), "w", format="avif") as container:
        stream = container.add_stream("libsvtav1", rate=1, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p10le"
        stream.codec_context.color_primaries, stream.codec_context.color_trc, stream.codec_context.colorspace = 9, 16, 9
        frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 148, np.uint8), format="rgb24").reformat(format="yuv420p10le")
        container.mux([*stream.encode(frame), *stream.encode()])
    assert "HDR (PQ)" in notes_of(path)[0] and 225 < read_image(path).mean() < 252


def test_clips_of_wide_colours_are_brought_to_bt709(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=16)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "gbrp10le"
        stream.codec_context.color_primaries = 12
        for _ in range(2):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), (180, 90, 60), np.uint8), format="rgb24").reformat(format="gbrp10le")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frame = next(frames_of(path))
    assert "wide colours (P3)" in frame.notes()[0]
    assert np.abs(frame.pixels()[9, 9] - p3_in_srgb(COLOURS)[0, 0]).max() < 6


def moving(count: int = 20) -> list[Image.Image]:
    """A red that grows, behind a transparent stripe that widens."""
    images = np.zeros((count, 48, 64, 4), np.uint8)
    for number in range(count):
        images[number, ..., 0], images[number, :, number + 1 :, 3] = 10 * number, 255
    return [Image.fromarray(image) for image in images]


@pytest.mark.parametrize(("name", "options"), [("a.webp", {"lossless": True}), ("a.avif", {"quality": 100}), ("a.png", {})])
def test_animated_images_are_clips_with_their_frames_and_times(
    tmp_path: Path, make: SimpleNamespace, name: str, options: dict[str, object]
) -> None:
    first, *others = moving()
    folder = tmp_path / "in"
    folder.mkdir()
    durations = [round(62.5 * (number + 1)) - round(62.5 * number) for number in range(20)]
    first.save(folder / name, save_all=True, append_images=others, duration=durations, **options)
    first.save(folder / f"still{name[1:]}")
    make.caption(folder / name)
    assert videos_in(folder) == [folder / name]
    timing = timing_of(folder / name)
    assert (timing.frames, timing.variable) == (20, False) and timing.seconds == pytest.approx(19 / 16, abs=0.002)
    assert float(frame_rate(folder / name) or 0) == pytest.approx(16, rel=0.01)
    report = inspect(make.config(tmp_path, f"video_directory = '{folder}'\nsource_fps = 16.0\ntarget_frames = [5]"), CARD)
    assert "image_directory" in report["datasets"][0]["notes"][0]["note"] and "only the first frame" not in report["text"]
    (item,) = discover(make.config(tmp_path, f"video_directory = '{folder}'\ntarget_frames = [17]").datasets[0], CARD).items
    (entry,) = decode(item, CARD)  # type: ignore[misc]
    for number in (0, 9, 16):
        assert np.abs(entry.pixels[number, 20, 40].astype(int) - (10 * number, 0, 0)).max() <= 3
        assert (entry.pixels[number, 20, : number // 2].astype(int) > 245).all(), "what is transparent is white"


def test_a_variable_or_damaged_animation_is_followed_as_far_as_it_goes(tmp_path: Path) -> None:
    first, *others = moving()
    first.save(tmp_path / "a.webp", save_all=True, append_images=others, duration=[40] * 10 + [200] * 10)
    assert timing_of(tmp_path / "a.webp").variable
    whole = (tmp_path / "a.webp").read_bytes()
    (tmp_path / "cut.webp").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnusableMedium, match="cannot be read"):
        timing_of(tmp_path / "cut.webp")
    noise = [Image.fromarray(image) for image in np.random.default_rng(1).integers(0, 256, (9, 48, 64, 3), np.uint8)]
    noise[0].save(tmp_path / "hurt.webp", save_all=True, append_images=noise[1:], lossless=True)
    part = bytearray((tmp_path / "hurt.webp").read_bytes())
    place = part.index(b"ANMF", len(part) // 2)
    part[place + 100 : place + 2000] = bytes(1900)
    (tmp_path / "hurt.webp").write_bytes(part)
    assert 4 <= timing_of(tmp_path / "hurt.webp").frames < 9


@pytest.mark.parametrize("codec", ["libvpx-vp9", "libvpx"])
def test_the_transparency_of_webm_clips_is_read(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "a.webm"
    rgba = np.zeros((48, 64, 4), np.uint8)
    rgba[..., 0], rgba[:, 32:, 3] = 255, 255
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=16, options={"auto-alt-ref": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuva420p"
        stream.metadata["alpha_mode"] = "1"
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format="yuva420p")))
        container.mux(stream.encode())
    frames = list(frames_of(path))
    assert [round(frame.time or 0, 2) for frame in frames] == [0.0, 0.06, 0.12, 0.19, 0.25]
    assert frames[-1].pixels()[20, 4].min() > 240 and frames[-1].pixels()[20, 60, 1] < 20
    assert "transparency" in frames[0].notes()[0]


def test_images_of_several_pages_and_kinds_that_are_not_read_are_reported(tmp_path: Path, make: SimpleNamespace) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    one, two = Image.new("RGB", (64, 48)), Image.new("RGB", (64, 48), "red")
    for name, kind in (("pages.tif", "TIFF"), ("phone.jpg", "MPO")):
        one.save(folder / name, kind, save_all=True, append_images=[two])
        make.caption(folder / name)
    for name in ("a.heic", "b.NEF", "c.exr", "d.svg", "e.jxl"):
        (folder / name).write_bytes(b"?")
    (folder / "really.jpg").write_bytes(b"\0\0\0\x24ftypheic" + bytes(60))  # as phones' images are renamed
    make.caption(folder / "really.jpg")
    report = inspect(make.config(tmp_path, f"image_directory = '{folder}'"), CARD)
    notes = {Path(note["path"]).name: note["note"] for note in report["datasets"][0]["notes"]}
    assert "pillow-heif" in notes["a.heic"] and "develop" in notes["b.NEF"] and "PNG" in notes["c.exr"] and "PNG" in notes["d.svg"]
    assert "pillow-jxl-plugin" in notes["e.jxl"]
    assert "only the first is taken: pages.tif, phone.jpg" in report["text"]
    (problem,) = report["datasets"][0]["problems"]
    assert "pillow-heif" in str(problem) and "really.jpg" in str(problem)


@pytest.mark.parametrize(("medium", "text"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_captions_controls_and_lists_match_in_either_spelling_of_an_accent(
    tmp_path: Path, make: SimpleNamespace, medium: str, text: str
) -> None:
    name, other = unicodedata.normalize(medium, "café"), unicodedata.normalize(text, "café")
    assert name != other
    folder, control = tmp_path / "in", tmp_path / "control"
    make.image(folder / f"{name}.png")
    (folder / f"{other}.txt").write_text("a pan")
    make.image(control / f"{other}.png")
    make.clip(tmp_path / "clips" / f"{name}.mp4", 5)
    (tmp_path / "clips" / f"{other}.TXT").write_text("a clip")
    make.clip(control / f"{other}.mp4", 5)
    (tmp_path / "list.jsonl").write_text(json.dumps({"image_path": str(folder / f"{other}.png"), "caption": "x"}))
    sections = (
        f"image_directory = '{folder}'\ncontrol_directory = '{control}'",
        f"video_directory = '{tmp_path}/clips'\ncontrol_directory = '{control}'",
        f"image_jsonl_file = '{tmp_path}/list.jsonl'\ncache_directory = '{tmp_path}/c'",
    )
    found = [discover(dataset, CARD) for dataset in make.config(tmp_path, *sections).datasets]
    assert [(len(one.items), one.problems, one.notes) for one in found] == [(1, (), ())] * 3
    assert [one.items[0].caption for one in found] == ["a pan", "a clip", "x"]
    assert [len(one.items[0].controls) for one in found] == [1, 1, 0]
    assert found[2].items[0].path == folder / f"{name}.png"
