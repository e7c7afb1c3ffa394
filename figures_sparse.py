"""Figures of *Sparse Features*, drawn from results/sparse_*.json alone."""

import matplotlib.pyplot as plt
import numpy as np

DURATIONS = {
    0.02: ("#8e9aaf", "P"),
    0.1: ("#e9a03b", "^"),
    0.3: ("#2a9d8f", "s"),
    0.5: ("#1b4965", "o"),
}  # light: short
STYLES = {  # of groups whose step doesn't change: colour, line, marker
    "small": ("k", ":", "D"),
    "published small": ("0.45", "--", "v"),
}
KINDS = {  # against the duration: colour, line, marker
    "published": ("k", "-", "o"),
    "clean": ("#c0392b", "--", "s"),
    "edge": ("#c0392b", "--", "s"),
    "constant": ("#1b6ca8", ":", "^"),
    "clean low": ("#8e9aaf", "-.", "v"),
}


def style(group):
    if group["name"] in STYLES:
        return STYLES[group["name"]]
    color, marker = DURATIONS.get(group["decay"], ("0.3", "X"))
    return color, "-", marker


def label(group):
    words = f"{group['peak'] if 'peak' in group else group['gamma']:.3g} "
    words += f"until {group['decay']:.0%}" if group["decay"] else "throughout"
    lost, seeds = group["diverged"][-1] if "diverged" in group else 0, len(group.get("final", {}).get("train", ()))
    return words + f" ({lost} of {seeds} diverged)" * (lost > 0)


def lost(groups):
    """How many seeds of each group have diverged, as the end of a label."""
    counts = [group["diverged"][-1] for group in groups]
    return f" ({', '.join(map(str, counts))} of {len(groups[0]['final']['train'])} diverged)" * any(counts)


def chosen(groups, *names, **fields):
    return [g for g in groups if g["name"] in names and all(g[key] == value for key, value in fields.items())]


def final(group, name):
    """All seeds at the end; NaN where diverged."""
    return np.array(group["final"][name], dtype=float)


def quantiles(group, name):
    """10, 50, 90 % over the seeds that did not diverge; NaN if all did."""
    values = final(group, name)
    values = values[np.isfinite(values)]
    return np.quantile(values, [0.1, 0.5, 0.9]) if len(values) else np.full(3, np.nan)


def draw_curve(axes, times, group, name, outline=False, **options):
    """Median over seeds; 10 and 90 % as a band (or two thin lines) where the result keeps them."""
    color, line, marker = style(group)
    rows = np.array(group["curves"][name], dtype=float)
    middle = rows[:, rows.shape[1] // 2]
    options = {"color": color, "ls": line, "marker": marker, "ms": 3.5, "markevery": 0.12, "lw": 1.3} | options
    axes.plot(times, middle, **{"label": label(group)} | options)
    if rows.shape[1] == 3 and outline:
        axes.plot(times, rows[:, [0, 2]], color=options["color"], ls=line, lw=0.6)
    elif rows.shape[1] == 3:
        axes.fill_between(times, rows[:, 0], rows[:, 2], color=options["color"], alpha=0.15, lw=0)


def draw_durations(axes, groups, name, kind, words=None):
    """Final value against the share of the run before the decay: medians, 10 to 90 % of the seeds."""
    color, line, marker = KINDS[kind]
    rows = np.array([quantiles(group, name) for group in groups]).T
    shares = np.array([group["decay"] for group in groups]) + 0.004 * (list(KINDS).index(kind) - 2)
    axes.errorbar(shares, rows[1], abs(rows[[0, 2]] - rows[1]), color=color, ls=line, marker=marker, ms=5, lw=1.3,
                  capsize=3, label=(words or kind) + lost(groups))  # fmt: skip
    axes.set(xlabel="large step until (share of the run)")


def draw_diagonal(r):
    """Diagonal linear networks: curves of SGD, duration against rank and test loss, the SDE, GD, divergence."""
    figure, axes = plt.subplots(2, 4, figsize=(15, 7))
    times, sgd = np.array(r["times"]) / 1000, r["sgd"]
    for group in chosen(sgd, "small", "published small", "published"):
        draw_curve(axes[0, 0], times, group, "train")
        draw_curve(axes[0, 1], times, group, "test")
        draw_curve(axes[0, 2], np.array(r["rank_times"]) / 1000, group, "rank", markevery=1)
    axes[0, 0].set(ylabel="training loss", yscale="log", ylim=(1e-8, 1))
    axes[0, 1].set(ylabel="test loss", yscale="log")
    axes[0, 2].set(ylabel="rank of the Jacobian (1e-15)", ylim=(0, 210))
    axes[0, 0].set_title(f"SGD, data A, {r['settings']['seeds']} seeds: median, 10-90 %", loc="left")
    axes[0, 2].legend(fontsize=7, loc="upper right", bbox_to_anchor=(1, 0.93))
    panel = axes[0, 3]
    for group in r["gd_b"]:
        color, line = (DURATIONS[group["decay"]][0], "--") if group["decay"] else ("k", ":")
        values = np.array(group["curves"]["test"], dtype=float)[:, 1]
        panel.plot(times, values, color=color, ls=line, lw=1.3, label=f"GD, {label(group)}",
                   marker=DURATIONS.get(group["decay"], ("", ""))[1], ms=3.5, markevery=0.15)  # fmt: skip
    for name, marker, color in (("published", "X", "#8e5572"), ("rule", "o", "#c0392b"), ("small", "D", "0.5")):
        (group,) = chosen(r["sgd_b"], name)
        words = f"SGD, {'by the rule, ' * (name == 'rule')}{label(group)}"
        draw_curve(panel, times, group, "test", color=color, marker=marker, ls="-", label=words)
    panel.set(ylabel="test loss", yscale="log", ylim=(2e-2, 8))
    panel.legend(fontsize=6.5, loc="upper right")
    panel.set_title("data B: GD and SGD", loc="left")
    plt.setp(axes[0], xlabel="step / 1000")
    constant = chosen(r["sde"], "constant", delta=0.04)
    for panel, name in zip(axes[1], ("test", "rank"), strict=False):
        draw_durations(panel, chosen(sgd, "published"), name, "published", "SGD 0.282, as published")
        draw_durations(panel, chosen(sgd, "clean"), name, "clean", "SGD 0.27, same divisor")
        draw_durations(panel, constant, name, "constant", r"SDE, constant $\delta$ = 0.04")
    axes[1, 0].set(ylabel="test loss at the end", yscale="log", ylim=(1.5e-6, 2e-2))
    axes[1, 1].set(ylabel="rank of the Jacobian (1e-15)", ylim=(0, 210))
    axes[1, 0].legend(fontsize=7)
    panel = axes[1, 2]
    pairs = ((chosen(sgd, "published small")[0], "SGD 0.25", "0.45", "--", "v"),
             (chosen(r["sde"], "true", gamma=0.25)[0], "SDE 0.25, true noise", "k", "-", "D"),
             (chosen(sgd, "published", decay=0.5)[0], "SGD 0.282 until 50 %", "#1b4965", "--", "o"),
             (constant[2], r"SDE 0.282, $\delta$ = 0.04 until 50 %", "#1b6ca8", "-", "^"))  # fmt: skip
    for group, words, color, line, marker in pairs:
        words += lost([group])
        draw_curve(panel, times, group, "test", color=color, ls=line, marker=marker, label=words)
    panel.set(ylabel="test loss", yscale="log", xlabel="step / 1000")
    panel.legend(fontsize=7)
    panel.set_title("the effective SDE beside SGD", loc="left")
    panel, count, rule = axes[1, 3], r["settings"]["data_seeds"], r"$1.65\ /\ \langle|\nabla h|^2\rangle$"
    for k, (name, color, hatch) in enumerate((("published", "0.35", ""), ("rule", "#e9a03b", "//"))):
        gone = np.isnan(final(chosen(r["transfer"], name)[0], "train")).reshape(count, -1)
        words = f"{'0.282' if name == 'published' else rule}: {gone.mean():.0%} diverged"
        panel.bar(np.arange(count) + 0.4 * k - 0.2, gone.mean(1), 0.4, color=color, hatch=hatch, label=words, ec="w")
    panel.set(xlabel="data set (seed)", ylabel=f"share of {gone.shape[1]} SGD seeds that diverged", ylim=(0, 1.35))
    panel.set(xticks=range(count), yticks=np.linspace(0, 1, 5))
    panel.legend(fontsize=7, loc="upper right")
    panel.set_title("one step size for several data sets", loc="left")
    return figure


def draw_surface(r):
    """Train and test loss in a plane with trajectories (a smaller problem); the 2-cycle of the scalar model."""
    s = r["surface"]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.4))
    grid = np.array(s["grid"])
    lines = {"flow": ("k", "-", "gradient flow (GD 0.03)", ""), "gd": ("#e9a03b", "--", "GD, step 3", "^"),
             "sgd": ("#c0392b", "-", f"SGD, step 0.6, seed {s['shown']}", "o")}  # fmt: skip
    for panel, name in ((left, "train"), (middle, "test")):
        filled = panel.contourf(grid, grid, np.log10(np.maximum(s[name], 1e-6)), levels=np.arange(-4, 1.6, 0.5),
                                cmap="Greys_r", alpha=0.75, extend="both")  # fmt: skip
        panel.plot(0, 0, "wo", mec="k", ms=7, zorder=5, label="start")
        panel.plot(*s["star"], "w*", mec="k", ms=16, zorder=4, label=r"$u = v = \sqrt{\theta^*}$")
        for kind, (color, line, words, marker) in lines.items():
            track, run = np.array(s["tracks"][kind], dtype=float), s["shown"] if kind == "sgd" else 0
            panel.plot(*track.T, color=color, ls=line, lw=0.5 if marker else 1.6, marker=marker, ms=2, zorder=3)
            end = float(s["final"][kind][1][run] or np.nan)
            panel.plot(*track[-1], "X", color=color, ms=9, mec="w", zorder=5, label=f"{words}: test {end:.1e}")
        panel.set(xlabel=r"towards $\sqrt{\theta^*}$", ylabel="towards the end of the flow")
        panel.set(xlim=grid[[0, -1]], ylim=grid[[0, -1]])
        panel.grid(False)
        figure.colorbar(filled, ax=panel, label=f"log10 {name} loss")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=5, fontsize=8)
    gone = np.mean([value is None for value in s["final"]["sgd"][0]])
    middle.set_title(f"crosses: ends; {gone:.0%} of {len(s['final']['sgd'][0])} SGD seeds diverge", loc="left")
    a, losses = np.array(r["cycle"]["a"]), np.array(r["cycle"]["losses"])
    fine = np.linspace(1, np.sqrt(5) - 1, 200)
    for k, (words, marker) in enumerate((("lower level", "v"), ("upper level", "^"))):
        right.plot(a, losses[:, k], marker, color="k", ms=5, label=f"simulated, {words}")
    right.plot(fine, cycle_levels(fine).T, color="#c0392b", lw=1.2, label=["theory", None])
    right.plot(fine, (fine - 1) / 4, color="0.4", ls=":", label="leading order, (a - 1) / 4")
    right.set(xlabel=r"$a = \eta y$", ylabel=r"loss / $y^2$ on the plateau")
    right.legend(fontsize=7.5)
    right.set_title(r"GD on $(x^2 - y)^2 / 4$ stabilises on a 2-cycle", loc="left")
    return figure


def cycle_levels(a):
    """Losses / y^2 of the 2-cycle for 1 < a < sqrt(5) - 1: lower, upper."""
    a = np.asarray(a, dtype=float)
    root = np.sqrt(np.maximum((a - 1) * (a + 3), 0))
    levels = np.array([((a + 1 + sign * root) / (2 * a) - 1) ** 2 / 4 for sign in (-1, 1)])
    return np.sort(levels, 0)


def draw_regression(r):
    """The strip of fitted functions; rank and sparsity along the run; peak and duration apart."""
    figure = plt.figure(figsize=(15, 7.6))
    upper, lower = figure.subfigures(2, 1, height_ratios=[1.15, 1])
    groups, grid = r["groups"], np.array(r["grid"])
    strip = upper.subplots(3, len(r["strip_times"]), sharex=True, sharey=True)
    colors = "0.5", "#1b4965", "#c0392b"
    for row, (group, color) in enumerate(zip(groups[:3], colors, strict=True)):
        for column, t in enumerate(r["strip_times"]):
            panel = strip[row, column]
            panel.plot(grid, np.array(r["functions"][column][row], dtype=float), color=color, lw=1.2)
            panel.plot(r["x"], r["y"], "o", color="k", ms=3, mfc="w")
            panel.set(ylim=(-4.5, 5), title=f"step {t:,}" if row == 0 else "", xlabel="x" if row == 2 else None)
        strip[row, 0].set_ylabel(f"peak {group['peak']:.2g},\nuntil {group['decay']:.0%}\nf(x)", fontsize=8)
        loss = final(group, "train")[r["shown"]]
        panel.text(0.97, 0.04, f"loss {loss:.1g}", transform=panel.transAxes, ha="right", size=7.5)
    upper.suptitle(f"fitted functions of seed {r['shown']}", fontsize=9.5, x=0.02, ha="left")
    axes = lower.subplots(1, 5)
    for group, color, line, marker in zip(groups[:3], colors, (":", "-", "--"), "DoX", strict=True):
        for panel, name in zip(axes, ("train", "rank", "sparsity_1"), strict=False):
            draw_curve(panel, r["times"], group, name, color=color, ls=line, marker=marker,
                       label=f"peak {group['peak']:.2g}, {group['decay']:.0%}")  # fmt: skip
            panel.set(xlabel="step")
            panel.xaxis.set_major_locator(plt.MaxNLocator(3))
    axes[0].set(yscale="log", ylabel="training loss", ylim=(1e-6, 1e2))
    for panel, words in zip(
        axes[1:], ("rank of the Jacobian (1e-4)", "feature sparsity", "rank at the end"), strict=False
    ):
        panel.set(ylabel=words)
    axes[1].legend(fontsize=7, title=f"as published, {r['settings']['seeds']} seeds", title_fontsize=7)
    for panel, name in zip(axes[3:], ("rank", "train"), strict=True):
        draw_durations(panel, chosen(groups, "clean"), name, "clean", "peak 0.02")
        draw_durations(panel, chosen(groups, "clean low"), name, "clean low", "peak 0.00023")
    axes[3].legend(fontsize=7, title="peak and duration apart", title_fontsize=7)
    axes[4].set(ylabel="training loss at the end", yscale="log")
    return figure


def draw_relu(r):
    """Where neurons point, two layers; rank and sparsity of two- and three-layer students against step and duration."""
    figure, axes = plt.subplots(2, 4, figsize=(15, 7.2))
    pictures, two, three = r["neurons"], r["two"], r["three"]
    names = {"start": "first seed at the start; full: a > 0", "small": "after the small step, 0.13",
             "edge": f"after {r['edge'][0]:.2g} until 50 %"}  # fmt: skip
    for panel, (name, words) in zip(axes[0], names.items(), strict=False):
        rows = np.array(pictures[name]["rows"], dtype=float)
        reach = 1.15 * np.linalg.norm(rows, axis=1).max()
        for w, sign in zip(pictures["teacher"]["rows"], pictures["teacher"]["signs"], strict=True):
            ray = np.outer([0, reach / np.linalg.norm(w)], w)
            panel.plot(*ray.T, color="0.75", lw=5, ls="-" if sign > 0 else (0, (1, 1)))
        for w, sign in zip(rows, pictures[name]["signs"], strict=True):
            panel.plot([0, w[0]], [0, w[1]], color="k", lw=0.7)
            panel.plot(*w, "o", color="k", mfc="k" if sign > 0 else "w", ms=4.5)
        panel.axis("equal")
        scale = "" if name == "start" else "|a|"
        panel.set(xlabel=f"$w_1 {scale}$", ylabel=f"$w_2 {scale}$")
        panel.set_title(words, loc="left")
    panel, small = axes[0, 3], final(chosen(two, "small")[0], "rank")
    for kind, words in (("edge", "each seed's largest stable step"), ("published", "0.455, where it survives")):
        (group,) = chosen(two, kind, decay=0.5)
        color, _, marker = KINDS[kind]
        alive = np.isfinite(final(group, "rank"))
        words += f" ({alive.sum()} of {len(alive)})"
        jitter = 0.3 * np.sin(np.arange(len(small)) * 7.0)
        panel.plot(
            (small + jitter)[alive], final(group, "rank")[alive], marker, color=color, ms=4, mfc="none", label=words
        )
    panel.plot([0, 40], [0, 40], color="0.5", lw=0.8)
    panel.set(xlabel="rank after the small step", ylabel="rank after the large step", xlim=(0, 40), ylim=(0, 40))
    panel.legend(fontsize=7, loc="upper left")
    panel.set_title(f"two layers, {len(small)} seeds", loc="left")
    for group in chosen(three, "small", "published"):
        for panel, name in zip(axes[1], ("test", "rank"), strict=False):
            draw_curve(panel, r["three_times"], group, name, outline=True)
    axes[1, 0].set(yscale="log", ylabel="test loss", xlabel="step")
    axes[1, 1].set(ylabel="rank of the Jacobian (1e-4)", xlabel="step")
    axes[1, 0].legend(fontsize=7, title="peak step", title_fontsize=7)
    axes[1, 0].set_title(f"three layers, {r['settings']['seeds']} seeds (thin: 10, 90 %)", loc="left")
    for panel, name in zip(axes[1, 2:], ("rank", "sparsity_2"), strict=True):
        draw_durations(panel, chosen(three, "published"), name, "published", "peak 0.10, 0.15, 0.18 (published)")
        draw_durations(panel, chosen(three, "clean"), name, "clean", "peak 0.15, same divisor")
        low, middle, high = quantiles(three[0], name)
        panel.axhline(middle, color="k", ls=":", lw=1.2, label="small step")
        panel.axhspan(low, high, color="k", alpha=0.07, lw=0)
    axes[1, 2].legend(fontsize=7, loc="upper right", title="peak and duration apart", title_fontsize=7)
    axes[1, 2].set(ylim=(0, 200), ylabel="rank at the end")
    axes[1, 3].set(ylim=(0, None), ylabel="feature sparsity of layer 2 at the end")
    return figure


def draw_deep(r):
    """Deep networks: losses and feature sparsity along the runs, and per block at the end."""
    blocks, s = r["blocks"], r["settings"]
    figure, axes = plt.subplots(2, 4, figsize=(15, 7))
    runs = [run for run in r["runs"] if run.get("step")]
    for run in runs:
        color, marker = DURATIONS.get(run["decay"], ("k", "D"))
        line, filled = {"small": (":", color), "published": ("-", color), "clean": ("--", "w")}[run["schedule"]]
        look = {"color": color, "ls": line, "marker": marker, "mfc": filled, "ms": 4, "lw": 1.3, "label": label(run)}
        axes[0, 0].plot(run["step"], run["train_loss"], **look)
        axes[0, 1].plot(run["step"], 1 - np.array(run["test_accuracy"]), **look)
        sparsity, active = np.array(run["sparsity"]), np.array(run["active"])
        axes[0, 2].plot(range(len(blocks)), sparsity[-1], **look)
        axes[0, 3].plot(range(len(blocks)), active[-1], **look)
        for panel, block in zip(axes[1], range(len(blocks))[-4:], strict=False):
            panel.plot(run["step"], sparsity[:, block], **look)
            panel.set(xlabel="step", ylabel=f"sparsity of {blocks[block]}", ylim=(0, 1.02))
    for panel, name in ((axes[0, 2], "feature sparsity at the end"), (axes[0, 3], "the same with duplicates")):
        panel.set(ylabel=name, ylim=(0, 1.02))
        panel.set_xticks(range(len(blocks)), [block.replace("transition", "tr.") for block in blocks], fontsize=7)
    axes[0, 0].set(xlabel="step", ylabel="training loss", yscale="log")
    axes[0, 1].set(xlabel="step", ylabel="test error", ylim=(0, 1))
    about = f"{s['model']}, {s['dataset']}, width {s['width']}, batch {s['batch_size']}, {s['steps']:,} steps"
    seeds = f"{s['seeds']} seed{'s' * (s['seeds'] > 1)}"
    figure.suptitle(f"{about}, {s['recipe']} recipe, {seeds}", x=0.01, ha="left", size=9.5)
    unique = dict(zip(*axes[0, 0].get_legend_handles_labels()[::-1], strict=True))
    title = "largest step; solid: as published, dashed: same peak and divisor"
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=7, title=title, fontsize=8)
    return figure


FIGURES = {
    "sparse_diagonal": (("sparse_diagonal",), draw_diagonal),
    "sparse_surface": (("sparse_diagonal",), draw_surface),
    "sparse_regression": (("sparse_regression",), draw_regression),
    "sparse_relu": (("sparse_relu",), draw_relu),
    "sparse_deep": (("sparse_deep",), draw_deep),
}
