"""What musubi-tuner does to merge a LoRA into Wan: its generator loads the model with the LoRA, and saves it. Run with its python.

    python musubi_wan_merge.py DIT LORA OUTPUT      (PYTHONPATH has the checkout's src)

Its merge_lora.py knows HunyuanVideo only, and the generator's own --save_merged_model writes nothing for Wan.
"""

from __future__ import annotations

import sys

import torch


def main() -> None:
    if not torch.cuda.is_available():
        torch.cuda.current_device = lambda: 0  # a default argument of its T5 class asks at import time
    from musubi_tuner.utils.safetensors_utils import mem_eff_save_file
    from musubi_tuner.wan.configs import WAN_CONFIGS
    from musubi_tuner.wan.modules.model import load_wan_model
    from safetensors.torch import load_file

    dit, lora, output = sys.argv[1:]
    model = load_wan_model(
        WAN_CONFIGS["t2v-1.3B"], "cpu", dit, "torch", False, "cpu", torch.bfloat16, False,
        lora_weights_list=[load_file(lora)], lora_multipliers=[1.0],
    )  # fmt: skip
    mem_eff_save_file(model.state_dict(), output)


if __name__ == "__main__":
    main()
