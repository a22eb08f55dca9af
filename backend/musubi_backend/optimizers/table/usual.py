"""What PyTorch and transformers have."""

from __future__ import annotations

from ..entry import PAIR, Argument, Entry, betas, flag, number, whole
from .shared import DECAY_HELP, FOREACH, MAXIMIZE, decay, eps

_CAPTURE = (
    flag("capturable", False, "Keep the number of the step on the GPU."),
    flag("differentiable", False, "Let gradients go through the step."),
)
_FUSED = flag("fused", None, "One kernel for the whole step; None: where there is one.")

ENTRIES = (
    Entry(
        "AdamW", "Adam", "torch.optim:AdamW", "A safe choice, and what others are compared with.", "arXiv:1711.05101", 8,
        arguments=(betas(0.9, 0.999), eps(), decay(0.01), flag("amsgrad", False, "Never forget the largest squared gradient.")),
        hidden=(_FUSED, FOREACH, MAXIMIZE, *_CAPTURE),
    ),
    Entry(
        "RAdam", "Adam", "torch.optim:RAdam", "AdamW that warms itself up.", "arXiv:1908.03265", 8,
        arguments=(betas(0.9, 0.999), eps(), decay(0), flag("decoupled_weight_decay", False, "Decay as in AdamW.")),
        hidden=(FOREACH, MAXIMIZE, *_CAPTURE),
    ),
    Entry(
        "SGD", "Plain", "torch.optim:SGD", "The gradient itself, with momentum if asked; needs a far higher learning rate.",
        "Robbins and Monro 1951", 0, rate="0.1 to 10 for a LoRA; find it by trying", learning_rate=1.0,
        arguments=(number("momentum", 0, 0, 1, "Average of gradients; 0 for none.", below=True), decay(0),
                   flag("nesterov", False, "Look ahead by the momentum.")),
        hidden=(number("dampening", 0, 0, 1, "Share of the gradient that does not get into the momentum."), _FUSED, FOREACH, MAXIMIZE,
                _CAPTURE[1]),
    ),
    Entry(
        "Adafactor", "Low memory", "transformers.optimization:Adafactor",
        "Keeps rows and columns of the squared gradients only. Sets its own rate, unless relative_step=False.", "arXiv:1804.04235", 0.3,
        rate="none with relative_step=True; else 1e-4 to 1e-3", needs="transformers",
        arguments=(flag("relative_step", True, "Choose the learning rate by itself."),
                   flag("scale_parameter", True, "Scale the rate by the size of each weight."),
                   flag("warmup_init", False, "Start the own rate low."),
                   number("clip_threshold", 1.0, 0, 1000, "Longest update, as a root mean square."),
                   number("decay_rate", -0.8, -1, 0, "Exponent of the averages."),
                   number("beta1", None, 0, 1, "Momentum; None for none.", below=True), decay()),
        hidden=(Argument("eps", PAIR, (1e-30, 1e-3), "Added to squares, and the least size of a weight for its rate.", 0, 1),),
    ),
    Entry(
        "Muon", "Second order", "torch.optim:Muon", "Momentum made orthogonal; for networks of matrices only, such as LoRA.",
        "kellerjordan.github.io/posts/muon", 4, learning_rate=1e-3, rate="3e-4 to 2e-3 for a LoRA",
        arguments=(number("momentum", 0.95, 0, 1, "How slowly momentum follows.", below=True), flag("nesterov", True, "Look ahead by it."),
                   number("weight_decay", 0.1, 0, 10, DECAY_HELP), whole("ns_steps", 5, 1, 99, "Iterations that make it orthogonal.")),
        hidden=(Argument("ns_coefficients", PAIR, (3.4445, -4.775, 2.0315), "Of the polynomial of each iteration.", -100, 100),
                number("eps", 1e-7, 0, 1, "Added to the length of the momentum.")),
    ),
)  # fmt: skip
