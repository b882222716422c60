"""Data sets: importers that write Parquet shards, and the sharded reader that makes batches of them."""

from mgdet.data.coco import CocoSplit, import_coco
from mgdet.data.dataset import Annotation, ShardedDataset
from mgdet.data.decode import decode_image
from mgdet.data.loader import (
    Collate,
    LoaderConfig,
    TrainLoader,
    build_eval_loader,
    build_train_loader,
    resolve_loader_workers,
)
from mgdet.data.order import SampleKey, TrainBatches, epoch_order, eval_shard, steps_per_epoch
from mgdet.data.schema import Manifest, Progress, read_manifest
from mgdet.data.shapes import ShapesConfig, ensure_shapes, generate_shapes
from mgdet.data.transforms import EvalTransform, TrainTransform, TransformConfig

__all__ = [
    "Annotation",
    "CocoSplit",
    "Collate",
    "EvalTransform",
    "LoaderConfig",
    "Manifest",
    "Progress",
    "SampleKey",
    "ShapesConfig",
    "ShardedDataset",
    "TrainBatches",
    "TrainLoader",
    "TrainTransform",
    "TransformConfig",
    "build_eval_loader",
    "build_train_loader",
    "decode_image",
    "ensure_shapes",
    "epoch_order",
    "eval_shard",
    "generate_shapes",
    "import_coco",
    "read_manifest",
    "resolve_loader_workers",
    "steps_per_epoch",
]
