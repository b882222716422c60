"""mgdet: dense object detectors with mutual assignment, trained on a Ray cluster."""

__version__ = "0.1.0"
