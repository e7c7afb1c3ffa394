"""Bad inputs of the scripts, as a user may give them: each must end in one line with the words expected.

The exit code is 2. A command is written as in a shell; `{here}` stands for a folder that
`prepare` has filled. test_bad_inputs.py tries them in one process, tests/endurance.py each in a process of its own.
"""

import json
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image


class BadInput(NamedTuple):
    """`says`: words that the one line on stderr must have."""

    command: str
    says: str


# Options of the command line, the same in all scripts of sweeps
OPTIONS = [
    BadInput("vgg_cifar10.py nonsense", "unknown experiment nonsense: choose from lr, noise, batch, drop"),
    BadInput("vgg_cifar10.py lr nonsense drop", "unknown experiment nonsense"),
    BadInput("vgg_cifar10.py ''", "unknown experiment"),
    BadInput("vgg_cifar10.py lr --learnign-rate 0.1", "unrecognized arguments: --learnign-rate"),
    BadInput("vgg_cifar10.py lr --set width=4", "unrecognized arguments: --set"),
    BadInput("vgg_cifar10.py lr --l 0.1", "ambiguous option"),
    BadInput("vgg_cifar10.py lr --quick --seed -1", "--seed -1: seeds are 0 or more"),
    BadInput("vgg_cifar10.py lr --quick --seed one", "--seed"),
    BadInput(
        "vgg_cifar10.py lr --quick --seed 99999999", "seed: expected a whole number, at least 0 and at most 1,000,000"
    ),
    BadInput("vgg_cifar10.py lr --quick --seeds 0", "--seeds 0"),
    BadInput("vgg_cifar10.py lr --quick --seeds -1", "--seeds -1"),
    BadInput("vgg_cifar10.py lr --quick --seeds 2.5", "--seeds"),
    BadInput("vgg_cifar10.py lr --quick --seeds 9999999999", "--seeds 9999999999: expected a number from 1 to 1,000"),
    BadInput("vgg_cifar10.py lr --quick --device tpu", "--device"),
    BadInput("vgg_cifar10.py lr --quick --device mps", "float64"),
    BadInput("vgg_cifar10.py lr --quick --precision float16", "--precision"),
    BadInput("vgg_cifar10.py lr --quick --optimizer lion", "optimizer: expected sgd or adamw, not 'lion'"),
    BadInput("vgg_cifar10.py lr --quick --optimizer ''", "optimizer: expected sgd or adamw"),
    BadInput("vgg_cifar10.py lr --quick --out {here}/a_file", "can't write to --out"),
    BadInput("vgg_cifar10.py lr --quick --out /dev/null/x", "can't write to --out"),
    BadInput("vgg_cifar10.py lr --quick --out ''", "--out"),
    BadInput("vgg_cifar10.py lr --quick --runs {here}/a_file", "can't write to"),
    BadInput("vgg_cifar10.py lr --quick --runs ''", "--runs"),
    BadInput("vgg_cifar10.py lr --quick --optimizer adamw --momentum 0.5", "--momentum: adamw has none"),
    BadInput("vgg_cifar10.py noise --quick --controls", "--controls: noise has none; only lr has"),
    BadInput("vgg_cifar10.py batch drop --quick --controls", "--controls: batch, drop has none; only lr has"),
    BadInput("resnet_cifar100.py lr --quick --stop-at 0", "--stop-at"),
    BadInput("resnet_cifar100.py lr --quick --stop-at -3", "--stop-at"),
    BadInput("resnet_cifar100.py lr --quick --stop-at soon", "--stop-at"),
]

# Fields of a training
FIELDS = [
    BadInput("vgg_cifar10.py lr --quick --learning-rate", "--learning-rate: expected at least one argument"),
    BadInput("vgg_cifar10.py lr --quick --learning-rate fast", "--learning-rate: invalid float value: 'fast'"),
    BadInput("vgg_cifar10.py lr --quick --learning-rate 0", "learning_rate: expected a number, above 0"),
    BadInput("vgg_cifar10.py lr --quick --learning-rate -0.1", "learning_rate: expected a number, above 0"),
    BadInput("vgg_cifar10.py lr --quick --learning-rate nan", "learning_rate: expected a number, above 0, not nan"),
    BadInput("vgg_cifar10.py lr --quick --learning-rate inf", "learning_rate: expected a number, above 0, not inf"),
    BadInput("vgg_cifar10.py lr --quick --learning-rate 0.1 1e999", "learning_rate: expected a number, above 0"),
    BadInput(
        "vgg_cifar10.py noise --quick --label-noise 1.5", "label_noise: expected a number, at least 0 and at most 1"
    ),
    BadInput(
        "vgg_cifar10.py noise --quick --label-noise 0.1 -0.1",
        "label_noise: expected a number, at least 0 and at most 1",
    ),
    BadInput("vgg_cifar10.py lr --quick --label-noise nan", "label_noise: expected a number, at least 0 and at most 1"),
    BadInput("vgg_cifar10.py lr --quick --label-noise 0.1 0.2", "--label-noise takes one value"),
    BadInput("vgg_cifar10.py batch --quick --learning-rate 0.1 0.2", "--learning-rate takes one value"),
    BadInput("vgg_cifar10.py batch --quick --batch-size 32 0", "batch_size: expected a whole number, at least 1"),
    BadInput("vgg_cifar10.py batch --quick --batch-size 32.5", "--batch-size"),
    BadInput("vgg_cifar10.py batch --quick --batch-size 32 5000", "batch size 5000 is larger than the 4096"),
    BadInput("vgg_cifar10.py lr --quick --batch-size 9999999999999", "is larger than the 4096"),
    BadInput("vgg_cifar10.py lr --quick --batch-size 9999999999999999999999", "at least 1, not 9999999999999999999999"),
    BadInput("vgg_cifar10.py lr --quick --momentum 1", "momentum: expected a number, at least 0 and below 1"),
    BadInput("vgg_cifar10.py lr --quick --momentum -0.5", "momentum: expected a number, at least 0 and below 1"),
    BadInput("vgg_cifar10.py lr --quick --momentum nan", "momentum: expected a number, at least 0 and below 1"),
    BadInput("vgg_cifar10.py lr --quick --weight-decay -1", "weight_decay: expected a number, at least 0"),
    BadInput("vgg_cifar10.py lr --quick --weight-decay inf", "weight_decay: expected a number, at least 0"),
    BadInput(
        "vgg_cifar10.py lr --quick --steps 0",
        "steps: expected a whole number, at least 1 and at most 1,000,000,000,000",
    ),
    BadInput("vgg_cifar10.py drop --quick --steps -5", "steps: expected a whole number, at least 1 and at most"),
    BadInput("vgg_cifar10.py lr --quick --steps 1e5", "--steps: invalid int value: '1e5'"),
    BadInput(
        "vgg_cifar10.py lr --quick --steps 99999999999999999999",
        "steps: expected a whole number, at least 1 and at most",
    ),
    BadInput("vgg_cifar10.py lr --quick --warmup-steps -1", "warmup_steps: expected a whole number, at least 0"),
    BadInput("vgg_cifar10.py lr --quick --width 0", "width: expected a whole number, at least 2 and at most 4,096"),
    BadInput("vgg_cifar10.py lr --quick --width 3", "width: expected an even number"),
    BadInput(
        "resnet_cifar100.py lr --quick --width -4", "width: expected a whole number, at least 2 and at most 4,096"
    ),
    BadInput(
        "vgg_cifar10.py lr --quick --width 1000000", "width: expected a whole number, at least 2 and at most 4,096"
    ),
    BadInput("vgg_cifar10.py lr --quick --eval-every 0", "eval_every: expected a whole number, at least 1"),
]

# Data sets: names, and files and folders of one's own
DATA = [
    BadInput("vgg_cifar10.py lr --quick --dataset cifar11", "no data set 'cifar11'"),
    BadInput("vgg_cifar10.py lr --quick --dataset ''", "'' names no data set"),
    BadInput("vgg_cifar10.py lr --quick --dataset .", "'.' names no data set"),
    BadInput("vgg_cifar10.py lr --quick --dataset {here}/nowhere/mine.npz", "nowhere/mine.npz"),
    BadInput(f"vgg_cifar10.py lr --dataset {'a' * 300}", "aaa...: its name must have at most 100 bytes"),
    BadInput(f"vgg_cifar10.py lr --dataset {'a' * 300} --status", "aaa...: its name must have at most 100 bytes"),
    BadInput(f"vgg_cifar10.py lr --dataset {{here}}/{'a' * 300}/x.npz", "x.npz: File name too long"),
    BadInput(f"vgg_cifar10.py lr --quick --status --runs {{here}}/{'a' * 300}", "checkpoint.pt: File name too long"),
    BadInput("vgg_cifar10.py lr --quick --dataset nowhere --data {here}", "nowhere.npz"),
    BadInput("vgg_cifar10.py lr --quick --dataset 'two\nlines' --data {here}", "no data set 'two\\nlines'"),
    BadInput("vgg_cifar10.py lr --quick --dataset nowhere.npz --data {here}", "{here}/nowhere.npz"),
    BadInput("vgg_cifar10.py lr --quick --dataset {here}/text.npz", "text.npz is not a readable npz"),
    BadInput("vgg_cifar10.py lr --quick --dataset {here}/empty.npz", "empty.npz is not a readable npz"),
    BadInput("vgg_cifar10.py lr --quick --dataset {here}/cut.npz", "cut.npz is not a readable npz"),
    BadInput("vgg_cifar10.py lr --quick --dataset {here}/objects.npz", "objects.npz is not a readable npz"),
    BadInput("vgg_cifar10.py lr --quick --dataset {here}/no_test.npz", "lacks test_images, test_labels"),
    BadInput("vgg_cifar10.py lr --quick --dataset {here}/floats.npz", "train_images is float64"),
    BadInput("vgg_cifar10.py lr --quick --dataset {here}/channels_first.npz", "channels first"),
    BadInput("vgg_cifar10.py lr --quick --dataset {here}/alpha.npz", "leave out the transparency"),
    BadInput("vgg_cifar10.py lr --quick --dataset {here}/one_hot.npz", "train_labels is int64 (64, 2)"),
    BadInput("vgg_cifar10.py lr --quick --dataset {here}/from_one.npz", "labels must be 0..classes-1"),
    BadInput("vgg_cifar10.py lr --quick --dataset {here}/negative.npz", "labels must be 0..classes-1"),
    BadInput("vgg_cifar10.py lr --quick --dataset {here}/one_class.npz", "two classes at least"),
    BadInput("vgg_cifar10.py lr --quick --dataset {here}/two_sizes.npz", "give one size"),
    BadInput("vgg_cifar10.py lr --quick --dataset {here}/no_images.npz", "expected uint8"),
    BadInput("vgg_cifar10.py lr --quick --dataset {here}/large.npz", "at most 32 x 32 pixels, not 64 x 64"),
    BadInput("resnet_cifar100.py lr --quick --dataset {here}/huge.npz", "at most 64 x 64"),
    BadInput("vgg_cifar10.py lr --quick --batch-size 65 --dataset {here}/good.npz", "larger than the 64 training"),
    BadInput("vgg_cifar10.py lr --quick --dataset {here}/no_val", "no_val"),
    BadInput("vgg_cifar10.py lr --quick --dataset {here}/no_classes", "expected images in train/<class>/"),
    BadInput("vgg_cifar10.py lr --quick --dataset {here}/broken_image", "expected images in train/<class>/"),
    BadInput("vgg_cifar10.py lr --quick --dataset {here}/transparent", "0.png has transparent pixels"),
    BadInput("vgg_cifar10.py lr --quick --dataset {here}/sixteen_bits", "0.png has more than 8 bits"),
    BadInput("vgg_cifar10.py lr --quick --dataset {here}/sizes", "images of one size"),
    BadInput("vgg_cifar10.py lr --quick --dataset {here}/new_class", "the class 'c' of val/"),
    BadInput("vgg_cifar10.py lr --quick --dataset {here}/bad_list", "val_annotations.txt"),
]

# What is in a run's folder already: see `prepare_runs`
RUN = "vgg_cifar10.py lr --quick --learning-rate 0.02 --steps 2 --out {here}/out --runs {here}/runs"
FOLDERS = [
    BadInput(f"{RUN} --width 2", "settings.json is damaged"),
    BadInput(f"{RUN} --width 6", "was run with another momentum;"),
    BadInput(f"{RUN} --width 8", "checkpoint.pt can't be read"),
    BadInput(f"{RUN} --width 10", "checkpoint.pt is no checkpoint of this program"),
    BadInput(f"{RUN} --width 12", "settings.json"),
]

# Settings of the experiments on one CPU core
SETTINGS = [
    BadInput("toy_models.py nonsense", "unknown experiment nonsense: choose from quartic, neuron, pair"),
    BadInput("toy_models.py quartic --quick --set", "--set: expected at least one argument"),
    BadInput("toy_models.py quartic --quick --set nu=3", "no setting 'nu'; there are mu, euler_step"),
    BadInput("toy_models.py quartic --quick --set seed=3", "no setting 'seed'"),
    BadInput("toy_models.py quartic --quick --set =3", "no setting ''"),
    BadInput("toy_models.py quartic --quick --set mu", "--set mu"),
    BadInput("toy_models.py quartic --quick --set mu=", "--set mu="),
    BadInput("toy_models.py quartic --quick --set mu=nan", "mu"),
    BadInput("toy_models.py quartic --quick --set mu=1e999", "mu: expected a number, above 0"),
    BadInput("toy_models.py quartic --quick --set replicas=-1", "replicas: expected a whole number, at least 1"),
    BadInput("toy_models.py quartic --quick --set replicas=0", "replicas: expected a whole number, at least 1"),
    BadInput("toy_models.py quartic --quick --set replicas=99999999999999", "out of memory"),
    BadInput("toy_models.py quartic --quick --set 'mu={[]:1}'", "expected a value like 1.5"),
    BadInput("toy_models.py quartic --quick --set replicas=1000000000000000000000000", "which is too large"),
    BadInput("toy_models.py quartic --quick --set mu=2 mu=3", "--set mu=3: mu is given twice"),
    BadInput("toy_models.py quartic --quick --set euler_step=10.0 trajectory_steps=99", "theta is not finite"),
    BadInput("toy_models.py neuron --quick --set initial=1e20 steps=200 checkpoints=200", "weights are not finite"),
    BadInput("toy_models.py neuron --quick --set euler_step=0.5 steps=2000 checkpoints=200", "lower euler_step"),
    BadInput("toy_models.py pair --quick --set learning_rates=50.0 steps=99", "not finite at learning rate 50"),
    BadInput("toy_models.py quartic --quick --set checkpoints=0", "checkpoints: expected one or more, each a whole"),
    BadInput("toy_models.py quartic --quick --set checkpoints=101", "checkpoints must be multiples of coarse_steps"),
    BadInput("toy_models.py quartic --quick --set coarse_steps=0", "coarse_steps: expected a whole number, at least 1"),
    BadInput("toy_models.py quartic --quick --set threshold=0", "threshold: expected a number, above 0"),
    BadInput("toy_models.py quartic --quick --set euler_step=0", "euler_step: expected a number, above 0"),
    BadInput("toy_models.py quartic --quick --set euler_step=1e300", "euler_step: expected a number, above 0"),
    BadInput("toy_models.py quartic --quick --set 'trajectory_noises=()'", "trajectory_noises: expected one or more"),
    BadInput("toy_models.py neuron --quick --set points=0", "points: expected a whole number, at least 1"),
    BadInput("toy_models.py neuron --quick --set noise_levels=3", "noise_levels"),
    BadInput("toy_models.py neuron --quick --set 'noise_levels=((0,1,0),)'", "noise_levels: expected stretches"),
    BadInput("toy_models.py pair --quick --set steps=0", "steps: expected a whole number, at least 1"),
    BadInput("toy_models.py pair --quick --set momentum=1.0", "momentum: expected a number, at least 0 and below 1"),
    BadInput(
        "toy_models.py pair --quick --set learning_rates=0", "learning_rates: expected one or more, each a number"
    ),
    BadInput("toy_models.py pair --quick --seed -1", "--seed -1: seeds are 0 or more"),
    BadInput("teacher_student.py diagonal --quick --set every=0", "every: expected a whole number, at least 1"),
    BadInput("teacher_student.py minibatch --quick --set batch_sizes=0", "batch_sizes: expected one or more"),
    BadInput("teacher_student.py minibatch --quick --set batch_sizes=999999", "batch sizes must divide the 1024"),
    BadInput("teacher_student.py diagonal --quick --set learning_rate=1e6 steps=99 drop_step=9", "lower learning_rate"),
    BadInput("teacher_student.py minibatch --quick --set learning_rate=1e9 warmup_steps=1 steps=99", "not finite"),
    BadInput("teacher_student.py diagonal --quick --seed 5000000", "seed: expected a whole number"),
    BadInput("sparse_features.py diagonal --quick --set steps=0", "steps: expected a whole number, at least 100"),
    BadInput("sparse_features.py regression --seed 1000000 --seeds 5000 --steps 100", "must be below 4,294,967,296"),
    BadInput("sparse_features.py deep --quick --width 3", "width: expected an even number"),
    BadInput("sparse_features.py deep --quick --small nan", "small: expected a number, above 0"),
    BadInput("sparse_features.py deep --quick --dataset nowhere", "no data set 'nowhere'"),
    BadInput("sparse_features.py relu --quick --device mps", "float64"),
    BadInput("chaotic_sgd.py pruning --quick --noise -1", "noise: expected a number, at least 0"),
    BadInput("chaotic_sgd.py pruning --quick --variants sgd nonsense", "nonsense"),
    BadInput("chaotic_sgd.py pruning --quick --k -1", "k: expected"),
    BadInput("chaotic_sgd.py pruning --quick --dataset {here}/alpha.npz", "leave out the transparency"),
    BadInput("chaotic_sgd.py pruning --quick --steps 2 --set runs=/dev/null/x", "can't write to --runs /dev/null/x"),
    BadInput("chaotic_sgd.py pruning --quick --steps 5 --set steps=7", "--set steps=7: steps is given twice"),
    BadInput("chaotic_sgd.py delay --quick --set steps=0", "steps: expected a whole number, at least 1"),
    BadInput("subnetworks.py measure --quick --weights {here}/nowhere.pt", "nowhere.pt is not there"),
    BadInput("subnetworks.py measure --quick --weights {here}/text.npz", "text.npz"),
    BadInput("subnetworks.py measure --quick --model lenet", "--model lenet: expected MODULE:FUNCTION"),
    BadInput("subnetworks.py measure --quick --vanishing nan", "not vanishing=nan"),
    BadInput("subnetworks.py measure --quick --redundant -1", "not redundant=-1.0"),
    BadInput("subnetworks.py measure --quick --input 3,x", "--input 3,x: expected positive numbers"),
    BadInput("subnetworks.py measure --model nowhere:make", "No module named 'nowhere'"),
    BadInput("subnetworks.py measure --model torchvision.models:nonsense", "no attribute 'nonsense'"),
    BadInput("subnetworks.py measure --run {here}/nowhere", "nowhere is no run directory"),
    BadInput("subnetworks.py exponent --pairs 0", "pairs: expected a whole number, at least 1"),
    BadInput("subnetworks.py exponent --seeds 0", "seeds: expected a whole number, at least 1"),
    BadInput(
        "subnetworks.py vanishing --quick --set early=7", "early: expected one of the network's milestones (20, 40)"
    ),
    BadInput("subnetworks.py windows --quick --set lengths=0", "lengths: expected one or more, each a whole number"),
    BadInput("subnetworks.py switch --quick --set early=7", "early: expected one of the network's milestones (20, 40)"),
    BadInput("subnetworks.py switch --quick --set \"changes={'width':(4,)}\"", "changes: 'width' can't be switched"),
    BadInput("subnetworks.py switch --quick --set \"changes={'momentum':0.5}\"", "changes: expected several values"),
    BadInput("subnetworks.py switch --quick --set \"changes={'label_noise':(2,)}\"", "label_noise: expected a number"),
    BadInput("subnetworks.py causes_mlp --quick --set early=7", "early: expected one of the network's milestones"),
    BadInput(
        "subnetworks.py exponent --quick --set \"network={'foo': 1}\"", "network: no setting 'foo'; there are model"
    ),
    BadInput(
        "subnetworks.py windows --quick --set \"network={'foo': 1}\"", "network: no setting 'foo'; there are model"
    ),
    BadInput(
        "subnetworks.py causes --quick --set \"network={'foo': 1}\"", "network: no setting 'foo'; there are model"
    ),
    BadInput(
        "subnetworks.py switch --quick --set \"network={'foo': 1}\"", "network: no setting 'foo'; there are model"
    ),
    BadInput("subnetworks.py extract --quick --set \"network={'seed': 1}\"", "no setting 'seed'; --seed sets it"),
    BadInput("subnetworks.py extract --quick --set network=3", "network: expected dict or none, not 3"),
    BadInput("subnetworks.py exponent --quick --set \"network={'steps': 9}\"", "early: expected a step of the 9"),
    BadInput("subnetworks.py measure --quick --seed 99999999999999999999999", "seed: expected a whole number"),
    BadInput("subnetworks.py extract --quick --seed 1000001", "seed: expected a whole number"),
    BadInput("subnetworks.py vanishing --quick --seed 1000000 --seeds 2", "at most 1,000,000, not 1000001"),
    BadInput("subnetworks.py switch --quick --seed 999500", "at most 1,000,000, not 1000500"),
    BadInput("subnetworks.py causes --quick --seed 1000000", "at most 1,000,000, not 1000001"),
    BadInput("subnetworks.py measure --quick --picture /dev/null/x/y.png", "can't write --picture /dev/null/x/y.png"),
    BadInput("subnetworks.py measure --quick --picture {here}", "is a folder; give a file in it"),
    BadInput("subnetworks.py extract --quick --runs {here}", "--runs, or a network to train"),
    BadInput("subnetworks.py extract --model torchvision.models:resnet18 --redundant 0.1 0.3", "one --redundant"),
    BadInput("subnetworks.py extract --runs {here}/runs", "settings.json is damaged"),
    BadInput("subnetworks.py extract --finetune -1", "finetune must not be negative"),
    BadInput("subnetworks.py extract --runs {here}/nowhere", "no finished run below"),
]

# Figures and benchmarks
OTHERS = [
    BadInput("benchmark.py nonsense", "unknown experiment nonsense"),
    BadInput("benchmark.py quartic --set rounds=0", "rounds: expected a whole number, at least 1"),
    BadInput("figures.py nonsense", "unknown figure nonsense"),
    BadInput("figures.py --format gif", "--format: invalid choice: 'gif'"),
    BadInput("figures.py --width 0", "--width 0: expected a positive number"),
    BadInput("figures.py --out {here}/nowhere", "nowhere is no folder of results"),
    BadInput("figures.py --out {here}/a_file", "a_file is no folder of results"),
    BadInput("figures.py --out ''", "--out: an empty name is no folder"),
    BadInput("figures.py --figures {here}/a_file", "can't write to"),
    BadInput("figures.py --figures ''", "--figures: an empty name is no folder"),
    BadInput("figures.py --out {here}/damaged", "pair.json"),
]

ALL = OPTIONS + FIELDS + DATA + FOLDERS + SETTINGS + OTHERS


# Script -> options of where it writes
PLACES = {"vgg_cifar10.py": ["--out", "--runs"], "resnet_cifar100.py": ["--out", "--runs"], "figures.py": []}


def words_of(given: BadInput, here: Path) -> list[str]:
    """The command's words, script first. Where it names none, results and runs go below `here`."""
    words = [word.replace("{here}", str(here)) for word in shlex.split(given.command)]
    for option in PLACES.get(words[0], ["--out"]):
        if option not in words:
            words += [option, str(here / option.strip("-"))]
    return words


def words_expected(given: BadInput, here: Path) -> str:
    return given.says.replace("{here}", str(here))


# ------------------------------------------------------------------------- files and folders


def images(number: int, *shape: int) -> np.ndarray:
    return np.zeros((number, *shape), dtype=np.uint8)


def prepare(here: Path) -> None:
    """Fill the folder `here` with the files that the commands name."""
    (here / "a_file").write_text("")
    prepare_npz(here)
    prepare_folders(here)
    prepare_runs(here / "runs" / "quick" / "vgg_cifar10")
    (here / "damaged").mkdir()
    (here / "damaged" / "pair.json").write_text('{"experiment": "pair", "times": [0, 1')


def prepare_npz(here: Path) -> None:
    good = {
        "train_images": images(64, 8, 8),
        "train_labels": np.arange(64) % 2,
        "test_images": images(8, 8, 8),
        "test_labels": np.arange(8) % 2,
    }

    def write(name: str, **changes):
        np.savez(here / f"{name}.npz", **(good | changes))

    def write_images(name: str, *shape: int):
        write(name, train_images=images(64, *shape), test_images=images(8, *shape))

    write("good")
    (here / "text.npz").write_text("no arrays")
    (here / "empty.npz").write_text("")
    (here / "cut.npz").write_bytes((here / "good.npz").read_bytes()[:700])
    write("objects", train_labels=np.array([{}] * 64, dtype=object))
    np.savez(here / "no_test.npz", train_images=good["train_images"], train_labels=good["train_labels"])
    write("floats", train_images=np.zeros((64, 8, 8)))
    write_images("channels_first", 3, 8, 8)
    write_images("alpha", 8, 8, 4)
    write("one_hot", train_labels=np.eye(2, dtype=np.int64)[good["train_labels"]])
    write("from_one", train_labels=good["train_labels"] + 1, test_labels=good["test_labels"] + 1)
    write("negative", train_labels=good["train_labels"] - 1)
    write("one_class", train_labels=np.zeros(64, dtype=np.int64), test_labels=np.zeros(8, dtype=np.int64))
    write("two_sizes", test_images=images(8, 9, 9))
    write("no_images", train_images=images(0, 8, 8), train_labels=np.arange(0))
    write_images("large", 64, 64, 3)
    write_images("huge", 65, 65)


def prepare_folders(here: Path) -> None:
    def write(name: str, *splits: str) -> Path:
        """Images of two classes, a and b; returns the first."""
        for split in splits:
            for label in ("a", "b"):
                folder = here / name / split / label
                folder.mkdir(parents=True)
                Image.new("RGB", (8, 6)).save(folder / "0.png")
        return here / name / "train" / "a" / "0.png"

    write("no_val", "train")
    (here / "no_classes" / "train").mkdir(parents=True)
    write("broken_image", "train", "val").write_bytes(b"no image")
    Image.new("RGBA", (8, 6), (1, 2, 3, 0)).save(write("transparent", "train", "val"))
    Image.fromarray(np.full((6, 8), 40_000, dtype=np.uint16)).save(write("sixteen_bits", "train", "val"))
    Image.new("RGB", (9, 6)).save(write("sizes", "train", "val"))
    write("new_class", "train", "val")
    (here / "new_class" / "val" / "b").rename(here / "new_class" / "val" / "c")
    write("bad_list", "train")
    (here / "bad_list" / "val" / "images").mkdir(parents=True)
    (here / "bad_list" / "val" / "val_annotations.txt").write_text("0.png\n")


RUN_SETTINGS = {"dataset": "synthetic", "learning_rate": 0.02, "batch_size": 64, "steps": 2, "warmup_steps": 10,
                "width": 12, "eval_every": 40}  # fmt: skip


def prepare_runs(runs: Path) -> None:
    """A folder per width, each with another fault."""

    def folder(width: int) -> Path:
        shape = f"width={width}_" if width != 64 else ""
        path = runs / f"vgg16_synthetic_lr=0.02_batch=64_steps=2_warmup=10_{shape}seed=0_eval_every=40"
        path.mkdir(parents=True)
        return path

    (folder(2) / "settings.json").write_text('{"model": "vgg16", "data')
    (folder(6) / "settings.json").write_text(json.dumps(RUN_SETTINGS | {"width": 6, "momentum": 0.5}))
    (folder(8) / "checkpoint.pt").write_bytes(b"nonsense")
    torch.save({"weight": torch.zeros(3)}, folder(10) / "checkpoint.pt")
    (folder(12) / "settings.json").write_text(json.dumps(RUN_SETTINGS | {"resolved_precision": "float16"}))
