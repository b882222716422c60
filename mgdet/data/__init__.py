"""Data sets: importers that write Parquet shards, and the sharded reader that makes batches of them.

The modules behind the names below are imported with their first use, so that `mgdet.data.formats` can be imported
without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__all__ = [
    "CocoSplit",
    "Manifest",
    "ShapesConfig",
    "ShardedDataset",
    "build_eval_loader",
    "build_train_loader",
    "generate_shapes",
    "import_annotations",
    "import_coco",
    "read_manifest",
]

if TYPE_CHECKING:
    from mgdet.data.dataset import ShardedDataset
    from mgdet.data.formats.coco import CocoSplit, import_coco
    from mgdet.data.importer import import_annotations
    from mgdet.data.loader import build_eval_loader, build_train_loader
    from mgdet.data.schema import Manifest, read_manifest
    from mgdet.data.shapes import ShapesConfig, generate_shapes
else:
    _MODULES = {
        "CocoSplit": "formats.coco",
        "Manifest": "schema",
        "ShapesConfig": "shapes",
        "ShardedDataset": "dataset",
        "build_eval_loader": "loader",
        "build_train_loader": "loader",
        "generate_shapes": "shapes",
        "import_annotations": "importer",
        "import_coco": "formats.coco",
        "read_manifest": "schema",
    }

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module 'mgdet.data' has no attribute {name!r}")
        value = getattr(import_module(f"mgdet.data.{_MODULES[name]}"), name)
        globals()[name] = value
        return value
