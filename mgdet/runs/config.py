"""What a run asks of the cluster. Imports no Ray: a configuration can be read without it."""

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, field_validator, model_validator

from mgdet.config_base import Config

WEEK = 7 * 24 * 3600.0
"""The longest time to wait for anything, s."""
Workers: TypeAlias = Annotated[int, Field(gt=0, le=4096)]


class ClusterConfig(Config):
    """Resources and fault tolerance; nothing here changes what is learned."""

    address: str | None = Field(
        default=None, description="Ray address; null: RAY_ADDRESS if set, else a cluster of this machine alone"
    )
    workers: Annotated[int, Field(ge=0, le=4096)] | Literal["auto"] | tuple[Workers, Workers] = Field(
        default="auto",
        description="DDP workers; auto: one per GPU, else one per CPU up to 2; 0: in this process; [min, max]: "
        "elastic, as many of them as the cluster has room for",
    )
    gpu: bool | Literal["auto"] = Field(default="auto", description="one GPU per worker; auto: if the cluster has any")
    cpus_per_worker: Annotated[float, Field(ge=0.01, le=4096)] | Literal["auto"] = Field(
        default="auto", description="auto: the cluster's CPUs divided by the workers, at most 16, at least 1"
    )
    max_failures: int = Field(
        default=3, ge=-1, le=1_000_000, description="worker crashes to recover from; -1: any number"
    )
    scale_up_timeout_s: float = Field(
        default=0,
        ge=0,
        le=WEEK,
        description="wait so long for an autoscaler to bring nodes; 0: those that are there must do",
    )
    start_timeout_s: float = Field(
        default=60, gt=0, le=WEEK, description="elastic: try fewer workers after waiting so long"
    )
    resize_interval_s: float = Field(
        default=60, gt=0, le=WEEK, description="elastic: look so often whether more workers fit"
    )
    collective_timeout_s: float = Field(
        default=300, ge=1, le=WEEK, description="a worker silent for so long counts as lost"
    )

    @field_validator("workers")
    @classmethod
    def _min_first(cls, value: int | str | tuple[int, int]) -> int | str | tuple[int, int]:
        if isinstance(value, tuple) and value[0] >= value[1]:
            raise ValueError(f"{list(value)}: expected [min, max] with min < max")
        return value

    @model_validator(mode="after")
    def _says_what_to_wait_for(self) -> Self:
        unknown = [key for key in ("workers", "gpu", "cpus_per_worker") if getattr(self, key) == "auto"]
        if self.scale_up_timeout_s and unknown:
            raise ValueError(
                f"scale_up_timeout_s = {self.scale_up_timeout_s:g} needs to know what to wait for, and auto asks for "
                f"what is there: set {', '.join(unknown)}"
            )
        return self

    def of_one_worker(self) -> dict[str, float]:
        """CPUs and GPUs that one worker of the (resolved) configuration reserves, under Ray's names for them."""
        return {"CPU": float(self.cpus_per_worker), **({"GPU": 1.0} if self.gpu else {})}

    @property
    def fewest(self) -> int:
        """The smallest number of workers with which a (resolved) training runs; 0 is this process alone."""
        return self.workers[0] if isinstance(self.workers, tuple) else int(self.workers)

    @property
    def most(self) -> int:
        """The largest number of workers that a (resolved) training uses."""
        return self.workers[1] if isinstance(self.workers, tuple) else int(self.workers)
