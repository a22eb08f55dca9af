"""All nodes of the pack: those that serve every family, and three of each family that has nodes."""

from __future__ import annotations

from .batch import BatchProcessor
from .cache import TextEncoderCache, VAELatentCache
from .caption import CaptionImages
from .dataset import DatasetConfig, DatasetConfigLoader
from .families import families
from .generate import generator
from .lora_tools import LoRAExtractor, LoRAFormatConverter, LoRAMerger, LoRAPostHocEMA
from .models import model_paths
from .spec import Node
from .system import BackendInfo
from .train import lora_trainer
from .training_settings import LoRATrainingConfig, OptimizerConfig, SamplingConfig
from .video import VideoComparison, VideoInput, VideoOutput
from .viewer import DatasetViewer

_FAMILIES = families()

NODES: tuple[type[Node], ...] = (
    DatasetConfig,
    DatasetConfigLoader,
    CaptionImages,
    DatasetViewer,
    VAELatentCache,
    TextEncoderCache,
    *(model_paths(*family) for family in _FAMILIES),
    LoRATrainingConfig,
    OptimizerConfig,
    SamplingConfig,
    *(lora_trainer(*family) for family in _FAMILIES),
    *(generator(*family) for family in _FAMILIES),
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

BY_NAME = {node.spec.id.removeprefix("MusubiTuner_"): node for node in NODES}
