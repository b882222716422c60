"""Sweeps: what is searched, what each trial has reached, and the pictures of it. Knows no Ray and no MLflow."""
