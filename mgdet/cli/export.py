"""Write a trained detector as a file that runs without mgdet: ONNX, TorchScript, torch.export, or weights alone.

    %(prog)s runs/quickstart                                   # quickstart.onnx, any number of images at a time
    %(prog)s runs/x --format torchscript --dynamic --out x.torchscript
    %(prog)s runs/x/checkpoints/step-00001234.pt --size 640x640 --batch 1 --out x.onnx
    %(prog)s runs/x model.postprocess.max_detections=300 --format safetensors

Inside the graph: scaling of bytes to the network's input, network, decoding, rescoring, thresholds, top-k and
suppression. Outside: resizing and padding (docs/export.md). The file appears once it gives the checkpoint's detections.
Exit status 0: written; 2: something you can mend, or detections that differ; 130: interrupted.
"""

import argparse
import re

from mgdet.cli.complete import add_overrides
from mgdet.cli.run import Command, add_plugins


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="a .pt file, or the directory of a run: path or URI")
    add_overrides(parser, "keys that leave the weights what they are, such as those of model.postprocess")
    parser.add_argument(
        "--format",
        default="onnx",
        choices=("onnx", "torchscript", "torch_export", "safetensors"),
        help="safetensors: weights alone (default onnx)",
    )
    parser.add_argument("--out", metavar="FILE", help="path or URI, replaced if it is there (default: NAME.onnx, ...)")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        "--size", type=_size, metavar="HxW", help="of the padded images (default: that of data.transform.resize)"
    )
    sizes.add_argument("--dynamic", action="store_true", help="images of any size")
    parser.add_argument("--batch", type=int, metavar="N", help="images at a time (default: any number)")
    parser.add_argument("--opset", type=int, metavar="N", help="version of ONNX's operators (default 18)")
    parser.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare with the checkpoint's detections before the file is written (default: yes)",
    )
    add_plugins(parser)


def run(args: argparse.Namespace) -> int:
    """Write the file and say what is in it."""
    from mgdet.exporting.export import export_detector
    from mgdet.inference.load import load_detector

    written = export_detector(
        load_detector(args.checkpoint, args.overrides, plugins=args.plugin),
        args.format,
        args.out,
        size=args.size,
        dynamic=args.dynamic,
        batch=args.batch,
        opset=args.opset,
        verified=args.verify,
    )
    print(f"written   {written.path} ({written.size / 2**20:.1f} MiB)")
    print(f"takes     {written.shape}" if args.format != "safetensors" else "takes     (weights alone)")
    print(f"verified  {written.verification or ('its weights' if args.verify else 'no')}")
    return 0


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r}: expected height and width, such as 640x640")
    return int(found[1]), int(found[2])


COMMAND = Command("export", __doc__, add_arguments, run, "nothing was written")
