"""Which dataset files are accepted, with which values, and how the others are rejected."""

from __future__ import annotations

import json
import logging
from dataclasses import fields
from pathlib import Path

import pytest
from musubi_backend.dataset.config import ImageDataset, VideoDataset, load_config, parse_config
from musubi_backend.dataset.schema import OWN
from musubi_backend.errors import UserError

KINDER_THAN_MUSUBI = {"video_source_fps_int"}  # `source_fps = 30` is as clear as `30.0`


def write(folder: Path, text: str, name: str = "dataset.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_the_recorded_configs_are_accepted_and_rejected_alike(shared: Path) -> None:
    for name, case in json.loads((shared / "golden/dataset/toml_validation.json").read_text()).items():
        if "error" in case and name not in KINDER_THAN_MUSUBI:
            with pytest.raises(UserError):
                parse_config(case["config"])
            continue
        datasets = parse_config(case["config"])
        for ours, theirs in zip(datasets, case.get("result", []), strict=name not in KINDER_THAN_MUSUBI):
            assert isinstance(ours, ImageDataset) == theirs["is_image"], name
            values = json.loads(json.dumps({f.name: getattr(ours, f.name) for f in fields(ours) if f.name not in ("index", "file")}))
            assert [values.pop(name) for name in OWN] == [0.0], "what only we know changes nothing"
            theirs["params"].pop("architecture")
            assert values == theirs["params"], name


def test_general_values_and_flags_fill_what_a_dataset_leaves_open(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        [general]
        resolution = 512
        batch_size = 2

        [[datasets]]
        video_directory = "動画 'clips'"
        source_fps = 30
        batch_size = 3

        [[datasets]]
        image_jsonl_file = "a.jsonl"
        cache_directory = "c"
        """,
    )
    config = load_config(path, {"batch_size": 9, "debug_dataset": True, "num_repeats": None, "resolution_of_something": 1})
    video, image = config.datasets
    assert isinstance(video, VideoDataset) and video.batch_size == 3 and video.source_fps == 30.0 and video.resolution == (512, 512)
    assert video.cache_folder == Path("動画 'clips'")
    assert image.batch_size == 2 and image.num_repeats == 1 and image.debug_dataset


def test_a_file_with_a_byte_order_mark_and_json_are_read(tmp_path: Path) -> None:
    toml = tmp_path / "日本 語.TOML"
    toml.write_bytes("\ufeff[[datasets]]\nimage_directory = 'a'\n".encode())
    assert load_config(toml).datasets[0].source == ("image_directory", "a")
    as_json = write(tmp_path, '{"datasets": [{"video_directory": "v", "target_frames": [25, 3]}]}', "d.json")
    (dataset,) = load_config(as_json).datasets
    assert dataset.rules.targets == (1, 25)


def test_old_key_names_are_understood(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = "qwen_image_edit_control_resolution = 512\nflux_kontext_no_resize_control = true\n"
    path = write(tmp_path, f"[[datasets]]\nimage_directory = 'a'\n{old}no_resize_control = false\n")
    with caplog.at_level(logging.WARNING):
        (dataset,) = load_config(path).datasets
    assert dataset.control_resolution == (512, 512) and dataset.no_resize_control is False
    assert "write control_resolution" in caplog.text and "is ignored" in caplog.text


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('[[datasets]]\nimage_directory = "C:\\Users\\me"\n', ["not valid TOML", "line 2", "single quotes"]),
        ("[general]\nresolution = \n", ["not valid TOML", "line 2", "column"]),
        ("[[datasets]]\nvideo_directory='v'\nbatchsize=2\n", ["datasets[0]", "'batchsize'", "did you mean 'batch_size'"]),
        ("[[datasets]]\nvideo_directory='v'\ntarget_frames=25\n", ["datasets[0]", "target_frames = 25", "list of whole numbers"]),
        ("[[datasets]]\nvideo_directory='v'\n[[datasets]]\nimage_directory='i'\nbatch_size='2'\n", ["datasets[1]", "batch_size = '2'"]),
        ("[[datasets]]\nimage_directory='v'\ntarget_frames=[1]\n", ["'target_frames'", "not in an image dataset"]),
        ("[general]\nvideo_directory='v'\n", ["[general]", "'video_directory'", "move it to the dataset"]),
        ("[datasets]\nimage_directory='v'\n", ["two brackets"]),
        ("[[dataset]]\nimage_directory='v'\n", ["unknown key 'dataset'"]),
        ("[general]\n", ["no datasets"]),
        ("[general]\ndatasets=[]\n", ["[general]", "at the top", "[[datasets]]"]),
        ('[[datasets]]\nimage_directory="a\\u0000b"\n', ["image_directory", "a path in quotes"]),
        ("[[datasets]]\nimage_directory=''\n", ["image_directory = ''", "a path in quotes"]),
        ("[[datasets]]\nvideo_directory='v'\ncache_directory=' '\n", ["cache_directory = ' '", "a path in quotes"]),
        ("[general]\ncaption_extension='txt'\n", ["caption_extension = 'txt'", "with its dot"]),
        ("[general]\ncaption_extension='../x.txt'\n", ["caption_extension = '../x.txt'", "with its dot"]),
        ("[[datasets]]\nresolution=512\n", ["has no media"]),
        ("[[datasets]]\nvideo_jsonl_file='a.jsonl'\n", ["cache_directory is missing"]),
        ("[[datasets]]\nimage_directory='a'\n[[datasets]]\nvideo_directory='./a'\n", ["datasets[0] and datasets[1] share"]),
        ("[[datasets]]\nvideo_directory='a'\nframe_extraction='tail'\n", ["'tail'", "head, chunk, slide, uniform, full"]),
        ("[[datasets]]\nvideo_directory='a'\ntarget_frames=[]\n", ["target_frames must be 1 or more"]),
        ("[[datasets]]\nvideo_directory='a'\nsource_fps=0\n", ["source_fps must be above 0"]),
        ("[[datasets]]\nimage_directory='a'\nbatch_size=0\n", ["batch_size must be 1 or more"]),
        ("[[datasets]]\nvideo_directory='a'\nfp_latent_window_size=0\n", ["fp_latent_window_size must be 1 or more"]),
        ("[[datasets]]\nimage_directory='a'\nfp_latent_window_size=-1\n", ["fp_latent_window_size must be 1 or more"]),
        ("[[datasets]]\nimage_directory='a'\nfp_1f_clean_indices=[0, -1]\n", ["fp_1f_clean_indices must be 0 or more"]),
        ("[[datasets]]\nimage_directory='a'\nfp_1f_target_index=-1\n", ["fp_1f_target_index must be 0 or more"]),
        ("[[datasets]]\nvideo_directory='a'\nresolution=[64, 15]\n", ["resolution [64, 15] is too small"]),
        ("[[datasets]]\nvideo_directory='a'\nresolution=[16, 48]\n", ["too small for buckets"]),
        ("[[datasets]]\nimage_directory='a'\nresolution=[100, 60]\n", ["[100, 60]", "multiples of 16", "write [96, 64]", "enable_bucket"]),
    ],
)
def test_bad_files_are_rejected_with_the_place_and_the_fix(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as refused:
        load_config(path)
    for part in [str(path), *parts]:
        assert part in str(refused.value)


def test_broken_json_and_missing_or_foreign_files_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 2, column"):
        load_config(write(tmp_path, '{"datasets":\n [}', "d.json"))
    with pytest.raises(UserError, match="does not exist"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(UserError, match=r"\.toml or \.json"):
        load_config(write(tmp_path, "", "d.yaml"))
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"# caf\xe9\n")
    with pytest.raises(UserError, match="not UTF-8"):
        load_config(latin)
