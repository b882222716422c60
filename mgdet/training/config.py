"""How a network is trained."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from mgdet.config_base import Config
from mgdet.training.optimizers import SGD, OptimizerConfig
from mgdet.training.schedules import MultiStep, ScheduleConfig


class EMAConfig(Config):
    """Exponential moving average of the weights; when on, it is what gets evaluated and deployed."""

    enabled: bool = Field(default=False, description="keep the average, evaluate it and deploy it")
    decay: float = Field(default=0.9998, gt=0, lt=1, description="share of the average that an update keeps, at most")
    warmup: int = Field(
        default=10, ge=1, le=10**9, description="decay after n updates is min(decay, (1 + n) / (warmup + n))"
    )


class TrainConfig(Config):
    """The loop. Batch size and learning rate are global: they mean the same on any number of workers."""

    epochs: int = Field(default=12, ge=1, le=1_000_000, description="passes over the training images")
    batch_size: int = Field(
        default=16, ge=1, le=65_536, description="images per optimizer step, over all workers and micro-batches"
    )
    accumulate: int = Field(
        default=1,
        ge=1,
        le=65_536,
        description="micro-batches per optimizer step: less memory, the same gradient, more time",
    )
    optimizer: OptimizerConfig = SGD()
    schedule: ScheduleConfig = MultiStep()
    ignore_overlap: float = Field(
        default=0.5,
        gt=0,
        le=2,
        description="background priors with at least this share of their own area in a crowd region are ignored; "
        "above 1: none, crowds are background",
    )
    clip_norm: float | None = Field(default=None, gt=0, le=1e30, description="bound on the gradient's norm; null: none")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="fp32",
        description="number format in which the network computes, losses stay in fp32; auto: bf16 where the hardware "
        "has it, else fp16 on a GPU, else fp32; fp16 scales the loss, so that small gradients do not vanish",
    )
    compile: Literal["auto", "on", "off"] = Field(
        default="off",
        description="compile the network with torch.compile for training: slow first steps, faster ones then; auto: on "
        "a GPU where all images of the network have few shapes",
    )
    ema: EMAConfig = EMAConfig()
    sync_bn: bool = Field(default=False, description="BatchNorm statistics over all workers (GPU only)")
    channels_last: bool = Field(default=False, description="memory layout NHWC; faster on GPUs with bf16")
    deterministic: bool = Field(default=True, description="deterministic kernels; costs some speed on GPUs")
    evaluate_every: int = Field(
        default=1, ge=1, le=1_000_000, description="epochs between evaluations; the last one always is"
    )
    checkpoint_every_steps: int | None = Field(
        default=None, ge=1, le=10**9, description="also within an epoch; null: at its end"
    )
    checkpoint_every_s: float | None = Field(
        default=10,
        gt=0,
        le=1e9,
        description="also within an epoch, after so many seconds, or less often where saving would take more than 2 % "
        "of the time or keep the storage busy for more than a tenth of it; null: not by time",
    )
    keep_best: int = Field(
        default=1, ge=1, le=1_000_000, description="checkpoints kept by val/AP, beside the two latest"
    )
    log_every: Annotated[int, Field(gt=0, le=10**9)] | Literal["auto"] = Field(
        default="auto", description="optimizer steps between metric points; auto: ten points an epoch, at most 50 steps"
    )
    profile: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="optimizer steps of the first epoch whose stages are measured, for a table and a trace in the "
        "run's directory; these steps are slower than others",
    )

    @field_validator("compile", mode="before")
    @classmethod
    def _yes_and_no(cls, value: Any) -> Any:
        """In YAML `on` and `off` are truth values."""
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value
