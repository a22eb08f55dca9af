"""Images and clips as cameras, editors and other programs write them: right pixels, right counts, and a line where that matters."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from musubi_backend import content
from musubi_backend.architectures.wan.card import CARD
from musubi_backend.dataset import clip_lengths, tone
from musubi_backend.dataset.ahead import decoded
from musubi_backend.dataset.clips import frames_of
from musubi_backend.dataset.config import parse_config
from musubi_backend.dataset.decoding import decode
from musubi_backend.dataset.discovery import discover
from musubi_backend.dataset.images import read_image
from musubi_backend.dataset.items import MediaItem
from musubi_backend.dataset.media import natural_order
from musubi_backend.dataset.probe import foresee, image_size, probe
from musubi_backend.dataset.problems import Problem, UnusableMedium
from musubi_backend.dataset.timing import Rate, decoded_timing, timing_of
from musubi_backend.inference.video_file import Selection, read_images
from musubi_backend.tools.inspect_dataset import inspect
from PIL import Image

TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # Exif 2.32, 4.6.4: where row 0 and column 0 are shown
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda p: np.rot90(p),
}
ONE = 1 << 16
MATRICES = {1: (1, 0, 0, 1), 2: (-1, 0, 0, 1), 3: (-1, 0, 0, -1), 4: (1, 0, 0, -1), 5: (0, 1, 1, 0), 6: (0, 1, -1, 0), 7: (0, -1, -1, 0),
            8: (0, -1, 1, 0)}  # fmt: skip


@pytest.fixture(scope="module")
def cases() -> Path:
    import os

    folder = Path(os.environ.get("MUSUBITUNER_SHARED") or Path(__file__).resolve().parents[3] / "shared") / "cases"
    if not folder.is_dir():
        pytest.skip(f"no cases in {folder}")
    return folder


def corners(width: int = 64, height: int = 32) -> np.ndarray:
    """Four colours, one per quarter."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2] = (250, 20, 20)
    image[: height // 2, width // 2 :] = (20, 250, 20)
    image[height // 2 :, : width // 2] = (20, 20, 250)
    image[height // 2 :, width // 2 :] = (240, 240, 240)
    return image


def clip_item(path: Path, folder: Path, **settings: object) -> MediaItem:
    file = folder / "list.jsonl"
    file.write_text(json.dumps({"video_path": str(path), "caption": "x"}), encoding="utf-8")
    (folder / "cache").mkdir(exist_ok=True)
    table = {"video_jsonl_file": str(file), "cache_directory": str(folder / "cache"), "resolution": [64, 48], **settings}
    (dataset,) = parse_config({"datasets": [table]})
    (item,) = discover(dataset, CARD).items
    return item


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tiff", "avif"])
def test_images_are_upright_in_size_and_pixels(tmp_path: Path, orientation: int, ending: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{ending}"
    Image.fromarray(corners()).save(path, exif=exif, **({"quality": 95} if ending in ("jpg", "webp", "avif") else {}))
    expected = TURNS[orientation](corners())
    assert image_size(path) == (expected.shape[1], expected.shape[0])
    found = read_image(path).astype(int)
    assert found.shape == expected.shape and np.abs(found - expected).mean() < 12


@pytest.mark.parametrize("orientation", MATRICES)
def test_clips_are_turned_and_mirrored_by_their_display_matrix(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv444p"
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(corners(), format="rgb24")))
        container.mux(stream.encode())
    whole = path.read_bytes()
    track = whole.index(b"tkhd")
    upright = struct.pack(">9i", ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30)
    place = whole.index(upright, track)
    a, b, c, d = (number * ONE for number in MATRICES[orientation])
    path.write_bytes(whole[:place] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + whole[place + 36 :])
    expected = TURNS[orientation](corners()).astype(int)
    facts = probe(clip_item(path, tmp_path, target_frames=[5]), CARD)
    assert facts.size == (expected.shape[1], expected.shape[0])
    frame = next(frames_of(path)).pixels().astype(int)
    assert np.abs(frame - expected).mean() < 10
    (shown, *_), _ = read_images(path, Selection(count=1))
    assert np.array_equal(shown, frame)


def test_the_phone_image_and_clip_lie_as_comfyui_turns_them(cases: Path, tmp_path: Path) -> None:
    assert image_size(cases / "images/exif6.jpg") == (96, 160)
    assert probe(clip_item(cases / "media/rot90.mp4", tmp_path), CARD).size == (96, 128)
    with av.open(str(cases / "media/rot90.mp4")) as container:
        frame = next(container.decode(video=0))
        expected = np.rot90(frame.to_ndarray(format="rgb24"), int(frame.rotation) // 90)  # comfy_api's VideoFromFile
    assert np.array_equal(next(frames_of(cases / "media/rot90.mp4")).pixels(), expected)


RAMP = np.linspace(0, 1, 256)


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("grey16.png", Image.fromarray((RAMP * 65535).astype(np.uint16)[None].repeat(8, 0))),
        ("grey16.tif", Image.fromarray((RAMP * 65535).astype(np.uint16)[None].repeat(8, 0))),
        ("int32.tif", Image.fromarray((RAMP * 65535).astype(np.int32)[None].repeat(8, 0))),
        ("float.tif", Image.fromarray(RAMP.astype(np.float32)[None].repeat(8, 0))),
        ("float255.tif", Image.fromarray((RAMP * 255).astype(np.float32)[None].repeat(8, 0))),
        ("grey.png", Image.fromarray((RAMP * 255).astype(np.uint8)[None].repeat(8, 0))),
        ("cmyk.tif", Image.fromarray((RAMP * 255).astype(np.uint8)[None].repeat(8, 0)).convert("RGB").convert("CMYK")),
        ("la.png", Image.fromarray((RAMP * 255).astype(np.uint8)[None].repeat(8, 0)).convert("LA")),
    ],
)
def test_every_number_format_of_grey_comes_out_as_the_same_ramp(tmp_path: Path, name: str, image: Image.Image) -> None:
    image.save(tmp_path / name)
    found = read_image(tmp_path / name)
    assert found.dtype == np.uint8 and found.shape == (8, 256, 3)
    assert np.abs(found[0, :, 1].astype(int) - np.arange(256)).max() <= 1


def test_one_bit_and_brightness_without_a_scale(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1").save(tmp_path / "bits.png")
    assert read_image(tmp_path / "bits.png")[0, :, 0].tolist() == [0, 255]
    Image.fromarray(np.array([[0, 1e6]], np.float32)).save(tmp_path / "light.tif")
    with pytest.raises(UnusableMedium, match="from 0 to 1"):
        read_image(tmp_path / "light.tif")


def test_hidden_colours_are_laid_on_white(tmp_path: Path, cases: Path) -> None:
    half = np.zeros((4, 4, 4), np.uint8)
    half[..., 0], half[:2, :, 3], half[2:, :, 3] = 200, 0, 128
    Image.fromarray(half).save(tmp_path / "a.png")
    Image.fromarray(half).quantize(8).save(tmp_path / "p.png")
    for name in ("a.png", "p.png"):
        found = read_image(tmp_path / name)
        assert found[0, 0].tolist() == [255, 255, 255] and np.abs(found[3, 0] - np.array([227, 127, 127])).max() <= 2, name
    assert read_image(tmp_path / "a.png", keep_alpha=True)[0, 0].tolist() == [200, 0, 0, 0]
    hidden = read_image(cases / "images/rgba_hidden_magenta.png").reshape(-1, 3)
    assert not (np.abs(hidden.astype(int) - (255, 0, 255)).max(axis=1) < 30).any()


def test_the_ramp_of_the_depth_image(cases: Path) -> None:
    found = read_image(cases / "images/gray16.png")
    assert found.min() <= 1 and found.max() >= 254 and 110 < found.mean() < 145


def test_frames_of_a_folder_come_in_the_order_of_their_numbers(cases: Path, tmp_path: Path) -> None:
    names = [frame.path.name for frame in frames_of(cases / "frames")]
    assert names == [f"frame_{number}.png" for number in (1, 2, 3, 9, 10, 11, 12)]
    assert [path.name for path in sorted(map(Path, ["b2", "10", "a", "2", "b10", "02"]), key=natural_order)] == [
        "02",
        "2",
        "10",
        "a",
        "b2",
        "b10",
    ]
    for number in (2, 10, 1):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / f"{number}.jpg", quality=100)
    images, _ = read_images(tmp_path)
    assert np.allclose([image[0, 0, 0] for image in images], [1, 2, 10], atol=1)


@pytest.mark.parametrize(("name", "packets", "frames"), [("altref.webm", 53, 50), ("cut_hevc.mkv", 55, 53)])
def test_frames_are_counted_as_decoded(cases: Path, tmp_path: Path, name: str, packets: int, frames: int) -> None:
    item = clip_item(cases / "media" / name, tmp_path, target_frames=[9], frame_extraction="chunk")
    assert probe(item, CARD).count == frames != packets
    entries = decode(item, CARD)
    foreseen = foresee(item, CARD)
    assert isinstance(entries, list) and not isinstance(foreseen, Problem)
    assert [entry.entry for entry in entries] == list(foreseen.entries) and len(entries) == frames // 9
    assert (tmp_path / "cache" / content.LENGTHS).is_file()


def test_ordinary_clips_are_counted_without_decoding(make: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from musubi_backend.dataset import timing

    monkeypatch.setattr(timing, "decoded_timing", lambda *_: pytest.fail("decoded"))
    for ending in ("mp4", "mkv", "mov"):
        clip = make.clip(tmp_path / f"a.{ending}", 20)
        assert timing_of(clip).frames == 20
        assert timing_of(clip, Rate(limit=9)).frames >= 9


def test_a_clip_with_fewer_frames_than_promised_is_planned_by_those_it_has(
    make: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from musubi_backend.dataset import timing

    clip = make.clip(tmp_path / "a.mp4", 20)
    item = clip_item(clip, tmp_path, target_frames=[9], frame_extraction="chunk")
    real = timing._packets
    monkeypatch.setattr(
        timing, "_packets", lambda *given: (lambda times, trusted: ([*times, *(9.0 + n for n in range(20))], trusted))(*real(*given))
    )
    assert len(foresee(item, CARD).entries) == 4  # type: ignore[union-attr]
    entries = decode(item, CARD)
    assert isinstance(entries, list) and [entry.entry.name.start for entry in entries] == [0, 9]
    assert len(foresee(item, CARD).entries) == 2  # type: ignore[union-attr]  # it is known now
    make.clip(clip, 30)
    assert clip_lengths.recall(tmp_path / "cache", clip) is None  # of another file
    (tmp_path / "cache" / content.LENGTHS).write_text("[nonsense")
    assert clip_lengths.recall(tmp_path / "cache", clip) is None


@pytest.mark.parametrize("ending", ["ts", "m2ts", "mpg", "flv", "wmv", "mxf", "3gp", "avi", "ogv", "gif", "apng"])
def test_containers_of_all_kinds_are_read_and_counted(tmp_path: Path, ending: str) -> None:
    codecs = {"mpg": "mpeg2video", "mxf": "mpeg2video", "wmv": "wmv2", "avi": "mpeg4", "flv": "flv1", "ogv": "libtheora", "gif": "gif",
              "apng": "apng"}  # fmt: skip
    formats = {"gif": "rgb8", "apng": "rgb24"}
    path = tmp_path / "in" / f"a.{ending}"
    path.parent.mkdir()
    if codecs.get(ending, "libx264") not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codecs[ending]}")
    with av.open(str(path), "w", format={"m2ts": "mpegts", "ogv": "ogg", "wmv": "asf"}.get(ending)) as container:
        stream = container.add_stream(codecs.get(ending, "libx264"), rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = 64, 32, formats.get(ending, "yuv420p")
        for number in range(9):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(corners(), number * 4, 1), format="rgb24")))
        container.mux(stream.encode())
    path.with_suffix(".txt").write_text("x")
    (dataset,) = parse_config(
        {"datasets": [{"video_directory": str(path.parent), "caption_extension": ".txt", "resolution": [64, 48], "target_frames": [9]}]}
    )
    (item,) = discover(dataset, CARD).items
    assert probe(item, CARD).count == decoded_timing(path).frames == 9
    (entry,) = decode(item, CARD)  # type: ignore[misc]
    assert entry.pixels.shape[0] == 9


def test_what_is_not_read_has_a_line_and_stops_nothing(make: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "in"
    make.caption(make.clip(folder / "a.mp4", 5))
    make.caption(make.image(folder / "image.png"))
    make.clip(folder / "more" / "b.mp4", 5)
    for number in range(8):
        (folder / f"alone{number}.txt").write_text("x")
    (folder / "model.blend").touch()
    (folder / "cache").mkdir()
    config = make.config(tmp_path, f"video_directory = '{folder}'\ncache_directory = '{folder}/cache'\ntarget_frames = [5]")
    report = inspect(config, CARD)
    reported = {Path(note["path"]).name: note["note"] for note in report["datasets"][0]["notes"]}
    assert set(reported) == {"image.png", "more", "model.blend", *(f"alone{number}.txt" for number in range(8))}
    assert "image_directory" in reported["image.png"] and "dataset of its own" in reported["more"]
    assert "alone0.txt" in report["text"] and "and 3 more" in report["text"] and "alone7.txt" not in report["text"]
    assert [line for line in caplog.messages if "without a medium" in line and "alone0.txt" in line]
    assert not report["datasets"][0]["problems"] and len(report["datasets"][0]["items"]) == 1


def test_images_with_rare_endings_are_read_and_animated_ones_reported(cases: Path, tmp_path: Path, make: SimpleNamespace) -> None:
    import shutil

    shutil.copytree(cases / "images", tmp_path / "in")
    for path in list((tmp_path / "in").iterdir()):
        make.caption(path)
    report = inspect(make.config(tmp_path, f"image_directory = '{tmp_path}/in'"), CARD)
    names = {Path(item["path"]).name for item in report["datasets"][0]["items"]}
    assert names == {path.name for path in (cases / "images").iterdir()}
    assert "only the first frame is taken: anim.webp" in report["text"] and "laid on white: rgba_hidden_magenta.png" in report["text"]


def test_hdr_white_is_nearly_white_and_the_curves_are_the_standards(cases: Path) -> None:
    frame = next(frames_of(cases / "media/white203.mp4"))
    assert 235 < frame.pixels().mean() < 250 and "HDR (PQ)" in frame.notes()[0]
    assert np.allclose(tone._pq(np.array([0.0, 0.5806, 0.7518, 1.0])), [0, 203, 1000, 10000], rtol=2e-3)  # BT.2408, table 1
    grey = np.full((1, 1, 3), 0.75, np.float32)
    assert np.allclose(tone._hlg(grey), 203, rtol=5e-3) and np.allclose(tone._hlg(np.ones((1, 1, 3), np.float32)), 1000, rtol=2e-3)
    ramp = np.linspace(0, 65535, 300).astype(np.uint16)[None, :, None].repeat(3, 2)
    for transfer in (tone.PQ, tone.HLG):
        shown = tone.to_standard(ramp, transfer, 9)[0, :, 0].astype(int)
        assert (np.diff(shown) >= 0).all() and shown[0] == 0 and shown[-1] == 255


def test_a_variable_rate_is_followed_by_time_where_a_rate_is_asked_for(cases: Path, tmp_path: Path) -> None:
    path = cases / "media/vfr.mp4"
    with av.open(str(path)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    plain = probe(clip_item(path, tmp_path, frame_extraction="full"), CARD)
    assert timing_of(path).variable and "source_fps" in plain.notes[0]
    item = clip_item(path, tmp_path, source_fps=30.0, target_frames=[1], frame_extraction="chunk")
    facts = probe(item, CARD)
    assert facts.count == int((times[-1] - times[0]) * 16 + 1e-6) + 1 and "by their times" in facts.notes[0]
    taken = [frame.time for frame in Rate(30.0, 16.0).taken(frames_of(path), facts.timing)]
    expected = [max(time for time in times if time <= number / 16 + 1e-6) for number in range(facts.count)]
    assert taken == expected
    images, rate = read_images(path, Selection(fps=16.0))
    assert len(images) == facts.count and rate == 16


def test_pixels_become_square_and_a_wrong_source_fps_is_reported(cases: Path, make: SimpleNamespace, tmp_path: Path) -> None:
    facts = probe(clip_item(cases / "media/sar.mp4", tmp_path), CARD)
    assert facts.size == (256, 96) and "not square" in facts.notes[0]
    assert next(frames_of(cases / "media/sar.mp4")).pixels().shape == (96, 256, 3)
    clip = make.clip(tmp_path / "a.mp4", 9, fps=16)
    assert probe(clip_item(clip, tmp_path, source_fps=30.0), CARD).notes == ("source_fps is 30, the file says about 16 frames per second",)
    assert probe(clip_item(clip, tmp_path, source_fps=16.0), CARD).notes == ()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be-bom", "utf-32"])
def test_byte_order_marks_are_no_part_of_a_caption(make: SimpleNamespace, tmp_path: Path, encoding: str) -> None:
    text, folder = "a 猫\nand more", tmp_path / "in"
    make.image(folder / "a.png")
    marked = b"\xfe\xff" + text.encode("utf-16-be") if encoding.endswith("bom") else text.encode(encoding)
    (folder / "a.txt").write_bytes(marked)
    (item,) = discover(make.config(tmp_path, f"image_directory = '{folder}'").datasets[0], CARD).items
    assert item.caption == text
    line = json.dumps({"image_path": str(folder / "a.png"), "caption": "b 猫"}, ensure_ascii=False)
    (tmp_path / "list.jsonl").write_bytes(line.encode(encoding.removesuffix("-be-bom")))
    config = make.config(tmp_path, f"image_jsonl_file = '{tmp_path}/list.jsonl'\ncache_directory = '{tmp_path}/c'")
    assert discover(config.datasets[0], CARD).items[0].caption == "b 猫"


def test_empty_captions_and_names_too_long_for_caches_are_reported(make: SimpleNamespace, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    make.caption(make.image(folder / "a.png"), " \n")
    long = "猫" * 77  # 231 bytes
    make.caption(make.image(folder / f"{long}.png"))
    found = discover(make.config(tmp_path, f"image_directory = '{folder}'").datasets[0], CARD)
    assert [item.stem for item in found.items] == ["a"] and found.notes[0].text == "the caption is empty"
    assert [problem.path.stem for problem in found.problems] == [long] and "shorter name" in found.problems[0].reason


def test_caches_beyond_the_path_limit_of_windows_are_reported_per_item(
    make: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from musubi_backend import place

    monkeypatch.setattr(place, "limits", lambda: place.WINDOWS)
    cache = tmp_path / ("c" * 60) / ("d" * 40)
    for name in ("a", "b" * (259 - len(str(cache)) - len("/_99999x99999_wan.safetensors"))):
        make.caption(make.image(tmp_path / "in" / f"{name}.png"))
    found = discover(make.config(tmp_path, f"image_directory = '{tmp_path}/in'\ncache_directory = '{cache}'").datasets[0], CARD)
    assert [item.stem for item in found.items] == ["a"]
    (problem,) = found.problems  # the name fits, but not the one while it is written
    assert problem.path.stem[0] == "b" and "15 characters too long" in problem.reason and "cache_directory" in problem.reason


def test_pixels_in_flight_are_bounded_by_their_bytes(make: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from musubi_backend.dataset import ahead

    for number in range(6):
        make.caption(make.image(tmp_path / "in" / f"{number}.png"))
    found = discover(make.config(tmp_path, f"image_directory = '{tmp_path}/in'").datasets[0], CARD)
    inside, most = set[str](), []
    real = ahead.decode_foreseen

    def watched(foreseen, card):  # type: ignore[no-untyped-def]
        inside.add(foreseen.item.stem)
        most.append(len(inside))
        return real(foreseen, card)

    monkeypatch.setattr(ahead, "decode_foreseen", watched)
    one = ahead.held_bytes(foresee(found.items[0], CARD))  # type: ignore[arg-type]
    seen = []
    for item, _ in decoded(found.items, CARD, workers=4, in_flight=2 * one):
        seen.append(item.stem)
        inside.discard(item.stem)
    assert seen == [str(number) for number in range(6)] and max(most) <= 3


@pytest.mark.parametrize("error", [ValueError("Decompressed data too large"), RecursionError(), KeyError("IHDR"), OverflowError("huge")])
def test_whatever_a_library_throws_is_the_line_of_one_item(
    make: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    for name in ("bad", "good"):
        make.caption(make.image(tmp_path / "in" / f"{name}.png"))
    found = discover(make.config(tmp_path, f"image_directory = '{tmp_path}/in'").datasets[0], CARD)
    real = Image.open

    def broken(path: Path, *given: object) -> Image.Image:
        if Path(path).stem == "bad":
            raise error
        return real(path)

    monkeypatch.setattr(Image, "open", broken)
    results = {item.stem: result for item, result in decoded(found.items, CARD, 2)}
    assert isinstance(results["bad"], Problem) and "cannot be read" in results["bad"].reason and isinstance(results["good"], list)


def rewritten(source: Path, target: Path, skip: int, damage: int | None = None) -> Path:
    """The packets of a clip from number `skip` on, in another file without encoding them anew; one of them overwritten."""
    with av.open(str(source)) as given, av.open(str(target), "w") as written:
        stream = given.streams.video[0]
        copy = written.add_stream_from_template(stream)
        for number, packet in enumerate(one for one in given.demux(stream) if one.size):
            if number >= skip:
                if number == damage:
                    packet_of_zeros = av.Packet(bytes(range(200)))
                    packet_of_zeros.pts, packet_of_zeros.dts, packet_of_zeros.time_base = packet.pts, packet.dts, packet.time_base
                    packet = packet_of_zeros
                packet.stream = copy
                written.mux(packet)
    return target


@pytest.mark.parametrize(("skip", "damage"), [(5, None), (12, None), (13, None), (0, 30)])
@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg2video", "libvpx-vp9"])
def test_cut_and_damaged_streams_are_planned_by_what_can_be_decoded(tmp_path: Path, codec: str, skip: int, damage: int | None) -> None:
    options = {"libx264": {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:scenecut=0"},
               "libx265": {"x265-params": "log-level=none:open-gop=1:keyint=12:min-keyint=12:bframes=3"},
               "mpeg2video": {"g": "12", "bf": "2"}, "libvpx-vp9": {"g": "12", "deadline": "realtime", "cpu-used": "8"}}  # fmt: skip
    source = tmp_path / "source.mkv"
    with av.open(str(source), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options[codec])
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(60):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(corners(64, 48), 2 * number, 1), format="rgb24")))
        container.mux(stream.encode())
    item = clip_item(rewritten(source, tmp_path / "cut.mkv", skip, damage), tmp_path, target_frames=[5], frame_extraction="chunk")
    entries = decode(item, CARD)
    foreseen = foresee(item, CARD)  # what is found out is known the next time
    assert isinstance(entries, list) and not isinstance(foreseen, Problem)
    assert list(foreseen.entries) == [entry.entry for entry in entries]
    assert foreseen.facts.timing.frames == sum(1 for _ in frames_of(item.path)) >= 24


def test_windows_that_wait_hold_no_other_pixels(make: SimpleNamespace, tmp_path: Path) -> None:
    item = clip_item(make.clip(tmp_path / "a.mp4", 40), tmp_path, target_frames=[9], frame_extraction="chunk")
    entries = decode(item, CARD)
    assert isinstance(entries, list)
    waiting = entries[1].detached()
    assert waiting.pixels.base is None and np.array_equal(waiting.pixels, entries[1].pixels)
    assert waiting.detached().pixels is waiting.pixels


def test_a_long_clip_takes_the_memory_of_its_windows(make: SimpleNamespace, tmp_path: Path) -> None:
    import tracemalloc

    clip = make.clip(tmp_path / "a.mp4", 200)
    settings = {"target_frames": [9], "frame_extraction": "uniform", "frame_sample": 2}
    item = clip_item(clip, tmp_path, **settings)
    decode(item, CARD)
    tracemalloc.start()  # numpy reports its arrays
    entries = decode(item, CARD)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(entries, list) and peak < 2 * 18 * 64 * 48 * 3 < 200 * 64 * 48 * 3


def test_transparent_clips_are_laid_on_white(tmp_path: Path) -> None:
    path = tmp_path / "alpha.mov"
    rgba = np.zeros((32, 64, 4), np.uint8)
    rgba[..., 0], rgba[:, 32:, 3] = 255, 255
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=16)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "rgba"
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgba, format="rgba")))
        container.mux(stream.encode())
    frame = next(frames_of(path))
    assert frame.pixels()[0, 0].tolist() == [255, 255, 255] and frame.pixels()[0, 63].tolist() == [255, 0, 0]
    assert "transparency" in frame.notes()[0]


def test_transparent_controls_keep_their_colours_only_where_transparency_is_a_mask(make: SimpleNamespace, tmp_path: Path) -> None:
    from musubi_backend.architectures.framepack.card import CARD as FRAMEPACK

    make.caption(make.image(tmp_path / "in" / "a.png", (64, 48)))
    hidden = np.zeros((48, 64, 4), np.uint8)
    hidden[..., 0] = 255
    (tmp_path / "control").mkdir()
    Image.fromarray(hidden).save(tmp_path / "control" / "a.png")
    section = f"image_directory = '{tmp_path}/in'\ncontrol_directory = '{tmp_path}/control'\nfp_1f_clean_indices = [0]"
    (dataset,) = make.config(tmp_path, section).datasets
    for card, colour, alpha in ((CARD, [255, 255, 255], False), (FRAMEPACK, [255, 0, 0], True)):
        (entry,) = decode(discover(dataset, card).items[0], card)  # type: ignore[misc]
        assert entry.controls[0][0, 0, 0].tolist() == colour and (entry.control_alphas[0] is not None) == alpha


def test_a_cover_image_is_no_clip(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        sound, cover = container.add_stream("aac", rate=44100), container.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(corners(32, 32), format="rgb24")))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux([*cover.encode(), *sound.encode(frame), *sound.encode()])
    found = foresee(clip_item(path, tmp_path), CARD)
    assert isinstance(found, Problem) and "cover image" in found.reason
