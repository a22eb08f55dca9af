"""HunyuanVideo answers the architecture protocol. Model and encoder code is imported when a method needs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from ...inference.usual import UsualSampling
from ..sizes import video_latent_shape
from .card import CARD
from .fitting import FIRST_FRAME
from .settings import HunyuanSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ...cache.forms import CacheForms
    from ..protocol import Batch, ConditionEncoder, Inputs, LatentDecoder, LatentEncoder, TextEncoder
    from ..request import LineOption, SampleRequest
    from ..sampler import Sampler
    from .model import HunyuanTransformer

GUIDANCE = "guidance"


class HunyuanVideo(UsualSampling):
    card = CARD
    settings: HunyuanSettings = HunyuanSettings()

    def configured(self, given: Mapping[str, Any]) -> HunyuanVideo:
        """The generator has no `--vae_tiling`: it always works on tiles."""
        return super().configured({"vae_tiling": True, **given})

    def cache_forms(self) -> CacheForms:
        from ...cache.forms import CacheForms, floats, main_latents, mask
        from .load import geometry

        sizes = geometry(self.settings)
        texts = {"llm": floats(("tokens", sizes.text_dim)), "llm_mask": mask(("tokens",)), "clipL": floats((sizes.pooled_dim,))}
        return CacheForms(main_latents(CARD.latent_channels), texts)

    def latent_encoder(self, device: torch.device) -> LatentEncoder:
        from .encode import HunyuanLatentEncoder

        return HunyuanLatentEncoder.load(self.settings.vae, device)

    def text_encoder(self, device: torch.device) -> TextEncoder:
        from .encode import HunyuanTextEncoder

        return HunyuanTextEncoder.load(self.settings.text, self.settings.text_encoder_dtype, device)

    def latent_decoder(self, device: torch.device) -> LatentDecoder:
        from .encode import HunyuanLatentDecoder

        return HunyuanLatentDecoder.load(self.settings.vae, device)

    def condition_encoder(self, device: torch.device) -> ConditionEncoder:
        from .conditions import HunyuanConditionEncoder

        return HunyuanConditionEncoder(self.settings.vae, device)

    def training_dtype(self, precision: str) -> torch.dtype:
        from .load import trained_dtype

        return trained_dtype(self.settings, precision)

    def generating_dtype(self, device: torch.device) -> torch.dtype:
        from .load import generated_dtype

        return generated_dtype(self.settings, device)

    def transformer(self, device: torch.device, dtype: torch.dtype) -> HunyuanTransformer:
        from .load import load_transformer

        return load_transformer(self.settings, device, dtype)

    def weight_name(self, name: str) -> str:
        from .geometry import original_name

        return original_name(name)

    def scale_latents(self, latents: Tensor) -> Tensor:
        """The caches hold the VAE's own latents."""
        from ...encoders.hunyuan_vae import SCALING_FACTOR

        return latents * SCALING_FACTOR

    def inputs(self, transformer: nn.Module, noisy: Tensor, timesteps: Tensor, batch: Batch, skip_blocks: Sequence[int] = ()) -> Inputs:
        model = cast("HunyuanTransformer", transformer)
        tensors = cast("dict[str, Tensor]", batch)
        return (
            noisy, timesteps, tensors["llm"], tensors["llm_mask"], tensors["clipL"], self._guidance(noisy, tensors),
            self._image_channels(noisy, tensors) if model.geometry.takes_image else None, skip_blocks,
        ), {}  # fmt: skip

    def _guidance(self, noisy: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """What the model is given: when sampling 1000 times the guidance; in training, as in musubi-tuner, the bare number."""
        if GUIDANCE in batch:
            return batch[GUIDANCE]
        return noisy.new_full((len(noisy),), float(self.settings.guidance_scale))

    def _image_channels(self, noisy: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """[B, 16, F', H', W']: the first frame, which in training is the clip's own, and zeros behind it."""
        first = batch[FIRST_FRAME] if FIRST_FRAME in batch else self.scale_latents(batch["latents"][:, :, :1].float())
        channels = noisy.new_zeros(noisy.shape)
        channels[:, :, :1] = first
        return channels

    @property
    def line_options(self) -> Mapping[str, LineOption]:
        other = ("ei", "cn", "ci", "cim", "of")  # images this model does not take
        return {name: option for name, option in super().line_options.items() if name not in other}

    def fitted(self, request: SampleRequest) -> SampleRequest:
        from .fitting import asked, checked

        return checked(asked(request, self.settings), self.settings)

    def fitted_sample(self, request: SampleRequest) -> SampleRequest:
        from .fitting import checked

        return checked(request, self.settings)

    def latent_shape(self, width: int, height: int, frames: int) -> tuple[int, int, int, int]:
        return video_latent_shape(CARD, width, height, frames)

    def sampler(self, request: SampleRequest) -> Sampler:
        """Euler over shifted sigmas; of a video that is changed, only the last steps."""
        from ...inference.samplers import Euler, shifted

        sigmas = [*shifted([1 - step / request.steps for step in range(request.steps)], request.flow_shift), 0.0]
        return Euler(sigmas[-self.steps(request) - 1 :])

    def steps(self, request: SampleRequest) -> int:
        if request.images.source_video is None or request.strength is None:
            return request.steps
        return int(request.steps * request.strength)

    def sample(
        self,
        transformer: nn.Module,
        request: SampleRequest,
        texts: Mapping[str, Mapping[str, Tensor]],
        conditions: Mapping[str, Tensor],
        *,
        device: torch.device,
        progress: Callable[[int], object] | None = None,
    ) -> Tensor:
        model = cast("HunyuanTransformer", transformer)
        assert request.embedded_guidance is not None  # the flag has a default, and so have sample prompts
        given = {**conditions, GUIDANCE: model.embedded_guidance(request.embedded_guidance)[0]}
        return super().sample(transformer, request, texts, given, device=device, progress=progress)

    def describe(self, request: SampleRequest) -> dict[str, str]:
        described = super().describe(request)
        described["sample_solver"] = "euler"
        if request.images.source_video is not None:
            described["strength"] = str(request.strength)
        return described


ADAPTER = HunyuanVideo()
