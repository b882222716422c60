"""The assignment microscope: which priors of an image learn which task from which object, and why."""
