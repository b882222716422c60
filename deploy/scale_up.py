"""Bring up the nodes that a training needs, then run the training.

    python deploy/scale_up.py --workers 2 --cpus 6 --gpus 1 -- python jobs/train.py my.yaml cluster.workers=2 ...

A cluster that scales from zero has no GPU when a job begins, and mgdet refuses workers that do not fit into the nodes
that are there. So this asks Ray's autoscaler for the room first and waits. It runs in the job, on the head.
"""

import argparse
import logging
import os
import signal
import sys
import time


def places(worker: dict[str, float]) -> int:
    """How many workers fit on the nodes that are alive; each lies on one node. Counts what nodes have, used or not."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(int(min(node.get(key, 0) // amount for key, amount in worker.items())) for node in nodes)


def main() -> int:
    """Status 2 where the nodes do not come in time, else that of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, required=True, help="as cluster.workers")
    parser.add_argument("--cpus", type=float, required=True, help="CPUs of a worker, as cluster.cpus_per_worker")
    parser.add_argument("--gpus", type=float, default=1, help="GPUs of a worker (default 1; 0 for none)")
    parser.add_argument("--wait", type=float, default=1800, metavar="SECONDS", help="default 1800")
    parser.add_argument("command", nargs="+", help="what to run then, after `--`")
    args = parser.parse_args()

    import ray
    from ray.autoscaler.sdk import request_resources

    worker = {"CPU": args.cpus, **({"GPU": args.gpus} if args.gpus else {})}
    ray.init(address="auto", logging_level=logging.ERROR)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # `ray job stop`: the `finally` below shall run
    deadline, seen = time.monotonic() + args.wait, -1
    try:
        request_resources(bundles=[worker] * args.workers)
        while (there := places(worker)) < args.workers:
            if time.monotonic() > deadline:
                print(
                    f"error: room for {there} of {args.workers} workers with {worker} after {args.wait:g} s. "
                    "`ray status` on the head says why: limits of the node types, or no capacity.",
                    file=sys.stderr,
                )
                return 2
            if there != seen:
                print(f"room for {there} of {args.workers} workers; waiting for nodes", flush=True)
                seen = there
            time.sleep(1)
    finally:
        # A request stays after its job, and so would the nodes. From here on the training holds them, and the idle
        # timeout bridges its start.
        request_resources(bundles=[])
        ray.shutdown()
    os.execvp(args.command[0], args.command)


if __name__ == "__main__":
    sys.exit(main())
