"""What a training stage can be told: the configuration of the train entry points."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from training.augmentation import Augmentation
from training.step import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model to train; see ``model.build_save``."""

    name: str = "save_tiny"
    """save_vit_b, save_vit_l, save_vit_h or save_tiny."""
    image_size: int = 96
    """Side of the square input in pixels, a multiple of 16."""
    sam_checkpoint: str | None = None
    """Path or URI of the official SAM checkpoint; none for save_tiny."""
    vggish_checkpoint: str | None = None
    """Path or URI of the VGGish checkpoint; none for save_tiny."""
    adapter_init: Literal["parent", "zero"] | None = None
    """How adapters start; None is the model's own default."""
    spatial: Literal["dense", "bottleneck", "depthwise"] | None = None
    """Convolutions of the image adapters; None is the model's own default."""
    audio_adapter: Literal["chain", "sama"] = "chain"
    """Form of the audio adapters."""


@dataclass(frozen=True, kw_only=True)
class WorkersConfig:
    """How a stage is run; none of it changes what is learned, but for rounding."""

    count: int = 2
    """Workers, each a process with a GPU or some CPUs of its own."""
    cpus: int = 1
    """CPUs of each worker."""
    use_gpu: bool = False
    """Give each worker a GPU (NCCL) instead of CPUs alone (gloo)."""
    zero_stage: Literal[0, 1, 2] = 1
    """DeepSpeed's ZeRO stage: what is split over the workers."""
    max_failures: int = 3
    """Worker failures after which the stage gives up; each resumes at the newest checkpoint."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One stage of training: a corpus, a model, and what to do with them."""

    stage: str
    """Name of the stage and of its folder in ``output``: letters, digits, '_' and '-'."""
    corpus: str
    """Path or URI of the corpus."""
    output: str = "runs/training"
    """Folder or URI under which checkpoints are kept; must be reachable by every worker."""
    parent: str | None = None
    """Model to start from, weights only: a checkpoint or model folder, an s3:// URI,
    models:/name@alias or runs:/id/model."""
    seed: int = 0
    """Decides initial weights, order of samples and augmentation."""
    train_split: str = "train"
    """Split to learn from; every frame with a mask is a sample."""
    val_split: str = "val"
    """Split whose M_J decides which checkpoint is best."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The model."""
    batch: int = 16
    """Samples in a step, over all workers."""
    steps: int | None = None
    """Steps to train; give this or ``epochs``."""
    epochs: float | None = None
    """Passes over the training samples; give this or ``steps``."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of forward and backward; the optimizer always keeps fp32."""
    class_weight: float = 0.0
    """Weight of the two class losses, on a corpus with object masks; 0 trains without them."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW and its schedule."""
    augmentation: Augmentation | None = field(default_factory=Augmentation)
    """Seeded changes of the training samples, or none."""
    validate_every: int = 500
    """Steps between two validations, each with a checkpoint; the last step always has one."""
    log_every: int = 20
    """Steps between two points of the curves."""
    keep: int = 1
    """Best checkpoints to keep beside the newest one."""
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    """How the stage is run."""
    tracking: str | None = None
    """MLflow server (sqlite:///path, http://host) that gets a run; none by default, unless
    MLFLOW_TRACKING_URI names one."""

    def __post_init__(self) -> None:
        if not self.stage or not all(c.isalnum() or c in "_-" for c in self.stage):
            raise ValueError(f"stage must be letters, digits, '_' and '-', got {self.stage!r}")
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(
                f"give either steps or epochs, got steps {self.steps} and epochs {self.epochs}"
            )
        if (self.steps or self.epochs or 0) <= 0:
            raise ValueError(f"there is nothing to train in {self.steps or self.epochs} steps")
        for name in ("batch", "validate_every", "log_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 1 <= self.workers.count <= self.batch:
            raise ValueError(
                f"workers.count must lie between 1 and the batch of {self.batch}, "
                f"got {self.workers.count}"
            )

    def total_steps(self, samples: int) -> int:
        """Steps of the stage on a split of ``samples`` training samples."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(math.ceil(self.epochs * samples / self.batch), 1)

    def what_is_learned(self) -> dict[str, Any]:
        """The configuration without what only says how and where the stage is run."""
        told = asdict(self)
        for name in ("corpus", "output", "log_every", "keep", "workers", "tracking"):
            del told[name]
        return told
