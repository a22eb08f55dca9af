"""Every setting of a trainer says what it changes, so that runs, states and nodes agree on what makes a training another one."""

from __future__ import annotations

import pytest
from musubi_backend.options.option import FILE, LENGTH, NOTHING, START, TRAIN, WEIGHTS
from musubi_backend.options.registry import options_for, tools

TRAINERS = [name for name, tool in tools().items() if tool.verb == TRAIN]


@pytest.mark.parametrize("name", TRAINERS)
def test_every_setting_of_a_trainer_is_classified(name: str) -> None:
    unknown = {
        option.name: option.effect for option in tools()[name].options if option.effect not in {WEIGHTS, LENGTH, START, FILE, NOTHING}
    }
    assert not unknown, "say in the table what it changes"


def test_what_has_nothing_to_do_changes_nothing() -> None:
    for name in TRAINERS:
        assert not [option.name for option in tools()[name].options if option.no_effect and option.effect != NOTHING]


THE_NUMBERS = """
    base_weights base_weights_multiplier compile compile_backend compile_cache_size_limit compile_dynamic compile_mode cuda_allow_tf32
    cuda_cudnn_benchmark dataset_config discrete_flow_shift dit dit_dtype dit_high_noise dynamo_backend dynamo_dynamic dynamo_mode f1 flash3
    flash_attn fp8_base fp8_scaled w8a8 gradient_accumulation_steps guidance_scale learning_rate logit_mean logit_std lora_per_expert
    lr_decay_steps lr_scheduler lr_scheduler_args lr_scheduler_min_lr_ratio lr_scheduler_num_cycles lr_scheduler_power
    lr_scheduler_timescale lr_scheduler_type lr_warmup_steps max_grad_norm max_timestep min_timestep mixed_precision mode_scale
    network_alpha network_args network_dim network_dropout network_module num_timestep_buckets one_frame optimizer_args optimizer_type
    preserve_distribution_shape sage_attn scale_weight_norms sdpa seed sigmoid_scale skip_mismatched split_attn steps_per_expert task
    timestep_boundary timestep_sampling validation_seed validation_split weighting_scheme xformers
"""
THE_FILE = """
    metadata_arch metadata_author metadata_description metadata_license metadata_reso metadata_tags metadata_title no_metadata
    save_precision training_comment
"""


@pytest.mark.parametrize(
    ("effect", "names"),
    [
        (WEIGHTS, THE_NUMBERS),
        (LENGTH, "max_train_epochs max_train_steps"),
        (START, "dim_from_weights network_weights resume resume_learning_rate"),
        (FILE, THE_FILE),
    ],
)
def test_what_each_setting_changes(effect: str, names: str) -> None:
    """All others change nothing: where it runs, what it logs and samples, when it saves, how it saves memory."""
    found = {option.name for name in TRAINERS for option in options_for(name).values() if option.effect == effect}
    assert found == set(names.split()), "list here what the tables have"
