"""What must hold between options, and which files must be there, before anything heavy starts."""

from __future__ import annotations

import logging
import stat
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

from ..architectures import cards, chosen_card
from ..counted import counted
from ..errors import UserError
from .needs import unmet
from .option import CACHE_LATENTS, CAPTION, GENERATE, LORA_COMBINE, LORA_MERGE, TRAIN, Option
from .registry import Tool
from .tables.needs import Need
from .values import gigabytes

logger = logging.getLogger(__name__)
_ATTENTION = ("sdpa", "flash_attn", "flash3", "xformers")


def check(tool: Tool, args: Namespace) -> None:
    """Raise UserError with every problem found, one per line. What has no effect and does no harm is only a warning."""
    if found := list(problems(tool, args)):
        raise UserError("\n".join(found))
    for need, sentence in _unmet(tool, args):
        if not need.rejected:
            logger.warning("%s", sentence)


def problems(tool: Tool, args: Namespace) -> Iterator[str]:
    """What must not be, in a sentence each. The nodes ask too, before anything is made for a job."""
    yield from (sentence for need, sentence in _unmet(tool, args) if need.rejected)
    yield from _missing(args, [option.name for option in tool.options if option.required])
    if tool.verb in _RULES:
        yield from _RULES[tool.verb](tool, args)
    for option in tool.options:
        yield from _too_many(option, args)
        yield from _absent_files(option, args)


def _unmet(tool: Tool, args: Namespace) -> Iterator[tuple[Need, str]]:
    return iter(()) if getattr(args, "show_timesteps", None) else unmet(tool, args)


def _missing(args: Namespace, names: list[str], why: str = "") -> Iterator[str]:
    for name in names:
        if getattr(args, name) in (None, "", []):
            yield f"--{name} is required{why}"


def _too_many(option: Option, args: Namespace) -> Iterator[str]:
    given = len(getattr(args, option.name) or ()) if option.most is not None else 0
    if option.most is not None and given > option.most:
        what = option.path or "value"
        most = f"one {what}" if option.most == 1 else f"up to {counted(option.most, what)}"
        yield f"{option.flag} takes {most}, not {given}"


def _absent_files(option: Option, args: Namespace) -> Iterator[str]:
    value = getattr(args, option.name)
    if option.path not in ("file", "folder", "any") or not value or option.unsupported:
        return
    for path in map(Path, value if isinstance(value, list) else [value]):
        try:
            kind = "folder" if stat.S_ISDIR(path.stat().st_mode) else "file"
        except FileNotFoundError:
            if option.name != "resume":  # training says which states there are, once what a kill left behind was put back
                yield f"{option.flag}: {path} does not exist"
        except OSError as error:
            yield f"{option.flag}: {path} cannot be read: {error.strerror}"
        else:
            if option.path not in ("any", kind):
                yield f"{option.flag}: {path} is a {kind}, not a {option.path}"


def _cache_latents(tool: Tool, args: Namespace) -> Iterator[str]:
    if args.debug_mode is None:
        yield from _missing(args, ["vae"])


def _train(tool: Tool, args: Namespace) -> Iterator[str]:
    if args.show_timesteps:
        return
    yield from _missing(args, ["dataset_config", "dit", "output_dir", "output_name"])
    yield from _missing(args, ["network_module"], f"; for {_title(tool)} it is {_card_network(tool)}")
    yield from _missing(args, ["optimizer_type"], "; for example AdamW, AdamW8bit or Adafactor")
    if args.vram is None and not any(getattr(args, name) for name in _ATTENTION):
        yield f"choose an attention: one of {', '.join(f'--{name}' for name in _ATTENTION)} is required; --sdpa always works"
    if args.vram not in (None, "auto", "off") and gigabytes(args.vram) is None:
        yield f"--vram {args.vram} is not auto, off or a number of GB"
    if args.output_name and Path(args.output_name).name != args.output_name:
        yield f"--output_name {args.output_name!r} must be a name without folders; the folder is --output_dir"
    if args.sample_prompts:
        yield from _missing(args, ["vae", *_text_encoders(tool, args)], " to make samples while training")
    if args.blocks_to_swap and (args.compile or args.dynamo_backend != "NO") and not args.gradient_checkpointing:
        yield "--blocks_to_swap with --compile needs --gradient_checkpointing: compiled blocks keep weights for backward"
    if args.w8a8 and args.fp8_base:
        yield "--w8a8 and --fp8_base exclude each other: both hold the weights in 8 bits"
    yield from _spread(args)
    for name in ("keep_attention_blocks", "offload_attention_blocks"):
        others = [f"--{other}" for other in ("flash_attn", "flash3", "xformers", "split_attn") if getattr(args, other)]
        if getattr(args, name) and (args.compile or args.dynamo_backend != "NO") and others:
            yield f"--{name} with --compile keeps PyTorch's attention only: use --sdpa without {' and '.join(others)}, or leave it out"
    if (args.min_timestep or 0) >= (1000 if args.max_timestep is None else args.max_timestep):
        yield f"--min_timestep {args.min_timestep or 0} must be below --max_timestep {args.max_timestep}"
    yield from _counts(args, "base_weights", "base_weights_multiplier")
    yield from _experts(args)


_OF_ANY_SIZE = ("uniform", "sigmoid", "sigma", "shift", "logsnr")
"""Ways to draw noise levels that are the same for clips of every size."""


def _spread(args: Namespace) -> Iterator[str]:
    """What does not go with a transformer that is spread over processes."""
    if not args.fsdp:
        return
    if args.blocks_to_swap:
        yield "--fsdp and --blocks_to_swap exclude each other: each decides where the weights of a block are"
    if args.compile or args.dynamo_backend != "NO":
        yield "--fsdp and --compile exclude each other: blocks whose weights are gathered are not compiled yet"
    if not getattr(args, "dit_high_noise", None):
        return
    if args.offload_inactive_dit:
        yield "--fsdp and --offload_inactive_dit exclude each other: each process keeps its part of both experts on its GPU"
    if args.steps_per_expert < 2:
        yield "--fsdp and --dit_high_noise need --steps_per_expert, such as 10: all processes have to train the same expert in a step"
    if args.timestep_sampling not in _OF_ANY_SIZE:
        yield (
            f"--fsdp and --dit_high_noise do not go with --timestep_sampling {args.timestep_sampling}, which follows the sizes of clips: "
            f"processes would need other experts in a step. Use {', '.join(_OF_ANY_SIZE[:-1])} or {_OF_ANY_SIZE[-1]}"
        )


def _generate(tool: Tool, args: Namespace) -> Iterator[str]:
    if args.from_file and args.interactive:
        yield "--from_file and --interactive exclude each other"
    yield from _counts(args, "lora_weight", "lora_multiplier")
    yield from _experts(args)
    if hasattr(args, "lora_weight_high_noise"):
        yield from _counts(args, "lora_weight_high_noise", "lora_multiplier_high_noise")
    if args.save_merged_model and getattr(args, "fp8_scaled", False):
        yield "--save_merged_model writes the weights as they are, not in fp8; leave --fp8_scaled out"
    if args.latent_path:
        if args.output_type not in ("video", "images"):
            yield f"--latent_path decodes to --output_type video or images, not {args.output_type}"
        yield from _missing(args, ["vae"])
    elif args.save_merged_model:
        yield from _missing(args, ["dit"])
    else:
        if args.prompt is None and not args.from_file and not args.interactive:
            yield "say what to generate: one of --prompt, --from_file, --interactive or --latent_path is required"
        yield from _missing(args, ["dit", *_text_encoders(tool, args)])
        if args.output_type != "latent":
            yield from _missing(args, ["vae"])


def _caption(tool: Tool, args: Namespace) -> Iterator[str]:
    if args.output_format == "jsonl":
        yield from _missing(args, ["output_file"], " with --output_format jsonl")
        if args.output_file and not args.output_file.endswith(".jsonl"):
            yield f"--output_file {args.output_file} must end in .jsonl"
    if args.prompt is not None and not args.prompt.strip():
        yield "--prompt is empty: leave it out for the built-in one"
    if not args.caption_extension.startswith(".") or {"/", "\\"} & set(args.caption_extension):
        yield f"--caption_extension {args.caption_extension!r} must be an ending such as .txt"


def _merge_lora(tool: Tool, args: Namespace) -> Iterator[str]:
    if args.lora_multiplier != [1.0]:
        yield from _counts(args, "lora_weight", "lora_multiplier")


def _experts(args: Namespace) -> Iterator[str]:
    """Settings of two models that exclude each other."""
    if not hasattr(args, "dit_high_noise"):
        return
    if args.offload_inactive_dit and getattr(args, "lazy_loading", False):
        yield "--offload_inactive_dit and --lazy_loading exclude each other: the first keeps both models in memory, the second one"
    if args.offload_inactive_dit and args.blocks_to_swap:
        yield "--offload_inactive_dit and --blocks_to_swap exclude each other: both keep weights in system RAM"


def _counts(args: Namespace, files: str, multipliers: str) -> Iterator[str]:
    given, strengths = getattr(args, files) or [], getattr(args, multipliers) or []
    if len(strengths) > len(given):
        yield f"--{multipliers} has {counted(len(strengths), 'value')} for {len(given)} --{files}"


def _title(tool: Tool) -> str:
    return cards()[tool.architecture].title if tool.architecture else tool.name


def _text_encoders(tool: Tool, args: Namespace) -> list[str]:
    """The options that name the text encoders of the chosen model."""
    return list(chosen_card(tool.architecture, vars(args)).text_encoders) if tool.architecture else []


def _card_network(tool: Tool) -> str:
    return cards()[tool.architecture].network_module if tool.architecture else ""


_RULES: dict[str, Callable[[Tool, Namespace], Iterator[str]]] = {
    CACHE_LATENTS: _cache_latents,
    TRAIN: _train,
    GENERATE: _generate,
    CAPTION: _caption,
    LORA_MERGE: _merge_lora,
    LORA_COMBINE: lambda tool, args: _counts(args, "lora_weight", "lora_multiplier"),
}
