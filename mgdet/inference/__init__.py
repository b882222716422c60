"""Trained detectors: loaded from a checkpoint, evaluated, and used to predict."""
