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
        assert not [option.name for option in tools()[name].options if option.moot and option.effect != NOTHING]


@pytest.mark.parametrize(
    ("effect", "names"),
    [
        (LENGTH, "max_train_steps max_train_epochs"),
        (START, "network_weights dim_from_weights resume"),
        (FILE, "save_precision training_comment no_metadata metadata_title"),
        (
            NOTHING,
            "sample_prompts save_every_n_steps max_data_loader_n_workers gradient_checkpointing blocks_to_swap vae t5 offload_inactive_dit",
        ),
        (WEIGHTS, "learning_rate seed dit fp8_base mixed_precision base_weights lr_warmup_steps logit_mean compile cuda_allow_tf32"),
    ],
)
def test_some_of_each_kind(effect: str, names: str) -> None:
    options = options_for("wan_train_network")
    assert {name: options[name].effect for name in names.split()} == dict.fromkeys(names.split(), effect)
