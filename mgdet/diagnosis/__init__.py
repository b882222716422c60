"""The examination of a data set: what is wrong with its annotations and pictures, by id. `examine.py` runs it."""
