"""The settings of a training, by concern. Standard library only: the nodes judge them too, when a prompt is queued."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..lora.settings import NetworkSettings
from ..memory.settings import MemorySettings
from ..options.settings import Settings


@dataclass(frozen=True)
class LengthSettings(Settings):
    """How long it trains, and from which random numbers."""

    max_train_steps: int = 1600
    max_train_epochs: int | None = None
    gradient_accumulation_steps: int = 1
    seed: int | None = None


@dataclass(frozen=True)
class ModelSettings(Settings):
    """The files and values of the model that files and messages name; its architecture reads its own."""

    dit: str = ""
    vae: str | None = None
    guidance_scale: float = 1.0


@dataclass(frozen=True)
class ComputeSettings(Settings):
    """Precision, CUDA and processes."""

    mixed_precision: str | None = None
    cuda_allow_tf32: bool = False
    cuda_cudnn_benchmark: bool = False
    ddp_timeout: int | None = None


@dataclass(frozen=True)
class BatchSettings(Settings):
    """Which items, and how their timesteps are spread over an epoch."""

    dataset_config: str = ""
    num_timestep_buckets: int | None = None


@dataclass(frozen=True)
class ValidationSettings(Settings):
    """Which items are not trained on, and when their loss is measured."""

    validation_split: float = 0.0
    validation_seed: int | None = None
    validate_every_n_steps: int | None = None
    validate_every_n_epochs: int | None = None
    max_validation_steps: int | None = None


@dataclass(frozen=True)
class OptimizerSettings(Settings):
    """What updates the LoRA; its learning rate is the schedule's."""

    optimizer_type: str = ""
    optimizer_args: tuple[str, ...] | None = None
    max_grad_norm: float = 1.0


@dataclass(frozen=True)
class ScheduleSettings(Settings):
    """The learning rate and how it changes. A number of steps may be a share of all, as a float."""

    learning_rate: float = 2e-6
    lr_scheduler: str = "constant"
    lr_warmup_steps: int | float = 0
    lr_decay_steps: int | float = 0
    lr_scheduler_num_cycles: int = 1
    lr_scheduler_power: float = 1
    lr_scheduler_timescale: int | None = None
    lr_scheduler_min_lr_ratio: float | None = None
    lr_scheduler_type: str = ""
    lr_scheduler_args: tuple[str, ...] | None = None


@dataclass(frozen=True)
class TimestepSampling(Settings):
    """Which noise levels are trained and how much each counts: `--timestep_sampling` and its companions."""

    timestep_sampling: str = "sigma"
    discrete_flow_shift: float = 1.0
    sigmoid_scale: float = 1.0
    weighting_scheme: str = "none"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = 1.29
    min_timestep: int | None = None
    max_timestep: int | None = None
    preserve_distribution_shape: bool = False
    steps_per_expert: int = 1

    @property
    def low(self) -> float:
        """Smallest t in thousandths."""
        return 0.0 if self.min_timestep is None else float(self.min_timestep)

    @property
    def high(self) -> float:
        """Largest t in thousandths."""
        return 1000.0 if self.max_timestep is None else float(self.max_timestep)


@dataclass(frozen=True)
class SavingSettings(Settings):
    """Where files go, when they are written and which stay."""

    output_dir: str = ""
    output_name: str = ""
    save_precision: str | None = None
    save_every_n_epochs: int | None = None
    save_every_n_steps: int | None = None
    save_last_n_epochs: int | None = None
    save_last_n_epochs_state: int | None = None
    save_last_n_steps: int | None = None
    save_last_n_steps_state: int | None = None
    save_state: bool = False
    save_state_on_train_end: bool = False


@dataclass(frozen=True)
class ResumeSettings(Settings):
    """The state to go on from."""

    resume: str | None = None
    resume_learning_rate: float | None = None


@dataclass(frozen=True)
class MetadataSettings(Settings):
    """What is written into the LoRA file in words."""

    no_metadata: bool = False
    training_comment: str | None = None
    metadata_title: str | None = None
    metadata_author: str | None = None
    metadata_description: str | None = None
    metadata_license: str | None = None
    metadata_tags: str | None = None
    metadata_reso: str | None = None
    metadata_arch: str | None = None


@dataclass(frozen=True)
class LoggingSettings(Settings):
    """TensorBoard and Weights & Biases."""

    logging_dir: str | None = None
    log_with: str | None = None
    log_prefix: str | None = None
    log_tracker_name: str | None = None
    log_config: bool = False
    log_optimizer_every: int | None = None
    wandb_run_name: str | None = None
    wandb_api_key: str | None = None


@dataclass(frozen=True)
class SampleSettings(Settings):
    """Sample videos while training."""

    sample_prompts: str | None = None
    sample_every_n_steps: int | None = None
    sample_every_n_epochs: int | None = None
    sample_at_first: bool = False


@dataclass(frozen=True)
class TrainingSettings(Settings):
    """Everything that training itself reads; what only an architecture knows stays with it."""

    length: LengthSettings = LengthSettings()
    models: ModelSettings = ModelSettings()
    computing: ComputeSettings = ComputeSettings()
    batches: BatchSettings = BatchSettings()
    validation: ValidationSettings = ValidationSettings()
    network: NetworkSettings = field(default_factory=NetworkSettings)
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    timesteps: TimestepSampling = TimestepSampling()
    saving: SavingSettings = SavingSettings()
    resuming: ResumeSettings = ResumeSettings()
    metadata: MetadataSettings = MetadataSettings()
    logging: LoggingSettings = LoggingSettings()
    sampling: SampleSettings = SampleSettings()
    memory: MemorySettings = field(default_factory=MemorySettings)
    show_timesteps: str | None = None
    vram: str | None = None
    dry_step: bool = False
