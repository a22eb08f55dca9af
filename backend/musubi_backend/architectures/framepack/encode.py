"""FramePack's encoders behind the architecture protocol: clips to sections, captions, images of requests, sections to video."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...dataset.config import ImageDataset
from ...dataset.images import fit
from ...encoders.clip_text import ClipText
from ...encoders.hunyuan_vae import SCALING_FACTOR, HunyuanVAE
from ...encoders.llama import LlamaEncoder
from ...encoders.siglip import Siglip
from ...errors import UserError
from ...inference.request_media import read
from ..hunyuan_video.encode import both_cut, generator_of, images_of, load_text_encoders, load_vae, padded, vae_and_kept, video_of
from .card import CARD
from .one_frame import OneFrame, latent_mask
from .section_texts import parse_sections
from .sections import cut, frames_of

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from ...dataset.decoding import DecodedEntry
    from ..request import SampleRequest
    from .settings import FramePackSettings, ItemSettings

logger = logging.getLogger(__name__)

TEXT_LENGTH = 512


class FramePackLatentEncoder:
    """Caches sections of clips, or with `--one_frame` images with their control images."""

    def __init__(self, vae: HunyuanVAE, stored: torch.dtype, siglip: Siglip, items: ItemSettings) -> None:
        self.vae, self.stored, self.siglip, self.items = vae, stored, siglip, items

    @classmethod
    def load(cls, settings: FramePackSettings, device: torch.device) -> FramePackLatentEncoder:
        """From `--vae` and `--image_encoder`. UserError for a missing or wrong file."""
        return cls(*vae_and_kept(settings.vae, device, CARD), load_siglip(settings.image_encoder, device), settings.items)

    def encode(self, batch: Sequence[DecodedEntry]) -> list[list[dict[str, Tensor]]]:
        """Per entry one file for each section, or one for an image: "latents" scaled, and what generation would be given besides."""
        if self.items.one_frame:
            return [[self._one_frame(entry)] for entry in batch]
        window = batch[0].entry.item.dataset.fp_latent_window_size
        frames = frames_of(batch[0].entry.sections or 1, window)
        generators = [generator_of(_name(entry)) for entry in batch]
        clips = self.vae.encode(video_of([entry.pixels[:frames] for entry in batch]), generators) * SCALING_FACTOR
        clips = clips.to("cpu", self.stored)
        features = self.siglip.encode([entry.pixels[0] for entry in batch])
        return [
            [{**section, "image_embeddings": image} for section in cut(clip, window, self.items.f1)]
            for clip, image in zip(clips, features.cpu(), strict=True)
        ]

    def _one_frame(self, entry: DecodedEntry) -> dict[str, Tensor]:
        dataset = entry.entry.item.dataset
        assert isinstance(dataset, ImageDataset) and dataset.fp_1f_target_index is not None  # `unusable` rejects others
        images = [*entry.controls, entry.pixels]
        latents = [self._image(pixels, f"{_name(entry)} {number}") for number, pixels in enumerate(images)]
        controls = [_masked(one, alpha) for one, alpha in zip(latents[:-1], entry.control_alphas, strict=True)]
        settings = OneFrame(
            dataset.fp_1f_target_index,
            tuple(dataset.fp_1f_clean_indices or (0,)),
            self.items.one_frame_no_2x,
            self.items.one_frame_no_4x,
            dataset.fp_1f_no_post,
        )
        image = self.siglip.encode([entry.controls[0][0]])[0]
        found = settings.conditions(controls, dataset.fp_latent_window_size)
        return {"latents": latents[-1], **found, "image_embeddings": image.cpu()}

    def _image(self, pixels: np.ndarray, name: str) -> Tensor:
        """uint8 [1, H, W, 3] -> scaled latents [16, 1, H/8, W/8] on the CPU. Each by itself: the VAE would compress several frames."""
        return (self.vae.encode(video_of([pixels]), [generator_of(name)])[0] * SCALING_FACTOR).to("cpu", self.stored)


def _name(entry: DecodedEntry) -> str:
    return entry.entry.latent_paths(CARD)[0].name


def _masked(latents: Tensor, alpha: np.ndarray | None) -> Tensor:
    return latents if alpha is None else latents * latent_mask(alpha, *latents.shape[-2:]).to(latents.dtype)


class FramePackTextEncoder:
    def __init__(self, llama: LlamaEncoder, clip: ClipText, instruction: str | None) -> None:
        self.llama, self.clip, self.instruction = llama, clip, instruction

    @classmethod
    def load(cls, settings: FramePackSettings, device: torch.device) -> FramePackTextEncoder:
        """From `--text_encoder1`, `--text_encoder2` and `--fp8_llm`, in the dtypes of their files. UserError for a missing or wrong
        file, and when there is no tokenizer for it."""
        return cls(*load_text_encoders(settings.text, device), settings.custom_system_prompt)

    def encode(self, captions: Sequence[str]) -> list[dict[str, Tensor]]:
        """Per caption {"llama_vec" [512, dim] with zeros at the end, "llama_attention_mask" bool [512], "clip_l_pooler" [dim]}."""
        pairs = zip(self.llama.encode(captions, self.instruction), self.clip.encode(captions), strict=True)
        entries = []
        for features, (pooled, _) in pairs:
            rows, mask = padded(features, TEXT_LENGTH)
            entries.append({"llama_vec": rows, "llama_attention_mask": mask, "clip_l_pooler": pooled})
        return entries

    def cut(self, captions: Sequence[str]) -> list[str]:
        """Per caption what either encoder leaves out of it, "" where that is nothing."""
        return both_cut(self.llama.cut(captions, self.instruction), self.clip.cut(captions))


class FramePackConditionEncoder:
    """Encodes the images of requests. Loaded on the device; freed before the transformer is."""

    def __init__(self, vae: HunyuanVAE, siglip: Siglip) -> None:
        self.vae, self.siglip = vae, siglip

    @classmethod
    def load(cls, settings: FramePackSettings, device: torch.device) -> FramePackConditionEncoder:
        """As `FramePackLatentEncoder.load`."""
        return cls(load_vae(settings.vae, device, CARD), load_siglip(settings.image_encoder, device))

    def encode(self, request: SampleRequest) -> dict[str, Tensor]:
        """{"start 0" [16, 1, H/8, W/8], "image 0" [729, dim], and the same for other sections with images of their own; "end";
        "control 0", ... already masked}. Without a start image, section 0 starts from grey."""
        import numpy as np

        size = (request.width, request.height)
        found: dict[str, Tensor] = {}
        for section, path in parse_sections(request.images.start).items():
            pixels = fit(read(path), size)
            found[f"start {section}"] = self._latents(pixels, request)
            found[f"image {section}"] = self.siglip.encode([pixels])[0]
        if not found:
            black = np.zeros((request.height, request.width, 3), dtype=np.uint8)
            grey = np.full(black.shape, 127.5, dtype=np.float32)
            found = {"start 0": self._latents(grey, request), "image 0": self.siglip.encode([black])[0]}
        if request.images.end:
            found["end"] = self._latents(fit(read(request.images.end), size), request)
        for number, path in enumerate(request.images.controls):
            pixels, alpha = _read_control(path, size)
            mask = _read_mask(request.images.masks[number]) if number < len(request.images.masks) else alpha
            found[f"control {number}"] = _masked(self._latents(pixels, request), mask)
        return found

    def _latents(self, pixels: np.ndarray, request: SampleRequest) -> Tensor:
        """Scaled latents [16, 1, H/8, W/8] in float32 on the CPU, the same for the same seed and image."""
        name = f"{request.seed} {hashlib.sha256(pixels.tobytes()).hexdigest()}"
        latents = self.vae.encode(video_of([pixels[None]]), [generator_of(name)])[0]
        return (latents * SCALING_FACTOR).float().cpu()


def _read_control(path: str, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray | None]:
    """A control image as uint8 [H, W, 3], brought to `size`, and its alpha channel in its own size, None without one."""
    image = read(path, keep_alpha=True)
    return fit(image[..., :3], size), image[..., 3] if image.shape[-1] == 4 else None


def _read_mask(path: str) -> np.ndarray:
    """A mask as uint8 [H, W], white where the control image counts."""
    import numpy as np
    from PIL import Image

    return np.asarray(Image.fromarray(read(path)).convert("L"))


class FramePackLatentDecoder:
    """Sections to video: two at a time with an overlap that is blended, all at once with `--bulk_decode`."""

    def __init__(self, vae: HunyuanVAE, window: int, bulk: bool) -> None:
        self.vae, self.window, self.bulk = vae, window, bulk

    @classmethod
    def load(cls, settings: FramePackSettings, device: torch.device) -> FramePackLatentDecoder:
        """As `FramePackLatentEncoder.load`."""
        return cls(load_vae(settings.vae, device, CARD), settings.sections.latent_window_size, settings.sections.bulk_decode)

    @property
    def tiled(self) -> nn.Module:
        """What decodes tiles, as `HunyuanVAE.tiled`."""
        return self.vae.tiled

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents [16, F', H', W'] -> float32 video [3, 4(F'-1)+1, 8H', 8W'] in 0..1 on the CPU."""
        if self.bulk or latents.shape[1] <= self.window + 1:
            return images_of(self._video(latents))
        # as the sections were made: the first with the start image, each with the next one, which is then blended in
        starts = range(0, latents.shape[1] - 1, self.window)
        pieces = [latents[:, start + bool(start) : start + 1 + 2 * self.window] for start in starts]
        overlap = self.window * 4 - 3
        video = self._video(pieces[-1]).cpu()
        for piece in reversed(pieces[:-1]):
            video = blended(self._video(piece).cpu(), video, overlap)
        return images_of(video)

    def _video(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents[None] / SCALING_FACTOR)[0]


def blended(first: Tensor, second: Tensor, overlap: int) -> Tensor:
    """Two videos [3, F, H, W] that share `overlap` frames, one fading into the other there."""
    import torch

    weights = torch.linspace(1, 0, overlap, dtype=first.dtype).view(1, -1, 1, 1)
    shared = weights * first[:, -overlap:] + (1 - weights) * second[:, :overlap]
    return torch.cat([first[:, :-overlap], shared, second[:, overlap:]], dim=1)


def load_siglip(path: str | None, device: torch.device) -> Siglip:
    """SigLIP from `--image_encoder`, in the dtype of its file."""
    if not path:
        raise UserError("--image_encoder is missing: give SigLIP's file, e.g. sigclip_vision_patch14_384.safetensors")
    logger.info("Loading image encoder from %s", path)
    return Siglip.load(path, device)
