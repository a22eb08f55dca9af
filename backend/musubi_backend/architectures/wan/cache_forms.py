"""What the latent caching tool has to know about Wan's items before anything is decoded. No torch."""

from __future__ import annotations

from collections.abc import Collection

from ...cache.forms import FRAMES, HEIGHT, WIDTH, CacheForms, floats, main_latents, whole
from ...counted import counted
from ...dataset.config import ImageDataset
from ...dataset.items import MediaItem
from ...errors import UserError
from ..card import Task
from .card import CARD
from .geometry import MASK_CHANNELS, WanGeometry
from .one_frame import MOST_CONTROLS, OneFrame
from .settings import ImageSettings


def settings_of(item: MediaItem) -> OneFrame:
    """The positions that the dataset file gives for one-frame items. UserError where it gives none, or they do not fit."""
    dataset = item.dataset
    if not isinstance(dataset, ImageDataset) or dataset.fp_1f_clean_indices is None or dataset.fp_1f_target_index is None:
        raise UserError(
            "--one_frame needs an image dataset with fp_1f_clean_indices (positions of the control images) and fp_1f_target_index"
        )
    return OneFrame(dataset.fp_1f_target_index, dataset.fp_1f_clean_indices)


def unusable(item: MediaItem, images: ImageSettings) -> str | None:
    """Why an item cannot be cached with these settings; None when it can."""
    dataset = item.dataset
    if item.controls and isinstance(dataset, ImageDataset) and (dataset.no_resize_control or dataset.control_resolution is not None):
        return f"{dataset.label}: control images must have the image's size; remove no_resize_control and control_resolution"
    if not images.one_frame:
        return None
    try:
        settings = settings_of(item)
    except UserError as error:
        return str(error)
    wanted, found = len(settings.controls), len(item.controls)
    return None if found == wanted else f"--one_frame needs {counted(wanted, 'control image')}, and control_directory has {found}"


def cached_names(item: MediaItem, images: ImageSettings) -> Collection[str]:
    """Base names of the tensors in an item's latent caches."""
    imaged = images.one_frame or images.starts_from_image
    return [
        "latents",
        *(["latents_image"] if imaged else []),
        *(["clip"] if images.clip else []),
        *(["f_indices"] if images.one_frame else ["latents_control"] if item.controls else []),
    ]


def cache_forms(task: Task, geometry: WanGeometry) -> CacheForms:
    """What the caches of a task are like. Features are those of one image, or of several one after the other."""
    channels, video = CARD.latent_channels, (FRAMES, HEIGHT, WIDTH)
    latents = {**main_latents(channels), "f_indices": whole((FRAMES,), optional=True)}
    if task.start_image:
        latents["latents_image"] = floats((MASK_CHANNELS + channels, *video))
        if task.image_encoder:
            images = ((None, geometry.image_dim), (range(1, MOST_CONTROLS + 1), None, geometry.image_dim))
            both = (2, None, geometry.image_dim)
            hint = ": it holds the first frame but not the last (wan_cache_latents --last_frame)"
            latents["clip"] = floats(both, hint=hint) if task.last_frame else floats(*images)
    if task.control:
        latents["latents_control"] = floats((channels, *video))
    return CacheForms(latents, {"t5": floats((range(1, geometry.text_len + 1), geometry.text_dim))})
