"""All nodes of the pack."""

from __future__ import annotations

from .batch import BatchProcessor
from .cache import TextEncoderCache, VAELatentCache
from .caption import CaptionImages
from .dataset import DatasetConfig, DatasetConfigLoader
from .generators import FramePackVideoGenerator, HunyuanVideoGenerator, WanVideoGenerator
from .lora_tools import LoRAExtractor, LoRAFormatConverter, LoRAMerger, LoRAPostHocEMA
from .models import FramePackModelPaths, HunyuanVideoModelPaths, WanModelPaths
from .spec import Node
from .system import BackendInfo
from .train import FramePackLoRATrainer, HunyuanVideoLoRATrainer, WanLoRATrainer
from .training_settings import LoRATrainingConfig, OptimizerConfig, SamplingConfig
from .video import VideoComparison, VideoInput, VideoOutput
from .viewer import DatasetViewer

NODES: tuple[type[Node], ...] = (
    DatasetConfig,
    DatasetConfigLoader,
    CaptionImages,
    DatasetViewer,
    VAELatentCache,
    TextEncoderCache,
    WanModelPaths,
    HunyuanVideoModelPaths,
    FramePackModelPaths,
    LoRATrainingConfig,
    OptimizerConfig,
    SamplingConfig,
    WanLoRATrainer,
    HunyuanVideoLoRATrainer,
    FramePackLoRATrainer,
    WanVideoGenerator,
    HunyuanVideoGenerator,
    FramePackVideoGenerator,
    VideoInput,
    VideoComparison,
    VideoOutput,
    BatchProcessor,
    LoRAPostHocEMA,
    LoRAFormatConverter,
    LoRAMerger,
    LoRAExtractor,
    BackendInfo,
)
