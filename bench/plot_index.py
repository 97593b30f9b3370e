#!/usr/bin/env python3
"""Plots what `icefield bench index --json` and `icefield eval --json` measured: output error, lost
answers and more against what was moved.

    python3 -m venv .cache/plots && .cache/plots/bin/pip install -r bench/plot_requirements.txt
    build/release/bin/icefield bench index --budget=32,64,128,256 --json > index.json
    build/release/bin/icefield eval --context_tokens=7168 --noprobes --json \\
        --method=icefield:64,pages_quest:64:256 > eval.json
    .cache/plots/bin/python bench/plot_index.py index.json eval.json --out docs/images

One PNG per kind of keys, index_<keys>.png, and index_answers.png of all evaluations together. A row
per measure and what it is set against, a column per number of tokens (of one alone: a row per
measure); each method is a line over its budgets. Breadths in numbers are one line: each belongs to
its budget.
"""

import argparse
import collections
import json
import pathlib
import re

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 (the backend comes first)

# Name, label, colour (Okabe and Ito's, safe for colour-blind readers), marker.
METHODS = [
    ("icefield", "Icefield", "#d55e00", "o"),
    ("exact_fp32", "exact scan, our tail", "#000000", "s"),
    ("exact_int8", "exact int8 scan, our tail", "#777777", "D"),
    ("exact_no_tail", "exact top-k, no tail", "#56b4e9", "v"),
    ("pages_mean", "positional pages, mean", "#f0e442", "<"),
    ("pages_quest", "positional pages, Quest's bound", "#e69f00", ">"),
    ("pages_icecache", "semantic pages, IceCache's rule", "#0072b2", "^"),
    ("flat_retroinfer", "flat k-means, RetroInfer's tail", "#009e73", "P"),
]
MEASURES = [
    ("lost_answers", "lost answers"),
    ("strong_misses", "strong tokens missed"),
    ("kl", "KL of the continuation, nats"),
    ("output_error_mean", "output error, mean"),
]
LOGARITHMIC = {"kl", "output_error_mean"}
ANSWERS = "answers"  # what evaluations go by, as others do by their keys
AGAINST = [
    ("moved_bytes", "bytes read: index and K/V, per step and head"),
    ("pages_touched", "pages of K/V moved (single rows, or of 8 or 16 tokens)"),
]


def load(paths):
    """{keys: {n: {(method, breadth): {(budget, breadth): {figure: value}}}}}"""
    nested = lambda: collections.defaultdict(nested)  # noqa: E731
    table = nested()
    answers = nested()
    for path in paths:
        report = json.loads(pathlib.Path(path).read_text())
        for figure in report["figures"]:
            p = figure["params"]
            if "method" not in p or p.get("task", "all") not in ("all", "continuation"):
                continue
            breadth = p["breadth"]
            line = (p["method"], "some" if str(breadth).isdigit() else breadth)
            point = (p["budget"], breadth)
            if report["command"] == "eval":
                values = answers[p["context_tokens"]][line][point]
                values.setdefault(figure["name"], []).append(figure["value"])
            else:
                table[p["keys"]][p["n"]][line][point][figure["name"]] = figure["value"]
    for n, lines in answers.items():
        for line, points in lines.items():
            for point, values in points.items():
                table[ANSWERS][n][line][point] = summed(values)
    return table


def summed(values):
    """One point out of the figures of several evaluations, which count as many documents each."""
    mean = {name: sum(each) / len(each) for name, each in values.items()}
    result = {"lost_answers": mean["lost"] / mean["full_right"],
              "moved_bytes": mean["moved_bytes"], "pages_touched": mean["pages_per_token"]}
    if "kl" in mean:
        result["kl"] = mean["kl"]
    return result


def label_of(title, breadth, several):
    if breadth is None or (not several and breadth != "some"):
        return title
    return {"all": f"{title}, all codes ranked", "rule": f"{title}, the default's breadth",
            "some": f"{title}, a quarter of the codes"}.get(breadth, f"{title}, breadth {breadth}")


def plot_panel(axes, lines, against, measure):
    several = len([method for method, _ in lines if method == "icefield"]) > 1
    for name, title, colour, marker in METHODS:
        breadths = sorted((breadth for method, breadth in lines if method == name), key=str)
        for i, breadth in enumerate(breadths):
            points = sorted((v[against], v[measure]) for v in lines[name, breadth].values())
            axes.plot(*zip(*points), color=colour, marker=marker, markersize=5, linewidth=1.2,
                      linestyle=["-", "--", ":"][i % 3],
                      label=label_of(title, breadth, several),
                      zorder=3 if name == "icefield" else 2)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5), numticks=12))
    axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    if measure in LOGARITHMIC:
        axes.set_yscale("log")
    else:
        axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
    unit = "B" if against == "moved_bytes" else ""
    axes.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(unit, sep=" " if unit else ""))
    axes.grid(True, which="major", linewidth=0.4, alpha=0.5)


def plot(keys, sizes, out):
    some = next(iter(next(iter(sizes.values())).values()))
    measured = {name for values in some.values() for name in values}
    measures = [m for m in MEASURES if m[0] in measured]
    columns = sorted(sizes)
    # Several sizes stand side by side; one has what it is set against side by side.
    cells = ([[(m, a, n) for n in columns] for m in measures for a in AGAINST] if len(columns) > 1
             else [[(m, a, columns[0]) for a in AGAINST] for m in measures])
    figure, grid = plt.subplots(len(cells), len(cells[0]), squeeze=False, sharey="row",
                                figsize=(1.5 + 4 * len(cells[0]), 1.2 + 2.9 * len(cells)))
    labels = {}
    for r, row in enumerate(cells):
        for c, ((measure, measure_label), (against, against_label), n) in enumerate(row):
            axes = grid[r][c]
            plot_panel(axes, sizes[n], against, measure)
            axes.set_xlabel(against_label, fontsize=8)
            if r == 0:
                axes.set_title(f"{n:,} tokens".replace(",", " "), fontsize=10)
            if c == 0:
                axes.set_ylabel(measure_label, fontsize=9)
            axes.tick_params(labelsize=8)
            labels.update(zip(*reversed(axes.get_legend_handles_labels())))
        if measure not in LOGARITHMIC:
            grid[r][0].set_ylim(-0.02 * grid[r][0].get_ylim()[1], None)
    what = "questions asked of the model" if keys == ANSWERS else f"keys: {pathlib.Path(keys).name}"
    figure.suptitle(f"{what}. Lower and further left is better", fontsize=11)
    figure.legend(labels.values(), labels.keys(), loc="lower center", fontsize=8,
                  ncols=min(4, 1 + len(cells[0])))
    legend_share = 0.9 / figure.get_size_inches()[1]
    figure.tight_layout(rect=(0, legend_share, 1, 0.985))
    out.mkdir(parents=True, exist_ok=True)
    stem = pathlib.Path(keys).name.removesuffix(".bin")
    name = "index_" + re.sub(r"[^A-Za-z0-9]+", "_", stem).strip("_") + ".png"
    figure.savefig(out / name, dpi=110)
    plt.close(figure)
    print(out / name)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", nargs="+", help="what icefield bench index or eval --json printed")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/images"))
    options = parser.parse_args()
    for keys, sizes in load(options.json).items():
        plot(keys, sizes, options.out)


if __name__ == "__main__":
    main()
