"""ComfyUI as the host of our nodes: its folders, models, memory, videos and images, and what it shows of a running node."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy.cli_args import args
from comfy_api.latest import InputImpl, Types
from comfy_execution.graph_utils import ExecutionBlocker
from comfy_execution.progress import get_progress_state

from ..backend.musubi_backend.architectures import cards
from ..backend.musubi_backend.errors import UserError
from . import comfy_language
from .jobs import config as configuration
from .jobs.config import DEMO_MODELS
from .jobs.environment import visible_gpus
from .split_models import with_indexes
from .translations import translated

try:
    from server import PromptServer
except ImportError:  # ComfyUI used as a library, without its server
    PromptServer = None

_PREVIEW_SIDE = 512


def running_server() -> Any:
    """What tells ComfyUI's pages something; None without it."""
    return getattr(PromptServer, "instance", None)


class ComfyHost:
    """ComfyUI as seen by a running node."""

    def __init__(self, node_id: str | None = None, prompt: Any = None, extra: Any = None) -> None:
        self.node_id = node_id
        self._shows_samples = False  # the node's own part of the page does
        self._made_by = {"workflow": extra.get("workflow") if isinstance(extra, dict) else None, "prompt": prompt}
        self.home = configuration.default_home()
        self.input_dir = Path(folder_paths.get_input_directory())
        self.output_dir = Path(folder_paths.get_output_directory())
        self.temp_dir = Path(folder_paths.get_temp_directory())
        self.keeps_metadata = not args.disable_metadata
        self.warnings: list[str] = []

    def allowed_roots(self) -> list[Path]:
        user = Path(folder_paths.get_user_directory())
        own = [self.input_dir, self.output_dir, self.temp_dir, Path(folder_paths.models_dir), user, self.home]
        return [*own, *configuration.load(self.home).allowed_roots]

    def model_names(self, key: str) -> list[str]:
        names = with_indexes(folder_paths.get_filename_list(key), lambda name: folder_paths.get_full_path(key, name) is not None)
        return [*names, *(name for name in self._demo_models(key) if name not in names)]

    def model_path(self, key: str, name: str) -> Path:
        for spelling in (name, name.replace("\\", "/"), name.replace("/", os.sep)):
            path = folder_paths.get_full_path(key, spelling)
            if path:
                return Path(path)
        demo = self._demo_models(key).get(name)
        if demo is None:
            raise UserError(f"{name} is not in ComfyUI's {key} folders")
        return demo

    def _demo_models(self, key: str) -> dict[str, Path]:
        """The tiny models of the quickstart by name: offered by this pack's nodes only, as no other node could use them."""
        if key not in {part.folder for card in cards().values() for part in card.parts}:
            return {}
        return {path.name: path for path in sorted((self.home / DEMO_MODELS).glob("*.safetensors"))}

    def loras_dir(self) -> Path:
        return Path(folder_paths.get_folder_paths("loras")[0])

    def progress(self, value: float, total: float, text: str, preview: Path | None = None) -> None:
        if self.node_id is None:
            return
        image = _preview_image(preview) if preview and not self._shows_samples else None
        get_progress_state().update_progress(self.node_id, value, total, image)
        server = running_server()
        if text and server is not None:
            # one user's other pages show it too, but no page of another user, whose node of this number is another one
            server.send_progress_text(self.said(text), self.node_id, server.client_id if args.multi_user else None)

    def said(self, text: str) -> str:
        """In the language of whoever queued the prompt that runs."""
        server = running_server()
        return translated(text, comfy_language.of_client(server.client_id if server is not None else None))

    def show_job(self, job: str) -> None:
        server = running_server()
        if self.node_id is None or server is None:
            return
        self._shows_samples = True
        server.send_sync("musubi_tuner.node", {"node": self.node_id, "job": job}, server.client_id)

    def begins(self, job: str) -> None:
        server = running_server()
        if self.node_id is not None and server is not None:
            server.send_sync("musubi_tuner.begins", {"node": self.node_id, "job": job}, server.client_id)

    def check_interrupted(self) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()

    def free_gpu_memory(self) -> str:
        comfy.model_management.unload_all_models()
        gc.collect()
        comfy.model_management.soft_empty_cache()
        device = comfy.model_management.get_torch_device()
        if device.type == "cpu":
            return ""
        return f"{comfy.model_management.get_free_memory(device) / 2**30:.1f} GB of GPU memory are free"

    def video(self, path: Path) -> Any:
        return InputImpl.VideoFromFile(str(path))

    def frames(self, path: Path) -> Any:
        return InputImpl.VideoFromFile(str(path)).get_components().images

    def lora_model(self, path: Path) -> Any:
        return comfy.utils.load_torch_file(str(path), safe_load=True)

    def video_file(self, video: Any) -> Path:
        source = video.get_stream_source()
        if isinstance(source, str):
            return Path(source)
        self.temp_dir.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(suffix=".mp4", dir=self.temp_dir)
        os.close(handle)
        video.save_to(name)
        return Path(name)

    def image_files(self, images: Any, folder: Path, name: str) -> list[Path]:
        from PIL import Image

        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for number, image in enumerate(images):
            pixels = (image.clamp(0, 1) * 255).round().byte().cpu().numpy()
            files.append(folder / f"{name}_{number:03d}.png")
            Image.fromarray(pixels).save(files[-1])
        return files

    def images(self, arrays: Sequence[Any], folder: Path) -> Any:
        import numpy as np

        return torch.from_numpy(np.stack(arrays)).float() / 255

    def clip(self, arrays: Sequence[Any], fps: Fraction, path: Path) -> Any:
        return InputImpl.VideoFromComponents(Types.VideoComponents(images=self.images(arrays, path.parent), audio=None, frame_rate=fps))

    def input_files(self, suffixes: tuple[str, ...]) -> list[str]:
        if not self.input_dir.is_dir():
            return []
        return sorted(path.name for path in self.input_dir.iterdir() if path.suffix.lower() in suffixes and path.is_file())

    def gpus(self) -> list[str]:
        if comfy.model_management.get_torch_device().type != "cuda":
            return []
        return visible_gpus(torch.cuda.device_count())

    def workflow(self) -> dict[str, Any] | None:
        return self._made_by if self.keeps_metadata and self._made_by["prompt"] else None

    def not_yet(self, why: str) -> Any:
        return ExecutionBlocker(None)  # with a message, each node behind it would be shown as failed


def _preview_image(path: Path) -> tuple[str, Any, int] | None:
    """The first image of a sample. A sample that cannot be read must not end a training."""
    import av

    try:
        with av.open(str(path)) as container:
            frame = next(container.decode(video=0))
            return ("JPEG", frame.to_image(), _PREVIEW_SIDE)
    except (av.FFmpegError, StopIteration, OSError):
        return None
