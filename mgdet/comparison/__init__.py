"""Detectors compared on the same images: differences with intervals, and where one wins."""
