"""Settings for a training: the LoRA and its run, noise levels and samples. The optimizer: `optimizer_settings`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from ..backend.musubi_backend import content
from ..backend.musubi_backend.architectures.widgets import CONTROL_IMAGES, CONTROL_VIDEO, END, START
from ..backend.musubi_backend.errors import UserError
from ..backend.musubi_backend.options.option import TRAIN
from . import media_inputs
from .expert_settings import EXPERT
from .families import families, shared_widget
from .spec import Host, Input, Node, NodeSpec, Output, Problem, Result
from .widgets import settings

LORA_CONFIG = "MUSUBITUNER_LORA_CONFIG"
SAMPLING = "MUSUBITUNER_SAMPLING"
_ATTENTION = ("sdpa", "flash_attn", "flash3", "xformers")
_NETWORKS = {"LoRA": "", "LoHa": "networks.loha", "LoKr": "networks.lokr"}
_IMAGES = (  # the options are the keys of a prompt file
    START,
    END,
    dataclasses.replace(CONTROL_VIDEO, option="control_video_path"),
    CONTROL_IMAGES,
)


def _of_families(entry: Input) -> Input:
    """An image or video of the samples, for the families and tasks whose generators take it."""
    sources = {
        card.node_name: source for card, family in families() for source in family.sources if entry.name in (source.socket, source.path)
    }
    return dataclasses.replace(entry, takers={family: source.tasks for family, source in sources.items()})


class LoRATrainingConfig(Node):
    spec = NodeSpec(
        id="MusubiTuner_LoRATrainingConfig",
        display_name="LoRA Training Config",
        category="MusubiTuner/Train",
        description="Size of the LoRA, length of the training, precision, memory savers and what is saved on the way.",
        inputs=(
            shared_widget(TRAIN, "max_train_steps"),
            shared_widget(TRAIN, "max_train_epochs", off=0),
            shared_widget(TRAIN, "network_dim", 32),
            shared_widget(TRAIN, "network_alpha", 16.0),
            shared_widget(TRAIN, "network_dropout", off=0.0),
            shared_widget(TRAIN, "mixed_precision", "auto"),
            shared_widget(TRAIN, "gradient_checkpointing", True),
            shared_widget(TRAIN, "gradient_checkpointing_cpu_offload"),
            shared_widget(TRAIN, "gradient_accumulation_steps"),
            Input("attention", "COMBO", "How attention is computed. sdpa is built into PyTorch; the others must be installed in the "
                "backend's environment.",
                  default="sdpa", choices=_ATTENTION, advanced=True),
            shared_widget(TRAIN, "split_attn"),
            shared_widget(TRAIN, "seed", 42, name="training_seed"),
            shared_widget(TRAIN, "save_every_n_steps", 250, off=0),
            shared_widget(TRAIN, "save_every_n_epochs", off=0),
            shared_widget(TRAIN, "save_last_n_steps", off=0),
            shared_widget(TRAIN, "save_last_n_epochs", off=0),
            shared_widget(TRAIN, "save_state", True),
            shared_widget(TRAIN, "save_last_n_steps_state", 250, off=0),
            shared_widget(TRAIN, "save_last_n_epochs_state", off=0),
            shared_widget(TRAIN, "save_state_on_train_end"),
            shared_widget(TRAIN, "save_precision"),
            shared_widget(TRAIN, "scale_weight_norms", off=0.0),
            shared_widget(TRAIN, "max_data_loader_n_workers", 2),
            shared_widget(TRAIN, "persistent_data_loader_workers", True),
            shared_widget(TRAIN, "cuda_allow_tf32"),
            shared_widget(TRAIN, "training_comment"),
            shared_widget(TRAIN, "fp8_base"),
            shared_widget(TRAIN, "fp8_scaled"),
            shared_widget(TRAIN, "blocks_to_swap", off=0),
            shared_widget(TRAIN, "use_pinned_memory_for_block_swap"),
            shared_widget(TRAIN, "compile"),
            Input("network", "COMBO", "Kind of network. LoRA is what everything reads. LoHa holds more in the same size and learns slower; "
                "LoKr is the smallest.", default="LoRA", choices=tuple(_NETWORKS), advanced=True),
            Input("rank_dropout", "FLOAT", "Regularisation: share of ranks (LoRA) or outputs (LoHa, LoKr) left out in each step.",
                default=0.0, minimum=0.0, maximum=0.99, step=0.01, off=0.0, advanced=True),
            Input("module_dropout", "FLOAT", "Regularisation: probability that a layer is trained without the LoRA in a step.",
                  default=0.0, minimum=0.0, maximum=0.99, step=0.01, off=0.0, advanced=True),
            Input("loraplus_lr_ratio", "FLOAT", "LoRA+: how much faster the second matrix of each layer learns; 4 to 16. 0: as fast as the "
                "first. LoRA only.", default=0.0, minimum=0.0, maximum=100.0, step=0.5, off=0.0, advanced=True),
            Input("lokr_factor", "INT", "How LoKr divides each matrix: into this many parts each way; more make it smaller. -1: as evenly "
                "as it goes, the smallest.", default=-1, minimum=-1, maximum=1024, off=-1, advanced=True),
            Input("expert_settings", EXPERT, "From Expert Settings: layers to train, LoRAs below the new one, where it logs.",
                  optional=True),
            shared_widget(TRAIN, "keep_attention_blocks"),
            shared_widget(TRAIN, "offload_attention_blocks"),
            shared_widget(TRAIN, "w8a8"),
            shared_widget(TRAIN, "validation_split", off=0.0, optional=True),
            shared_widget(TRAIN, "validate_every_n_steps", off=0, optional=True),
            shared_widget(TRAIN, "validate_every_n_epochs", off=0, optional=True),
            shared_widget(TRAIN, "max_validation_steps", off=0, optional=True),
            shared_widget(TRAIN, "validation_seed", off=0, optional=True),
            shared_widget(TRAIN, "accumulate_by_block", optional=True),
        ),
        outputs=(Output("lora_config", LORA_CONFIG, "For the trainer"),),
    )  # fmt: skip

    def validate(self, host: Host, **constants: Any) -> Iterator[Problem]:
        for name, partner in (
            ("gradient_checkpointing_cpu_offload", "gradient_checkpointing"), ("keep_attention_blocks", "gradient_checkpointing"),
            ("offload_attention_blocks", "gradient_checkpointing"), ("fp8_scaled", "fp8_base"),
        ):  # fmt: skip
            if constants.get(name) and constants.get(partner) is False:
                yield Problem(name, f"{name} works only with {partner}: turn that on too")
        if constants.get("blocks_to_swap") and constants.get("compile") and constants.get("gradient_checkpointing") is False:
            said = "blocks_to_swap with compile needs gradient_checkpointing: compiled blocks keep weights for backward"
            yield Problem("blocks_to_swap", said)
        if constants.get("w8a8") in ("int8", "fp8") and constants.get("fp8_base"):
            yield Problem("w8a8", "w8a8 and fp8_base exclude each other: turn one of them off")
        for name in ("keep_attention_blocks", "offload_attention_blocks"):
            if constants.get(name) and constants.get("compile") and (constants["attention"] != "sdpa" or constants.get("split_attn")):
                said = f"{name} with compile keeps PyTorch's attention only: choose sdpa without split_attn, or set it to 0"
                yield Problem(name, said)
        yield from _network_problems(constants)

    async def run(self, host: Host, **inputs: Any) -> Result:
        expert = inputs["expert_settings"] or {}
        network = _network(inputs, expert.get("network_args", ()))
        return Result(({**settings(self.spec.inputs, inputs), inputs["attention"]: True, **expert, **network},))


def _network_problems(constants: dict[str, Any]) -> Iterator[Problem]:
    """What in the settings means nothing for the chosen kind of network."""
    kind = constants.get("network", "LoRA")
    if kind != "LoRA" and constants.get("network_dropout"):
        yield Problem("network_dropout", f"network_dropout has nothing to act on in a {kind}: set it to 0, or use rank_dropout")
    if kind != "LoRA" and constants.get("loraplus_lr_ratio"):
        yield Problem("loraplus_lr_ratio", f"loraplus_lr_ratio is for LoRA only, not for {kind}: set it to 0")
    if kind != "LoKr" and constants.get("lokr_factor", -1) != -1:
        yield Problem("lokr_factor", f"lokr_factor is for LoKr only, not for {kind}: set it to -1")
    elif constants.get("lokr_factor") == 0:
        yield Problem("lokr_factor", "lokr_factor: 0 is no factor; choose 1 or more, or -1")


def _network(inputs: dict[str, Any], more: Sequence[str]) -> dict[str, Any]:
    """`network_module`, where it is not the architecture's own, and `network_args`, with `more` of them."""
    arguments = {name: inputs[name] for name in ("rank_dropout", "module_dropout", "loraplus_lr_ratio") if inputs[name]}
    if inputs["lokr_factor"] != -1:
        arguments["factor"] = inputs["lokr_factor"]
    module = _NETWORKS[inputs["network"]]
    said = [*(f"{name}={value:g}" for name, value in arguments.items()), *more]
    return {**({"network_module": module} if module else {}), **({"network_args": said} if said else {})}


_SAMPLE_TIMES = ("sample_every_n_steps", "sample_every_n_epochs", "sample_at_first")
_NO_SAMPLE_TIME = "sample_prompts are given but no time to make samples: set sample_every_n_steps or sample_every_n_epochs"


class SamplingConfig(Node):
    spec = NodeSpec(
        id="MusubiTuner_SamplingConfig",
        display_name="Sampling Config",
        category="MusubiTuner/Train",
        description="Which noise levels are trained, and the samples made while training, which the trainer shows as they come.",
        inputs=(
            shared_widget(TRAIN, "timestep_sampling", "shift"),
            shared_widget(TRAIN, "discrete_flow_shift", 3.0),
            shared_widget(TRAIN, "sigmoid_scale"),
            shared_widget(TRAIN, "weighting_scheme"),
            shared_widget(TRAIN, "logit_mean"),
            shared_widget(TRAIN, "logit_std"),
            shared_widget(TRAIN, "mode_scale"),
            shared_widget(TRAIN, "min_timestep", off=0),
            shared_widget(TRAIN, "max_timestep", off=0),
            shared_widget(TRAIN, "preserve_distribution_shape"),
            shared_widget(TRAIN, "num_timestep_buckets", off=0),
            Input("sample_prompts", "STRING", "Prompts of the samples, one per line. Empty: no samples.", default="", multiline=True),
            shared_widget(TRAIN, "sample_every_n_steps", off=0),
            shared_widget(TRAIN, "sample_every_n_epochs", off=0),
            shared_widget(TRAIN, "sample_at_first"),
            Input("sample_width", "INT", "Width of the samples.", default=480, minimum=16, maximum=4096, step=16),
            Input("sample_height", "INT", "Height of the samples.", default=272, minimum=16, maximum=4096, step=16),
            Input("sample_frames", "INT", "Frames of the samples; 4n+1. 1 makes images.", default=17, minimum=1, maximum=1000, step=4),
            Input("sample_steps", "INT", "Denoising steps of the samples.", default=20, minimum=1, maximum=1000),
            Input("sample_seed", "INT", "Seed of the samples, the same each time so that they can be "
                "compared.", default=7, minimum=0, maximum=2**31 - 1),
            Input("sample_cfg_scale", "FLOAT", "Guidance of the samples by a negative prompt. -1: the model's own.",
                  default=-1.0, minimum=-1.0, maximum=100.0, step=0.1, advanced=True),
            Input("sample_flow_shift", "FLOAT", "Flow shift of the samples. 0: musubi-tuner's default.",
                  default=0.0, minimum=0.0, maximum=100.0, step=0.1, advanced=True),
            Input("sample_one_frame", "STRING", "Settings of one-frame samples, such as target_index=1,control_index=0.",
                  default="", advanced=True),
            *(_of_families(entry) for entry in media_inputs.sockets_and_paths(_IMAGES)),
        ),
        outputs=(Output("sampling", SAMPLING, "For the trainer"),),
    )  # fmt: skip

    def validate(self, host: Host, **constants: Any) -> Iterator[Problem]:
        low, high = constants.get("min_timestep", 0), constants.get("max_timestep", 0)
        if high and low >= high:
            yield Problem("min_timestep", f"min_timestep: {low} must be below max_timestep {high}")
        if constants.get("sample_prompts", "").strip() and not any(constants.get(name, True) for name in _SAMPLE_TIMES):
            yield Problem("sample_prompts", _NO_SAMPLE_TIME)
        yield from media_inputs.problems(host, _IMAGES, constants)

    def fingerprint(self, host: Host, **constants: Any) -> str:
        return content.of_files(media_inputs.stamps(host, _IMAGES, constants))

    async def run(self, host: Host, **inputs: Any) -> Result:
        value: dict[str, Any] = {"settings": settings(self.spec.inputs, inputs), "prompts": _prompts(host, inputs)}
        if not value["prompts"]:
            value["settings"] = {name: setting for name, setting in value["settings"].items() if name not in _SAMPLE_TIMES}
        elif not any(inputs[name] for name in _SAMPLE_TIMES):
            raise UserError(_NO_SAMPLE_TIME)
        return Result((value,))


def _prompts(host: Host, inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """Entries of a musubi-tuner prompt file in JSON form, where a prompt's text cannot turn into options."""
    settings_of_all: dict[str, Any] = {
        "width": inputs["sample_width"],
        "height": inputs["sample_height"],
        "frame_count": inputs["sample_frames"],
        "sample_steps": inputs["sample_steps"],
        "seed": inputs["sample_seed"],
    }
    if inputs["sample_cfg_scale"] >= 0:
        settings_of_all["cfg_scale"] = inputs["sample_cfg_scale"]
    if inputs["sample_flow_shift"]:
        settings_of_all["discrete_flow_shift"] = inputs["sample_flow_shift"]
    if inputs["sample_one_frame"].strip():
        settings_of_all["one_frame"] = inputs["sample_one_frame"].strip()
    lines = [line.strip() for line in inputs["sample_prompts"].splitlines() if line.strip()]
    if lines:
        settings_of_all |= media_inputs.kept(host, _IMAGES, inputs)
    return [{"prompt": line, **settings_of_all} for line in lines]
