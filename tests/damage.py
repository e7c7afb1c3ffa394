"""Ways in which files get damaged, for tests and tests/endurance.py."""

import json
import random
import zipfile
from pathlib import Path

import torch

import core


def changed(change):
    """Damage that changes what a checkpoint holds."""

    def damage(path: Path, chance: random.Random) -> None:
        state = torch.load(path, weights_only=True)
        torch.save(change(state), path)

    return damage


def with_field(**fields):
    return changed(lambda state: state | fields)


def without_field(name: str):
    return changed(lambda state: {key: value for key, value in state.items() if key != name})


def truncated(path: Path, chance: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: chance.randrange(len(content))])


def one_wrong_bit(path: Path, chance: random.Random) -> None:
    """In the middle of the largest tensor, where nothing but a checksum can tell."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + largest.file_size // 2] ^= 1
    path.write_bytes(content)


def written(content: bytes):
    """Damage that replaces the file's content."""

    def damage(path: Path, chance: random.Random) -> None:
        path.write_bytes(content)

    return damage


# Kind -> damage(path, chance) of a checkpoint
CHECKPOINTS = {
    "truncated": truncated,
    "truncated again": truncated,
    "one wrong bit": one_wrong_bit,
    "empty": written(b""),
    "a text": written(b"no checkpoint\n"),
    "an empty zip": written(b"PK\x05\x06" + bytes(18)),
    "a list": changed(lambda state: [1, 2]),
    "a number": changed(lambda state: 3),
    "bare weights": changed(lambda state: state["model"]),
    "of another network": with_field(model=core.vgg16(10, 2).state_dict()),
    "without optimizer": without_field("optimizer"),
    "an older version's": without_field("bad_step"),
    "a word for the step": with_field(step="eight"),
    "a step beyond the end": with_field(step=10_000),
    "a negative step": with_field(step=-1),
    "no list for the log": with_field(log="nothing"),
    "a log of numbers": with_field(log=[1, 2, 3]),
    "a list for the weights": with_field(model=[torch.zeros(3)]),
    "no optimizer's state": with_field(optimizer={}),
    "a word for the sum of losses": with_field(loss_sum="much"),
    "a word for the diverged step": with_field(diverged_at="never"),
    "a word for the seconds": with_field(seconds="many"),
}


# ------------------------------------------------------------------------------ text files

PUT_INSTEAD = [None, True, -1, 0, 3.5, 1e300, "", "word", [], {}, [None], {"a": 1}]
LETTERS = '0 ,:"{}[]x\n\u00e9'


def places_in(value, path: tuple = ()) -> list[tuple]:
    """The paths to all values in a tree of dictionaries and lists, the root's included."""
    found = [path]
    if isinstance(value, dict):
        for key, entry in value.items():
            found += places_in(entry, (*path, key))
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            found += places_in(entry, (*path, index))
    return found


def edit_tree(text: str, chance: random.Random) -> tuple[str, str]:
    """One value of a JSON text replaced or removed: the new text, and what was done."""
    tree = json.loads(text)
    path = chance.choice(places_in(tree))
    new = chance.choice(PUT_INSTEAD)
    if not path:
        return json.dumps(new), f"all of it replaced by {new!r}"
    holder = tree
    for key in path[:-1]:
        holder = holder[key]
    if chance.random() < 0.3:
        del holder[path[-1]]
        return json.dumps(tree), f"{path} removed"
    holder[path[-1]] = new
    return json.dumps(tree), f"{path} replaced by {new!r}"


def edit_letters(text: str, chance: random.Random) -> tuple[str, str]:
    """A letter lost, added or exchanged, or the end cut off."""
    at = chance.randrange(len(text))
    letter = chance.choice(LETTERS)
    edits = {
        f"cut at {at}": text[:at],
        f"letter {at} lost": text[:at] + text[at + 1 :],
        f"{letter!r} put in at {at}": text[:at] + letter + text[at:],
        f"{letter!r} in place of letter {at}": text[:at] + letter + text[at + 1 :],
    }
    what = chance.choice(list(edits))
    return edits[what], what


def edit_text(path: Path, chance: random.Random) -> str:
    """One random edit of a file of JSON lines; what was done, in words."""
    text = path.read_text(encoding="utf-8")
    if chance.random() < 0.3:
        new, what = edit_letters(text, chance)
    else:
        lines = text.splitlines()
        number = chance.randrange(len(lines))
        lines[number], what = edit_tree(lines[number], chance)
        new = "\n".join(lines) + "\n"
    path.write_text(new, encoding="utf-8")
    return what
