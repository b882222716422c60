"""Data sets: importers that write Parquet shards, and the sharded reader that makes batches of them."""

from mgdet.data.coco import CocoSplit, import_coco
from mgdet.data.dataset import ShardedDataset
from mgdet.data.loader import build_eval_loader, build_train_loader
from mgdet.data.schema import Manifest, read_manifest
from mgdet.data.shapes import ShapesConfig, generate_shapes

__all__ = [
    "CocoSplit",
    "Manifest",
    "ShapesConfig",
    "ShardedDataset",
    "build_eval_loader",
    "build_train_loader",
    "generate_shapes",
    "import_coco",
    "read_manifest",
]
