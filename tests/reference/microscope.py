"""What the microscope counts and ranks, one prior at a time."""

from mgdet.structures import IGNORED


def counted(owner, levels, num_levels, num_objects):
    """Positives by level and object, and ignored priors by level, of the labels `owner` of all priors."""
    positives = [[0] * num_objects for _ in range(num_levels)]
    ignored = [0] * num_levels
    for label, level in zip(owner, levels, strict=True):
        if label >= 0:
            positives[level][label] += 1
        elif label == IGNORED:
            ignored[level] += 1
    return positives, ignored


def rank(values, prior):
    """The place of a prior among all priors of an object: 1 and how many are better; 0 if it is worth nothing."""
    if not values[prior] > 0:
        return 0
    better = 0
    for value in values:
        if value > values[prior]:
            better += 1
    return better + 1
