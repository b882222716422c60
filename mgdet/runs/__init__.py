"""The life of a run: its record, its resources, its start, its end. Imports no Ray."""
