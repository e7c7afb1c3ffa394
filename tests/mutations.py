"""Readings with one of their measurements changed: a claim that never turns false under any of these can't fail."""

import dataclasses

import numpy as np

SETTINGS = """settings times steps rank_times mu threshold noises rate_noises true shrinkage perturbation value decay
    learning_rate weight_decay momentum radius label_noise redundant level learning_rates label_noises batch_sizes gamma
    divisor delta peak grid x y""".split()
CHANGES = {  # of the values, and of their place in the innermost list they are in
    "reversed": lambda values, place: values[::-1],
    "inverted": lambda values, place: 1 / np.where(values == 0, 1e-9, values),
    "negated": lambda values, place: -values,
    "complement": lambda values, place: 1 - values,
    "one and a half": lambda values, place: 1.5 * values,
    "a tenth": lambda values, place: 0.1 * values,
    "mirrored": lambda values, place: np.flip(values, axis=-1),
    "constant": lambda values, place: np.full_like(values, 1.0),
    "growing along the list": lambda values, place: values * 10.0**place,
    "shrinking along the list": lambda values, place: values * 10.0**-place,
}


def parts_of(value):
    """(name, part) of what a reading, a list or a dictionary is made of; parts of a list share their name."""
    if dataclasses.is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, (list, tuple)):
        return [("", part) for part in value]
    return []


def measurements(value, place: tuple = ()) -> list[tuple]:
    """Places of all arrays and floats within a reading but its settings and axes; those in a list count as one."""
    if isinstance(value, (np.ndarray, float)):
        return [place]
    found = []
    for name, part in parts_of(value):
        if name not in SETTINGS:
            found += measurements(part, (*place, name))
    return list(dict.fromkeys(found))


def changed(value, place: tuple, change, index: int = 0):
    """A copy of a reading with the measurement at this place changed."""
    if not place:
        mutated = np.asarray(change(np.atleast_1d(np.asarray(value, float)), index))
        return mutated if isinstance(value, np.ndarray) else float(mutated[0])
    name, rest = place[0], place[1:]
    if isinstance(value, list):
        copies = []
        for k, part in enumerate(value):
            copies.append(changed(part, rest, change, k) if can_follow(part, rest) else part)
        return copies
    if isinstance(value, dict):
        return {key: changed(part, rest, change, index) if key == name else part for key, part in value.items()}
    return dataclasses.replace(value, **{name: changed(getattr(value, name), rest, change, index)})


def can_follow(value, place: tuple) -> bool:
    if not place:
        return isinstance(value, (np.ndarray, float))
    return any(name == place[0] and can_follow(part, place[1:]) for name, part in parts_of(value))


def mutants(reading):
    """(words, reading) of every change of every measurement."""
    for place in measurements(reading):
        for words, change in CHANGES.items():
            with np.errstate(all="ignore"):
                yield f"{'.'.join(place)} {words}", changed(reading, place, change)
