"""What each fault costs: runs the tests that provoke them and prints the table of docs/operations.md.

    python benchmarks/faults.py                   # about 15 minutes on two cores
    python benchmarks/faults.py --read faults.jsonl

Steps done again depend on how far apart checkpoints are (two steps, in most of these tests), seconds on how long Ray
and torch take to start: read them as the fixed part of what a fault costs you.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = (
    *("tests/test_faults.py", "tests/test_copies.py", "tests/training/test_nonfinite.py"),
    "tests/cluster/test_faults.py",
    "tests/cluster/test_notice.py",
)
NODES = "tests/cluster/test_nodes.py"


def measure(file: Path) -> int:
    """Run the tests, of whatever tier; each appends a line to the file."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "", *TESTS, NODES]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "MGDET_FAULTS": str(file)}).returncode


def table(lines: list[str]) -> str:
    """Markdown, a row for each fault, in the order of the lines."""
    rows = ["| fault | steps done again | seconds until the next step | test |", "|---|---|---|---|"]
    for found in map(json.loads, lines):
        rows.append("| {fault} | {steps_repeated} | {seconds:.1f} | `{test}` |".format(**found))
    return "\n".join(rows)


def main() -> int:
    """Exit status of the tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--read", type=Path, metavar="FILE", help="print the table of an earlier measurement")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        file = args.read or Path(directory) / "faults.jsonl"
        status = 0 if args.read else measure(file)
        print(table(file.read_text().splitlines()))
    return status


if __name__ == "__main__":
    sys.exit(main())
