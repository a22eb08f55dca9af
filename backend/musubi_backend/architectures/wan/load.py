"""From `--dit` and the other arguments to a loaded Wan transformer."""

from __future__ import annotations

from argparse import Namespace

import torch

from ...errors import UserError
from ...layers.experts import Experts
from ...weights.loader import Weights, open_weights
from ...weights.recognise import expect
from ..card import HIGH, LOW
from ..loading import file_dtype, generating_dtype, load_frozen, training_dtype
from .card import CARD
from .fitting import boundary
from .geometry import PREFIXES, WanGeometry, geometry_of
from .model import WanTransformer


def compute_dtype(args: Namespace) -> torch.dtype:
    """dtype of the frozen weights and the arithmetic, from the header of `--dit`.

    Training: `--mixed_precision`, which must be the file's where that has 16 bits; "no" is the file's dtype, bfloat16 for fp8 files.
    Generating: that of a 16-bit file, else bfloat16; see `generating_dtype`.
    """
    check_experts(args)
    stored = file_dtype(_open(args), CARD)
    own = stored or torch.bfloat16
    if hasattr(args, "mixed_precision"):
        return training_dtype(stored, args, CARD, unset=own)
    return generating_dtype(stored, args, torch.bfloat16 if own == torch.float32 else own)


def load_transformer(args: Namespace, device: torch.device, dtype: torch.dtype) -> WanTransformer | Experts:
    """The frozen transformer of `--task` from `--dit` on `device`, in eval mode, with `--lora_weight` or `--base_weights` merged; with
    `--dit_high_noise` both experts as a pair.

    UserError for a file of another kind, another task, incomplete or quantised in an unknown way, and for LoRAs that do not fit.
    """
    if not getattr(args, "dit_high_noise", None):
        return _load(args, device, dtype)
    share = boundary(args)
    assert share is not None  # `check_experts` has rejected it
    args, high = Namespace(**{**vars(args), "lora_expert": LOW}), _of_high_noise(args)
    for one in (args, high):
        _geometry(one, _open(one))
    return Experts(
        {LOW: lambda home: _load(args, device, dtype, home), HIGH: lambda home: _load(high, device, dtype, home)},
        share, device, offload=args.offload_inactive_dit, lazy=getattr(args, "lazy_loading", False) and not args.save_merged_model,
    )  # fmt: skip


def check_experts(args: Namespace) -> None:
    """UserError for two experts without a boundary, or of different dtypes. Reads headers."""
    if not getattr(args, "dit_high_noise", None):
        return
    if boundary(args) is None:
        raise UserError(f"--timestep_boundary is required: task {args.task} is not one of two experts; use --task t2v-A14B or i2v-A14B")
    if getattr(args, "lora_per_expert", False):
        _check_both_are_trained(args)
    stored = [file_dtype(_open(one), CARD) for one in (args, _of_high_noise(args))]
    if stored[0] != stored[1]:
        names = " and ".join(str(dtype or "fp8").removeprefix("torch.") for dtype in stored)
        raise UserError(f"--dit and --dit_high_noise have different dtypes ({names}); use two files of the same")


def _check_both_are_trained(args: Namespace) -> None:
    meeting = 1000 * (boundary(args) or 0)
    low, high = args.min_timestep or 0, 1000 if args.max_timestep is None else args.max_timestep
    if not low < meeting < high:
        idle = LOW if low >= meeting else HIGH
        raise UserError(
            f"--lora_per_expert: timesteps {low} to {high} never train the {idle} noise expert, which works "
            f"{'below' if idle == LOW else 'from'} {meeting:g}; train the other one alone with --dit"
        )


def _of_high_noise(args: Namespace) -> Namespace:
    """The arguments as the high-noise model's loading sees them."""
    files = {"lora_weight": "lora_weight_high_noise", "lora_multiplier": "lora_multiplier_high_noise"}
    return Namespace(
        **{
            **vars(args),
            "dit": args.dit_high_noise,
            "lora_expert": HIGH,
            **{name: getattr(args, other) for name, other in files.items() if hasattr(args, other)},
        }
    )


def _load(args: Namespace, device: torch.device, dtype: torch.dtype, home: torch.device | None = None) -> WanTransformer:
    weights = _open(args)
    with torch.device("meta"):
        model = WanTransformer(_geometry(args, weights))
    loaded: WanTransformer = load_frozen(model, weights, args, CARD, device, dtype, home=home)
    return loaded


def geometry(args: Namespace) -> WanGeometry:
    """Sizes of the transformer in `--dit`, from its header. UserError when it is not of `--task`."""
    return _geometry(args, _open(args))


def _geometry(args: Namespace, weights: Weights) -> WanGeometry:
    try:
        return geometry_of(weights.header, args.task)
    except UserError as error:
        raise UserError(f"{args.dit}: {error}") from None


def _open(args: Namespace) -> Weights:
    if not args.dit:
        raise UserError("--dit is required: the Wan transformer's weight file")
    expect(args.dit, "wan_transformer", "--dit")
    return open_weights(args.dit, PREFIXES)
