"""The picture of a prediction: throughput by the number of GPUs, and what their time is spent on."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from scaling_model import UNIMPORTANT, Prediction


def draw(found: Sequence[Prediction], path: Path) -> None:
    """Write the picture to a file, in the format of its suffix."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    speed, shares = figure.subplots(1, 2)
    gpus = [p.gpus for p in found]
    first = found[0].images_per_s / found[0].gpus
    speed.loglog(gpus, [first * n for n in gpus], color="0.7", label="proportional")
    speed.loglog(gpus, [p.images_per_s for p in found], marker="o", label="predicted")
    speed.set(xlabel="GPUs", ylabel="images per second", xticks=gpus)
    speed.set_xticks(gpus, [str(n) for n in gpus], fontsize=7)
    speed.minorticks_off()
    speed.legend()
    every = dict.fromkeys(name for p in found for name in p.lost)
    names = [name for name in every if max(p.lost.get(name, 0.0) for p in found) >= UNIMPORTANT]
    layers = [[p.useful for p in found], *([p.lost.get(name, 0.0) for p in found] for name in names)]
    shares.stackplot(range(len(gpus)), layers, labels=["useful", *names])
    shares.set(xlabel="GPUs", ylabel="share of the GPUs' time", ylim=(0, 1), xlim=(0, len(gpus) - 1))
    shares.set_xticks(range(len(gpus)), [str(n) for n in gpus], fontsize=7)
    shares.legend(loc="lower left", fontsize=8)
    figure.savefig(path, dpi=120)
