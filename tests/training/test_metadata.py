"""The metadata of a LoRA file has musubi-tuner's keys and values; its hashes are those of the serialised file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from musubi_backend.architectures.wan.card import CARD
from musubi_backend.errors import UserError
from musubi_backend.training import metadata
from musubi_backend.training.settings import ScheduleSettings, TrainingSettings
from musubi_backend.training.voided import Acting
from musubi_backend.weights.safetensors_file import load, read_header
from musubi_backend.weights.streamed_file import with_hashes

FACTS = metadata.RunFacts(
    items=4,
    batches_per_epoch=4,
    epochs=2,
    optimizer="torch.optim.adamw.AdamW",
    acting=Acting(1e-3, ScheduleSettings()),
    datasets=[{"resolution": [64, 64]}],
)


def recorded_settings(**changes: Any) -> TrainingSettings:
    """The arguments of the recorded fp32 run."""
    values: dict[str, Any] = {
        "output_name": "g", "learning_rate": 1e-3, "gradient_checkpointing": False, "gradient_checkpointing_cpu_offload": False,
        "gradient_accumulation_steps": 1, "max_train_steps": 6, "lr_warmup_steps": 0, "lr_scheduler": "constant",
        "network_module": "networks.lora_wan", "network_dim": 4, "network_alpha": 2.0, "network_dropout": None, "mixed_precision": "no",
        "seed": 42, "training_comment": None, "max_grad_norm": 1.0, "weighting_scheme": "none", "logit_mean": 0.0, "logit_std": 1.0,
        "mode_scale": 1.29, "guidance_scale": 1.0, "timestep_sampling": "shift", "sigmoid_scale": 1.0, "discrete_flow_shift": 3.0,
        "fp8_base": False, "network_args": None, "dit": "models/dit.safetensors", "vae": None, "no_metadata": False, "metadata_arch": None,
        "metadata_title": None, "metadata_reso": None, "metadata_author": None, "metadata_description": None, "metadata_license": None,
        "metadata_tags": None, "min_timestep": None, "max_timestep": None,
    }  # fmt: skip
    return TrainingSettings.read({**values, **changes})


def written(**changes: Any) -> dict[str, str]:
    args = recorded_settings(**changes)
    tensors = {"lora_unet_a.alpha": torch.tensor(2.0)}
    run = metadata.training_metadata(args, CARD, FACTS)
    return with_hashes(tensors, metadata.file_metadata(run, args, CARD, step=6, epoch=2))


def test_keys_and_values_equal_a_recorded_file(shared: Path) -> None:
    recorded = read_header(shared / "golden/train/fp32.final_lora.safetensors").metadata
    ours = written()
    assert set(ours) == set(recorded)
    times = {"ss_training_started_at", "ss_training_finished_at", "modelspec.date"}
    own_to_each_run = {*times, "ss_session_id", "ss_datasets", "sshs_model_hash"}
    differing = {key for key in recorded if ours[key] != recorded[key]}
    assert differing <= own_to_each_run


def test_hashes_of_the_recorded_file_come_out_again(shared: Path) -> None:
    path = shared / "golden/train/fp32.final_lora.safetensors"
    recorded = read_header(path).metadata
    again = with_hashes(load(path), recorded)
    assert again["sshs_model_hash"] == recorded["sshs_model_hash"]
    assert again["sshs_legacy_hash"] == recorded["sshs_legacy_hash"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_legacy_hash_of_a_large_file_is_that_of_its_serialisation(dtype: torch.dtype) -> None:
    tensors = {f"lora_{i}.weight": torch.randn(300, 1001).to(dtype) for i in range(5)} | {"lora_0.alpha": torch.tensor(1.0).to(dtype)}
    ss = {"ss_output_name": 'quotes " \\ and 日本語\n', "ss_steps": "3"}
    serialised = safetensors.torch.save(tensors, ss)
    hashes = with_hashes(tensors, {**ss, "modelspec.title": "not part of the hash"})
    length = int.from_bytes(serialised[:8], "little")
    assert hashes["sshs_model_hash"] == hashlib.sha256(serialised[8 + length :]).hexdigest()
    assert hashes["sshs_legacy_hash"] == hashlib.sha256(serialised[0x100000:0x110000]).hexdigest()[:8]


def test_no_metadata_keeps_what_identifies_the_network() -> None:
    values = written(no_metadata=True, network_args=["loraplus_lr_ratio=4"])
    assert {key for key in values if key.startswith("ss_")} == set(metadata.KEPT_WITHOUT_METADATA)
    assert values["ss_network_args"] == json.dumps({"loraplus_lr_ratio": "4"})
    assert values["modelspec.architecture"] == "wan2.1/lora" and "sshs_model_hash" in values


def test_optional_fields() -> None:
    values = written(
        metadata_title="My LoRA", metadata_author="me", metadata_tags="a,b", metadata_reso="832,480", metadata_arch="special",
        max_timestep=900, vae="/models/vae.safetensors",
    )  # fmt: skip
    assert values["modelspec.title"] == "My LoRA" and values["modelspec.author"] == "me" and values["modelspec.tags"] == "a,b"
    assert values["modelspec.resolution"] == "832x480" and values["modelspec.architecture"] == "special/lora"
    assert values["modelspec.timestep_range"] == "0,900" and values["ss_vae_name"] == "vae.safetensors"
    assert "modelspec.description" not in values


def test_numbers_of_the_run_and_its_range_are_reported() -> None:
    args = recorded_settings(min_timestep=100, fp8_base=True, no_metadata=False)
    values = metadata.training_metadata(
        args,
        CARD,
        metadata.RunFacts(items=9, batches_per_epoch=5, epochs=3, optimizer="o", acting=Acting(None, ScheduleSettings()), datasets=[]),
    )
    reported = [values[f"ss_num_{name}"] for name in ("train_items", "batches_per_epoch", "epochs")]
    assert reported == ["9", "5", "3"] and values["ss_fp8_base"] == "True" and values["ss_optimizer"] == "o"
    assert metadata.file_metadata(values, args, CARD, 1, 1)["modelspec.timestep_range"] == "100,1000"
    bare = metadata.file_metadata(values, recorded_settings(no_metadata=True), CARD, 1, 1)
    assert {key for key in bare if key.startswith("ss_")} == {f"ss_{name}" for name in ("base_model_version", *OF_NETWORK)}


OF_NETWORK = ("network_module", "network_dim", "network_alpha")


def test_a_bad_resolution_is_named() -> None:
    assert metadata.resolution("512") == "512x512"
    with pytest.raises(UserError, match="--metadata_reso"):
        metadata.resolution("wide")
