"""How a network is trained."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from mgdet.config_base import Config


class SGDConfig(Config):
    """SGD with momentum; the usual choice for COCO (0.01 for a batch of 16)."""

    name: Literal["sgd"] = "sgd"
    lr: float = Field(default=0.01, gt=0, description="learning rate for this global batch size")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="share of the last step that goes on")
    weight_decay: float = Field(default=1e-4, ge=0, description="factor of the weights in their gradient")
    decay_norm_and_bias: bool = Field(default=True, description="false: no weight decay on biases and norm layers")


class AdamWConfig(Config):
    """AdamW; learns faster from random initialisation on small data."""

    name: Literal["adamw"] = "adamw"
    lr: float = Field(default=5e-4, gt=0, description="learning rate for this global batch size")
    betas: tuple[float, float] = Field(
        default=(0.9, 0.999), description="decay of the running means of gradients and of their squares"
    )
    weight_decay: float = Field(default=0.05, ge=0, description="share by which weights shrink in a step, times lr")
    decay_norm_and_bias: bool = Field(default=False, description="false: no weight decay on biases and norm layers")


class _Warmup(Config):
    warmup_steps: NonNegativeInt | Literal["auto"] = Field(
        default="auto", description="optimizer steps of linear warm-up; auto: 500, at most a tenth of the training"
    )
    warmup_factor: float = Field(default=0.001, gt=0, le=1, description="learning rate of the first step / lr")


class MultiStepConfig(_Warmup):
    """Multiply by `gamma` at each milestone; milestones are epochs."""

    name: Literal["multistep"] = "multistep"
    milestones: tuple[float, ...] = Field(default=(8, 11), description="epochs after which lr is multiplied by gamma")
    gamma: float = Field(default=0.1, gt=0, le=1, description="factor of lr at each milestone")


class CosineConfig(_Warmup):
    """Half a cosine from lr to lr * final_factor (Loshchilov and Hutter, ICLR 2017, equation 5, one cycle)."""

    name: Literal["cosine"] = "cosine"
    final_factor: float = Field(default=0.0, ge=0, le=1, description="learning rate of the last step / lr")


class EMAConfig(Config):
    """Exponential moving average of the weights; when on, it is what gets evaluated and deployed."""

    enabled: bool = Field(default=False, description="keep the average, evaluate it and deploy it")
    decay: float = Field(default=0.9998, gt=0, lt=1, description="share of the average that an update keeps, at most")
    warmup: int = Field(default=10, ge=1, description="decay after n updates is min(decay, (1 + n) / (warmup + n))")


class TrainConfig(Config):
    """The loop. Batch size and learning rate are global: they mean the same on any number of workers."""

    epochs: int = Field(default=12, ge=1, description="passes over the training images")
    batch_size: int = Field(
        default=16, ge=1, description="images per optimizer step, over all workers and micro-batches"
    )
    accumulate: int = Field(default=1, ge=1, description="micro-batches per optimizer step")
    optimizer: Annotated[SGDConfig | AdamWConfig, Field(discriminator="name")] = SGDConfig()
    schedule: Annotated[MultiStepConfig | CosineConfig, Field(discriminator="name")] = MultiStepConfig()
    clip_norm: float | None = Field(default=None, gt=0, description="bound on the gradient's norm; null: none")
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="bf16: autocast of network; losses stay fp32"
    )
    ema: EMAConfig = EMAConfig()
    sync_bn: bool = Field(default=False, description="BatchNorm statistics over all workers (GPU only)")
    channels_last: bool = Field(default=False, description="memory layout NHWC; faster on GPUs with bf16")
    deterministic: bool = Field(default=True, description="deterministic kernels; costs some speed on GPUs")
    evaluate_every: int = Field(default=1, ge=1, description="epochs between evaluations; the last one always is")
    checkpoint_every_steps: int | None = Field(default=None, ge=1, description="also within an epoch; null: at its end")
    keep_best: int = Field(default=1, ge=1, description="checkpoints kept by val/AP, beside the two latest")
    log_every: PositiveInt | Literal["auto"] = Field(
        default="auto", description="optimizer steps between metric points; auto: ten points an epoch, at most 50 steps"
    )
