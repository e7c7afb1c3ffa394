"""Claims about the deep networks, judged by claims.py: see there how a claim is written."""

import numpy as np

from criteria import falls, numbers, standard_error


def deep_fraction(result, key="independent"):
    """[values, seeds] fraction of independent neurons in the deeper half of the layers, at the end.

    Or another column's share of the width. Values of the varied field at which some run has not learned, its test
    accuracy below twice chance, are left out: such a network is still near its start.
    """
    values, slow = {}, set()
    for record in result["runs"]:
        if record["log"] and record["diverged_at"] is None:
            last, value = record["log"][-1], record["run"][result["varied"]]
            columns = last["groups"]
            half = len(columns["width"]) // 2
            values.setdefault(value, []).append(sum(columns[key][half:]) / sum(columns["width"][half:]))
            if last["test_accuracy"] < (0.02 if record["run"]["dataset"] == "cifar100" else 0.2):
                slow.add(value)
    return [np.array(values[value]) for value in sorted(values.keys() - slow)]


def fewer_with_more(result, key="independent"):
    """Does the deep fraction fall from the least to the most noise, by over 2 s.e. of the seeds?"""
    return falls(deep_fraction(result, key))


def vgg_learning_rate(vgg_lr):
    """VGG-16: more learning rate, fewer independent neurons in the deep layers.

    Fraction in the deeper half of the layers falls from the lowest to the highest rate, by over 2 s.e. of the seeds.
    """
    return fewer_with_more(vgg_lr)


def vgg_rank(vgg_lr):
    """VGG-16: more learning rate, lower effective rank in the deep layers (the paper computes it, but shows none).

    Effective rank / width in the deeper half of the layers falls from the lowest to the highest rate, by over 2 s.e.
    """
    return fewer_with_more(vgg_lr, "effective_rank")


def vgg_label_noise(vgg_noise):
    """VGG-16: more label noise, fewer independent neurons.

    Fraction in the deeper half of the layers falls from no noise to the most at which every run learns, by over 2 s.e.
    """
    return fewer_with_more(vgg_noise)


def vgg_noise_rank(vgg_noise):
    """VGG-16: more label noise, lower effective rank in the deep layers.

    Effective rank / width in the deeper half of the layers falls from no noise to the most at which every run learns,
    by over 2 s.e.
    """
    return fewer_with_more(vgg_noise, "effective_rank")


def resnet_learning_rate(resnet_lr):
    """ResNet-18: more learning rate, fewer independent neurons in the deep layers.

    Fraction in the deeper half of the groups falls from the lowest to the highest rate, by over 2 s.e. of the seeds.
    """
    return fewer_with_more(resnet_lr)


def resnet_label_noise(resnet_noise):
    """ResNet-18: more label noise, fewer independent neurons.

    Fraction in the deeper half of the groups falls from no noise to the most at which every run learns, by over 2 s.e.
    """
    return fewer_with_more(resnet_noise)


def later_is_better(result):
    """After later drops: fewer independent neurons at the drop, higher accuracy at the end, by over 2 s.e.?"""
    accuracy, fraction = {}, {}
    at_drop = {(run["run"]["seed"], line["step"]): line["groups"] for run in result["runs"] for line in run["log"]}
    for branch in result["branches"]:
        if branch["log"] and branch["diverged_at"] is None:
            step, seed = int(branch["run"]["start"].split("_")[-1].removesuffix(".pt")), branch["run"]["seed"]
            accuracy.setdefault(step, {})[seed] = branch["log"][-1]["test_accuracy"]
            columns = at_drop[seed, step]
            fraction.setdefault(step, {})[seed] = sum(columns["independent"]) / sum(columns["width"])
    steps = sorted(accuracy)
    whole = sorted(seed for seed in accuracy[steps[0]] if all(seed in accuracy[s] for s in steps)) if steps else []
    accuracy, fraction = ({s: [x[s][seed] for seed in whole] for s in steps} for x in (accuracy, fraction))
    seeds = len(whole)
    if not seeds:
        return "falling; rising", "", "no seed", "not resolved"
    text = f"{numbers([np.mean(fraction[s]) for s in steps], 3)}; {numbers([np.mean(accuracy[s]) for s in steps], 3)}"
    if seeds < 2:
        return "falling; rising", text, f"{seeds} seed", "not resolved"
    gains = [np.array(x[steps[-1]]) - x[steps[0]] for x in (accuracy, fraction)]  # seed by seed
    errors = [standard_error(gain) for gain in gains]
    resolved = all(abs(gain.mean()) > 2 * error for gain, error in zip(gains, errors, strict=True))
    holds = gains[0].mean() > 0 > gains[1].mean()
    return "falling; rising", text, numbers(errors[::-1], 3), bool(holds) if resolved else "not resolved"


def vgg_later_drop(vgg_drop):
    """VGG-16: the later the learning rate drops, the fewer independent neurons and the higher the final accuracy.

    From the earliest to the latest drop, both by over 2 s.e. of the seeds.
    """
    return later_is_better(vgg_drop)


def resnet_later_drop(resnet_drop):
    """ResNet-18: the later the learning rate drops, the fewer independent neurons and the higher the final accuracy.

    From the earliest to the latest drop, both by over 2 s.e. of the seeds.
    """
    return later_is_better(resnet_drop)


CLAIMS = {
    "fig4_independent": (
        vgg_learning_rate, vgg_rank, vgg_label_noise, vgg_noise_rank, resnet_learning_rate, resnet_label_noise,
    ),
    "fig6_drop": (vgg_later_drop, resnet_later_drop),
}  # fmt: skip
