"""What a run asks of the cluster. Imports no Ray: a configuration can be read without it."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat

from mgdet.config_base import Config


class ClusterConfig(Config):
    """Resources and fault tolerance; nothing here changes what is learned."""

    address: str | None = Field(
        default=None, description="Ray address; null: RAY_ADDRESS if set, else a cluster of this machine alone"
    )
    workers: NonNegativeInt | Literal["auto"] = Field(
        default="auto", description="DDP workers; auto: one per GPU, else one per CPU up to 2; 0: in this process"
    )
    gpu: bool | Literal["auto"] = Field(default="auto", description="one GPU per worker; auto: if the cluster has any")
    cpus_per_worker: PositiveFloat | Literal["auto"] = Field(
        default="auto", description="auto: the cluster's CPUs divided by the workers, at most 16, at least 1"
    )
    max_failures: int = Field(default=3, ge=-1, description="worker crashes to recover from; -1: any number")
    collective_timeout_s: float = Field(default=300, gt=0, description="a worker silent for so long counts as lost")
