"""What a training stage can be told: the configuration of the train entry points."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from training.augmentation import Augmentation
from training.step import OptimizerConfig

_OR_NONE = ("validate_every", "patience", "checkpoint_every", "shuffle_shards")
_HOW_IT_IS_RUN = (
    "corpus",
    "output",
    "accumulate",
    "checkpoint_every",
    "log_every",
    "keep",
    "overlays",
    "profile",
    "workers",
    "tracking",
    "verify",
)


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
    min_count: int | None = None
    """Fewest workers to go on with while there is no room for ``count``; workers may then come and
    go, and each change resumes at the newest checkpoint. None always waits for ``count``."""
    cpus: int = 1
    """CPUs of each worker."""
    use_gpu: bool = False
    """Give each worker a GPU (NCCL) instead of CPUs alone (gloo)."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed's ZeRO stage: what is split over the workers. In bf16 and fp16 0 means 1."""
    decoders: int = 0
    """Processes of each worker that decode samples; 0 decodes on a thread of the worker."""
    activation_checkpointing: bool = False
    """Compute the image encoder's blocks again in the backward pass instead of keeping what they
    computed: less memory, more time."""
    compile: bool = False
    """Compile the image encoder with ``torch.compile``; takes minutes at the start."""
    max_failures: int = 3
    """Failures in a row without a newer checkpoint that a stage survives, each time going on at
    the newest one."""
    resize_seconds: float = 300.0
    """Least time between changes to a larger number of workers. Each goes back to the newest
    checkpoint, so let it be longer than what lies between two of them."""


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
    few_shot: float | None = None
    """Learn from this share of the training clips alone, drawn by ``seed`` from each class alike;
    none learns from all of them."""
    shuffle_shards: int | None = None
    """Shards within which samples are shuffled, so that a corpus on object storage is read shard by
    shard; none shuffles all of them together."""
    verify: bool = False
    """Compare the sha256 of each shard on a local disk when it is first read, which reads all of
    it; those from object storage are always compared."""
    val_split: str = "val"
    """Split whose M_J decides which checkpoint is best."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The model."""
    batch: int = 16
    """Samples in a step, over all workers."""
    accumulate: int = 1
    """Parts in which each of ``workers.count`` workers computes its share of a step, one after the
    other, to need less memory; fewer workers take more parts."""
    steps: int | None = None
    """Steps to train; give this or ``epochs``."""
    epochs: float | None = None
    """Passes over the training samples; give this or ``steps``."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of forward and backward; the optimizer always keeps fp32."""
    class_weight: float = 0.0
    """Weight of the two class losses, on a corpus with object masks; 0 trains without them."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW and its schedule."""
    augmentation: Augmentation | None = field(default_factory=Augmentation)
    """Seeded changes of the training samples, or none."""
    ema: float | None = None
    """Decay of a running mean of the weights, such as 0.999, which is then what is validated and
    saved as the model; none validates and saves the weights themselves."""
    validate_every: int | None = None
    """Steps between two validations, each with a checkpoint; none validates after each epoch. The
    last step always has one."""
    patience: int | None = None
    """Validations without a better M_J after which the stage ends early; none trains to the end."""
    checkpoint_every: int | None = None
    """Steps between two checkpoints to resume from, beside those of the validations."""
    log_every: int = 20
    """Steps between two points of the curves."""
    keep: int = 1
    """Best checkpoints to keep beside the newest one."""
    overlays: int = 4
    """Clips of the val split whose masks are drawn at each validation."""
    profile: tuple[int, ...] = ()
    """Steps of which rank 0 writes a profile, for chrome://tracing or ui.perfetto.dev."""
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
        for name in ("batch", "accumulate", "log_every", "keep", *_OR_NONE):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        workers, share = self.workers, self.batch // self.accumulate
        if not 1 <= workers.count <= share:
            raise ValueError(
                f"workers.count must lie between 1 and {share}, the batch of {self.batch} over "
                f"accumulate {self.accumulate}: got {workers.count}"
            )
        if workers.min_count is not None and not 1 <= workers.min_count <= workers.count:
            raise ValueError(
                f"workers.min_count must lie between 1 and the workers.count of {workers.count}, "
                f"got {workers.min_count}"
            )
        if self.few_shot is not None and not 0 < self.few_shot <= 1:
            raise ValueError(f"few_shot is a share above 0 and up to 1, got {self.few_shot}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema is a decay between 0 and 1, got {self.ema}")
        if self.ema is not None and workers.zero_stage == 3:
            raise ValueError(
                "ema needs the whole weights on each worker: give workers.zero_stage 0, 1 or 2"
            )
        if workers.compile and workers.zero_stage == 3:
            raise ValueError(
                "workers.compile does not go with workers.zero_stage 3, which hides weights from "
                "the compiler: give zero_stage 0, 1 or 2"
            )
        if min(self.profile, default=1) < 1:
            raise ValueError(f"profile names steps from 1 on, got {min(self.profile)}")

    def steps_per_epoch(self, samples: int) -> int:
        """Steps that see a split of ``samples`` training samples once."""
        return math.ceil(samples / self.batch)

    def total_steps(self, samples: int) -> int:
        """Steps of the stage on a split of ``samples`` training samples."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(math.ceil(self.epochs * samples / self.batch), 1)

    def parts(self, world: int) -> int:
        """Parts in which each of ``world`` workers computes its share of a step.

        With fewer workers than the stage asks for there are more of them, so that none is larger;
        but where a part is one sample and shares are unequal, some have two.
        """
        largest, planned = (math.ceil(self.batch / count) for count in (world, self.workers.count))
        return min(math.ceil(self.accumulate * largest / planned), self.batch // world)

    def what_is_learned(self) -> dict[str, Any]:
        """The configuration without what only says how and where the stage is run."""
        told = asdict(self)
        for name in _HOW_IT_IS_RUN:
            del told[name]
        return told
