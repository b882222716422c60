"""Which images a training sees, and how they become batches."""

from pydantic import Field

from mgdet.config_base import Config
from mgdet.data.loader import LoaderConfig
from mgdet.data.shapes import ShapesConfig
from mgdet.data.transforms import TransformConfig
from mgdet.storage import Place


class DataConfig(Config):
    """Which images, and how they become batches."""

    uri: Place = Field(description="prepared data set (see jobs/prepare.py): a local path or a pyarrow.fs URI")
    train_split: str = "train"
    val_split: str = "val"
    generate: ShapesConfig | None = Field(
        default=None, description="make this synthetic data set at `uri` if nothing is there yet"
    )
    transform: TransformConfig = TransformConfig()
    loader: LoaderConfig = LoaderConfig()
