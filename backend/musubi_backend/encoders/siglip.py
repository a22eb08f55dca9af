"""SigLIP's image encoder, as FramePack uses it (github.com/lllyasviel/FramePack): all 729 token features of one image.

Files: a Hugging Face folder, or a single file such as ComfyUI's sigclip_vision_patch14_384.safetensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import model_files
from .lean_transformers import empty_weights, from_transformers

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from ..weights.loader import Weights

KIND = "siglip"
HEAD_DIM = 72
PUBLISHED_TOKENS, PUBLISHED_SIDE = 729, 384


class Siglip:
    """Images to token features."""

    def __init__(self, model: Any, device: torch.device, kept: torch.dtype) -> None:
        self.model, self.device, self.kept = model, device, kept

    @classmethod
    def load(cls, path: str | Path, device: torch.device, dtype: torch.dtype | None = None, *, flag: str = "--image_encoder") -> Siglip:
        """The encoder at `path`; dtype as `model_files.dtypes_for`. UserError when it is something else or incomplete."""

        (SiglipVisionModel,) = from_transformers("SiglipVisionModel")

        files = model_files.model_files(path, KIND, flag, subfolder="image_encoder", section="vision_config")
        weights = files.open()
        kept, computed = model_files.dtypes_for(weights, device, dtype)
        with model_files.sized_by(files.source), empty_weights():
            model = SiglipVisionModel(_config(files, weights))
        return cls(model_files.fill(model, weights, device, computed, model_files.without_prefix), device, kept)

    def encode(self, images: Sequence[np.ndarray]) -> Tensor:
        """uint8 images [H, W, 3] of any size -> features [B, tokens, width] in the dtype `kept`, on its device. Each is
        stretched to the encoder's square."""
        import numpy as np
        import torch
        from PIL import Image

        side = self.model.config.image_size
        squares = [np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)) for image in images]
        pixels = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.5)
        with torch.no_grad():
            features: Tensor = self.model(pixel_values=pixels.to(self.device, self.model.dtype)).last_hidden_state
        return features.to(self.kept)


def _config(files: model_files.ModelFiles, weights: Weights) -> Any:
    (SiglipVisionConfig,) = from_transformers("SiglipVisionConfig")

    width, channels, patch, _ = model_files.shape_of(weights, "patch_embedding.weight", files.source)
    tokens = model_files.shape_of(weights, "position_embedding.weight", files.source)[0]
    side = PUBLISHED_SIDE if tokens == PUBLISHED_TOKENS else round(tokens**0.5) * patch
    return SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=model_files.shape_of(weights, "layers.0.mlp.fc1.weight", files.source)[0],
        num_hidden_layers=model_files.count_layers(weights, r"encoder\.layers\.(\d+)\."),
        num_attention_heads=files.size("num_attention_heads", width, HEAD_DIM),
        num_channels=channels,
        image_size=int(files.number("image_size", side)),
        patch_size=patch,
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
        vision_use_head=False,
    )
