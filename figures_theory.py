"""Figures of the theory (Stochastic Collapse, figures 1, 2, 3 and 5), drawn from results/*.json alone."""

import matplotlib.pyplot as plt
import numpy as np

import claims

MARKERS = "osD^vP" * 8  # again from the seventh on


def shades(n):
    """n colours from dark to light, also in greyscale: more noise is lighter."""
    return plt.get_cmap("viridis")(np.linspace(0.0, 0.85, n))


def fig1_quartic(quartic):
    """Trajectories beside the stationary density; probability of collapse against noise."""
    r, s = quartic, quartic["settings"]
    figure = plt.figure(figsize=(12, 3.2))
    count = len(s["trajectory_noises"])
    grid = figure.add_gridspec(1, 2 * count + 1, width_ratios=[1.5, 0.5] * count + [3])
    edges, step = np.array(r["bin_edges"]), np.array(r["times"])
    for k, zeta in enumerate(s["trajectory_noises"]):
        left, right = figure.add_subplot(grid[2 * k]), figure.add_subplot(grid[2 * k + 1])
        left.plot(step, np.array(r["paths"][k]).T, color="0.25", lw=0.5, alpha=0.35)
        left.set(title=rf"$\zeta$ = {zeta:g}", xlabel="steps", ylim=(-3, 3), ylabel=r"$\theta$" if k == 0 else None)
        left.set_xticks([0, step[-1]])
        right.stairs(r["histogram"][k], edges, orientation="horizontal", fill=True, color="0.75", label="simulation")
        if r["stationary"][k] is not None:
            right.stairs(r["stationary"][k], edges, orientation="horizontal", color="C3", lw=1.3, label="theory")
            right.set_xlim(0, 1.15 * max(r["stationary"][k]))
        else:
            left.text(0.95, 0.95, "no stationary density", transform=left.transAxes, ha="right", va="top", size=7.5)
        right.set(ylim=(-3, 3), xticks=[], xlabel="density")
        right.tick_params(labelleft=False)
        if k == 0:
            right.legend(loc="upper left", bbox_to_anchor=(-0.15, 1.22), fontsize=7, handlelength=1)
    axes = figure.add_subplot(grid[2 * count])
    for k, (color, t) in enumerate(zip(shades(len(s["checkpoints"])), s["checkpoints"], strict=True)):
        axes.plot(r["noises"], r["collapse"][k], MARKERS[k], color=color, ms=3, label=f"{t:,}")
        axes.plot(r["noises"], r["collapse_theory"][k], color=color, lw=1.2)
    threshold = np.sqrt(2 * s["mu"])
    axes.axvline(threshold, color="k", ls="--", lw=1)
    axes.text(threshold - 0.03, 0.42, rf"$\sqrt{{2\mu}}$ = {threshold:.3f}", rotation=90, ha="right", va="center")
    small = rf"$10^{{{np.log10(s['threshold']):.3g}}}$"
    axes.set(xlabel=r"noise $\zeta$", ylabel=rf"P($|\theta|$ < {small})", xlim=(0.6, 3))
    axes.legend(title="steps (line: theory)", loc="upper left")
    return figure


def fig2_neuron(neuron):
    """Loss landscape with end points; probability of collapse; rates against the linearised exponent."""
    r, s = neuron, neuron["settings"]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6))
    x, y = np.array(r["x"]), np.array(r["y"])
    w = np.linspace(-2.6, 2.6, 151)
    loss = np.mean((w[:, None, None] * np.tanh(w[None, :, None] * x) - y) ** 2, -1) / 2
    contours = left.contourf(w, w, np.minimum(loss, 2), 24, cmap="Greys", alpha=0.8)
    figure.colorbar(contours, ax=left, label="loss (cut at 2)", ticks=[0, 0.5, 1, 1.5, 2])
    ends, noises = np.array(r["ends"]), np.array(r["noises"])
    for marker, color, level in zip("o^*", ("#2166ac", "#f4a582", "#b2182b"), (0.125, 0.785, 1.157), strict=True):
        k = np.argmin(abs(noises - level))
        w1, w2 = ends[k].T
        label = f"noise {noises[k]:.3f}"
        left.plot(w1, w2, marker, color=color, ms=9 if marker == "*" else 5, mec="k", mew=0.5, label=label)
    left.set(xlabel="$w_1$", ylabel="$w_2$", xlim=(-2.6, 2.6), ylim=(-2.6, 2.6))
    left.set_title(f"end points after {s['steps']:,} steps")
    left.legend(loc="upper left", frameon=True)

    steps = r["checkpoint_steps"][1:]
    for k, color in enumerate(shades(len(steps))):
        p = np.array(r["collapse"][k + 1])
        error = np.sqrt(p * (1 - p) / s["replicas"])
        middle.plot(noises, p, "-", marker=MARKERS[k], ms=3, color=color, lw=1, label=f"{steps[k]:,}")
        middle.fill_between(noises, p - error, p + error, color=color, alpha=0.25, lw=0)
    middle.axvline(r["threshold"], color="k", ls="--", lw=1, label="theorem")
    middle.set(xlabel=r"noise $\eta\zeta^2\sigma'(0)/2$", ylabel=f"P(|w| < {s['threshold']:g})")
    middle.set_title("probability of collapse (band: standard error)")
    middle.legend(title="steps", loc="lower right")

    z = np.array(r["rate_noises"])
    right.axhline(0, color="0.5", lw=0.8)
    right.plot(z, r["rate_theory_chain"], "k-", lw=1.2, label="linearised, the chain: E log|1 + a dt + b dB|")
    right.plot(z, r["rate_theory"], "k:", lw=1.2, label=r"linearised, continuous time: $a - b^2/2$")
    rate, error = np.array(r["rate"], float), np.array(r["rate_error"], float)
    right.errorbar(z, rate, 2 * error, fmt="o", ms=3.5, mfc="none", label="measured, 2 s.e.")
    right.axvline(r["threshold"], color="k", ls="--", lw=1)
    right.set(xlabel=r"noise $\eta\zeta^2\sigma'(0)/2$", ylabel="growth of log|w| per unit time")
    right.set_title("rate near the origin")
    right.legend(loc="lower left")
    return figure


def fig3_pair(pair):
    """Squared distance of two neurons against steps, over learning rate and label noise; rates."""
    r, s = pair, pair["settings"]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6))
    n = len(s["learning_rates"])
    rows = np.array(r["distances"], float)
    sweeps = (
        (left, range(n), r["learning_rates"], "learning rate", r"label noise $\sigma$ = 0.1"),
        (middle, range(n, len(rows)), r["label_noises"], r"label noise $\sigma$", "learning rate 0.1"),
    )
    for axes, conditions, values, name, fixed in sweeps:
        for color, k in zip(shades(len(conditions)), conditions, strict=True):
            axes.semilogy(r["times"], np.maximum(rows[k], 1e-34).T, color=color, lw=0.5, alpha=0.6)
            median = np.maximum(np.median(rows[k], 0), 1e-34)
            marks = np.linspace(0, len(r["times"]) - 1, 6).astype(int)[1:]
            mark = MARKERS[k - conditions[0]]
            label = f"{values[k]:g}"
            axes.semilogy(
                r["times"], median, color=color, lw=1.8, marker=mark, ms=4, markevery=list(marks), label=label
            )
        axes.set(xlabel="steps", ylim=(1e-31, 1e2), title=fixed)
        axes.legend(title=f"{name}\n(thick: median)", loc="lower left" if axes is left else "lower right")
    left.set_ylabel(r"$(a_1 - a_2)^2 + (b_1 - b_2)^2$")
    rate, error, theory = (np.array(r[key], float) * 1000 / np.log(10) for key in ("rate", "rate_error", "rate_theory"))
    shown, moving = claims.resolved_pairs(r), np.isfinite(rate) & (theory < 0)
    groups = ((range(n), "o", "learning rates", "#1b6ca8"), (range(n, len(rate)), "s", "label noises", "#c0392b"))
    for group, mark, label, color in groups:
        rest = "known worse than to 2.5 %" if mark == "o" else None
        for keep, shade, words in ((shown, color, label), (moving & ~shown, "0.65", rest)):
            k = [k for k in group if keep[k]]
            right.errorbar(-theory[k], -rate[k], 2 * error[k], fmt=mark, ms=5, mfc="none", color=shade, label=words)
    line = np.array([0.15, 15])
    right.loglog(line, line, "k-", lw=1, label="equal")
    right.set(xlabel="predicted: Lyapunov exponent, decades / 1000 steps", ylabel="measured, 2 s.e.")
    right.set_title("decay rate of the squared distance")
    right.legend(loc="upper left")
    return figure


def fig5_teacher_student(diagonal):
    """Losses over steps; learned against true singular values with theory, before and after the drop."""
    r, s = diagonal, diagonal["settings"]
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.5))
    colors, noises, true = shades(len(r["label_noises"])), r["label_noises"], np.array(r["true"])
    for name, panel in (("train", axes[0]), ("test", axes[1])):
        rows = zip(colors, MARKERS, noises, r[name], r[f"{name}_std"], strict=False)
        for color, mark, noise, mean, std in rows:
            mean, error = np.array(mean), 2 * np.array(std) / np.sqrt(s["replicas"])
            style = {"color": color, "marker": mark, "markevery": len(mean) // 6 + 1, "ms": 4, "mfc": "w"}
            panel.plot(r["steps"], mean, lw=1.2, label=f"{noise:g}", **style)
            panel.fill_between(r["steps"], mean - error, mean + error, color=color, alpha=0.3, lw=0)
        panel.axvline(s["drop_step"], color="k", ls="--", lw=0.8, label="drop" if panel is axes[1] else None)
        panel.set(xlabel="steps", title=f"{name} loss (band: 2 s.e.)", xticks=np.linspace(0, s["steps"], 4))
    axes[0].set(ylim=(0.458, 0.512), ylabel=r"$|XW' - y|^2$ / 2nm var(y)")
    axes[1].set(ylim=(0, 4.5), ylabel=r"$|W' - W|^2 / |W|^2$")
    axes[0].legend(title=r"label noise $\sigma$", loc="upper center", ncols=2)
    axes[1].legend(*(part[-1:] for part in axes[1].get_legend_handles_labels()), loc="lower left")
    steps = r["snapshot_steps"]
    for color, mark, noise, mean, theory in zip(colors, MARKERS, noises, r["mean"], r["theory"], strict=False):
        axes[2].plot(true, mean[0], mark, color=color, ms=3.5, mfc="none", label=rf"$\sigma$ = {noise:g}")
        axes[2].plot(true, theory["lower"][0], color=color, lw=1)
    axes[2].plot(true, true, "k:", lw=1, label="equal")
    axes[2].legend(loc="upper left")
    axes[2].set_title("before the drop; line: $s^* - \\eta\\sigma^2/2$")
    last = r["theory"][-1]
    for color, mark, k in zip(shades(len(steps)), MARKERS, range(len(steps)), strict=False):
        axes[3].fill_between(true, last["lower"][k], last["upper"][k], color=color, alpha=0.25 if k else 0, lw=0)
        axes[3].plot(true, last["lower"][k], color=color, lw=0.8)
        axes[3].plot(true, r["mean"][-1][k], mark, color=color, ms=3.5, mfc="none", label=f"{steps[k]:,}")
    axes[3].plot(true, true, "k:", lw=1)
    axes[3].set_title(rf"after the drop, $\sigma$ = {noises[-1]:g}; band: theory")
    axes[3].legend(title="step", loc="upper left")
    for panel in axes[2:]:
        panel.set(xlabel="true singular value $s^*$", ylabel="learned, mean over seeds")
    return figure


def fig5_minibatch(minibatch):
    """Supplement: the same drop with mini-batch noise in full matrices."""
    r, s = minibatch, minibatch["settings"]
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.5))
    colors = shades(len(r["batch_sizes"]))[::-1]
    for name, panel in (("train", axes[0]), ("test", axes[1])):
        rows = zip(colors, MARKERS, r["batch_sizes"], r[name], r[f"{name}_std"], strict=False)
        for color, mark, size, mean, std in rows:
            mean, std = np.array(mean), np.array(std)
            style = {"color": color, "marker": mark, "markevery": len(mean) // 6 + 1, "ms": 4, "mfc": "w"}
            panel.plot(r["steps"], mean, lw=1.2, label=f"{size}", **style)
            panel.fill_between(r["steps"], mean - std, mean + std, color=color, alpha=0.3, lw=0)
        for step in s["drop_steps"]:
            panel.axvline(step, color="k", ls="--", lw=0.8, label="drops" if step == s["drop_steps"][-1] else None)
        panel.set(xlabel="steps", title=f"{name} loss (band: std over {s['replicas']} seeds)")
        panel.set_xticks(np.linspace(0, s["steps"], 4))
    axes[0].set(ylim=(0.458, 0.495), ylabel=r"$|XW' - y|^2$ / 2nm var(y)")
    axes[1].set(ylim=(1, 6), ylabel=r"$|W' - W|^2 / |W|^2$")
    axes[0].legend(title="batch size", ncols=2)
    true = np.array(r["true"])
    for color, mark, size, spectra in zip(colors, MARKERS, r["batch_sizes"], r["spectra"], strict=False):
        axes[2].plot(true, spectra[-1], mark, color=color, ms=3.5, mfc="none", label=f"{size}")
    axes[2].plot(true, true, "k:", lw=1, label="equal")
    axes[2].legend(*(part[-1:] for part in axes[2].get_legend_handles_labels()), loc="upper left")
    axes[2].set(xlabel="singular value of $X^T y$", ylabel="singular value of $W'$", title="at the end")
    return figure


FIGURES = {  # name -> (experiments it is drawn from, function)
    "fig1_quartic": (("quartic",), fig1_quartic),
    "fig2_neuron": (("neuron",), fig2_neuron),
    "fig3_pair": (("pair",), fig3_pair),
    "fig5_teacher_student": (("diagonal",), fig5_teacher_student),
    "fig5_minibatch": (("minibatch",), fig5_minibatch),
}
