"""The configuration of data sets: which images a training sees, and how they become batches."""

from pydantic import Field

from mgdet.config_base import Config
from mgdet.data.loader import LoaderConfig
from mgdet.data.shapes import ShapesConfig
from mgdet.data.transforms import TransformConfig
from mgdet.storage import Place


class DataConfig(Config):
    """Which images, and how they become batches."""

    uri: Place = Field(description="prepared data set (see mgdet prepare): a local path or a pyarrow.fs URI")
    train_split: str = Field(default="train", description="split that is trained on")
    val_split: str = Field(default="val", description="split that is evaluated")
    generate: ShapesConfig | None = Field(
        default=None, description="make this synthetic data set at `uri` if nothing is there yet"
    )
    max_bad_images: int = Field(
        default=0,
        ge=0,
        le=10**9,
        description="images of the training split, over all workers, that a training goes on without if they cannot be "
        "read; one more ends it. 0: the first one does, because prepare has decoded every image",
    )
    transform: TransformConfig = TransformConfig()
    loader: LoaderConfig = LoaderConfig()
