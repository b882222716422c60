"""Sweeps: their configuration, the record of each trial, tables and pictures. Imports neither Ray nor MLflow."""
