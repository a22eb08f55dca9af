"""What PyTorch and transformers have."""

from __future__ import annotations

from ..entry import Entry, betas, flag, number, whole

_EPS = number("eps", 1e-8, 0, 1, "Added below the fraction, so that nothing is divided by 0.")
_DECAY = number("weight_decay", 0.01, 0, 10, "How much weights are pulled towards 0 in each step, times the learning rate.")

ENTRIES = (
    Entry(
        "AdamW", "Adam", "torch.optim:AdamW", "A safe choice, and what others are compared with.", "arXiv:1711.05101", 8,
        arguments=(betas(0.9, 0.999), _EPS, _DECAY, flag("amsgrad", False, "Never forget the largest squared gradient.")),
    ),
    Entry(
        "RAdam", "Adam", "torch.optim:RAdam", "AdamW that warms itself up.", "arXiv:1908.03265", 8,
        arguments=(betas(0.9, 0.999), _EPS, number("weight_decay", 0, 0, 10, _DECAY.help),
                   flag("decoupled_weight_decay", False, "Decay as in AdamW.")),
    ),
    Entry(
        "SGD", "Plain", "torch.optim:SGD", "The gradient itself, with momentum if asked; needs a far higher learning rate.",
        "Robbins and Monro 1951", 0, rate="0.1 to 10 for a LoRA; find it by trying", learning_rate=1.0,
        arguments=(number("momentum", 0, 0, 1, "Average of gradients; 0 for none.", below=True),
                   number("weight_decay", 0, 0, 10, _DECAY.help), flag("nesterov", False, "Look ahead by the momentum.")),
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
                   number("beta1", None, 0, 1, "Momentum; None for none.", below=True),
                   number("weight_decay", 0.0, 0, 10, _DECAY.help)),
    ),
    Entry(
        "Muon", "Second order", "torch.optim:Muon", "Momentum made orthogonal; for networks of matrices only, such as LoRA.",
        "kellerjordan.github.io/posts/muon", 4, learning_rate=1e-3, rate="3e-4 to 2e-3 for a LoRA",
        arguments=(number("momentum", 0.95, 0, 1, "How slowly momentum follows.", below=True), flag("nesterov", True, "Look ahead by it."),
                   number("weight_decay", 0.1, 0, 10, _DECAY.help), whole("ns_steps", 5, 1, 99, "Iterations that make it orthogonal.")),
    ),
)  # fmt: skip
