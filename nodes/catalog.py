"""All nodes of the pack."""

from __future__ import annotations

from .batch import BatchProcessor
from .cache import TextEncoderCache, VAELatentCache
from .dataset import DatasetConfig, DatasetConfigLoader
from .generate import WanVideoGenerator
from .models import WanModelPaths
from .spec import Node
from .system import BackendInfo
from .train import WanLoRATrainer
from .training_settings import LoRATrainingConfig, OptimizerConfig, SamplingConfig
from .video import VideoInput, VideoOutput

NODES: tuple[type[Node], ...] = (
    DatasetConfig,
    DatasetConfigLoader,
    VAELatentCache,
    TextEncoderCache,
    WanModelPaths,
    LoRATrainingConfig,
    OptimizerConfig,
    SamplingConfig,
    WanLoRATrainer,
    WanVideoGenerator,
    VideoInput,
    VideoOutput,
    BatchProcessor,
    BackendInfo,
)
