"""The report: results.json, a table in Markdown, and the main figures as bars."""

import json
import re
import statistics
from itertools import product
from pathlib import Path
from typing import Any

from contestants import GO, GO_PLUGIN_VERSION, OURS, PEERS, Peer
from figures import DRAWN, FIGURES, IMPORTS, MODES, USUAL, written

Document = dict[str, Any]  # what results.json holds

# Rows of the second table: where their values are in the document, their label, and what they are divided by.
COMMAND = {"imports": "the command", "imports, and a line": "its imports"}
BESIDES: list[tuple[str, str, str, dict[str, str]]] = [
    ("floor", "plain", "process start to handshake line", COMMAND),
    ("floor", "mtls", "the same with AutoMTLS", COMMAND),
    ("floor", "one file", "the same as one file, made by shiv", {"plain": "the script's"}),
    ("floor", "imports", f"the command `python -c '{IMPORTS}'`", {}),
    ("floor", "imports, and a line", "its imports, until they are done", {}),
    ("terraform", "goplugin", "`terraform apply` of 20 resources, on goplugin", {"runner": "tf's own runner"}),
    ("terraform", "runner", "the same on tf's own runner, which keeps its key on disk and verifies nobody", {}),
]
for mode, peer in product(MODES, (OURS, GO)):
    label = f"{USUAL.label}, with GRPCBrokerMultiplex: {peer.name} {MODES[mode]}"
    BESIDES.append(("multiplexed", f"{mode} {peer.key} True", label, {f"{mode} {peer.key} False": "without it"}))


def write(document: Document, output: Path) -> None:
    """Write the three files, and show the table."""
    output.mkdir(parents=True, exist_ok=True)
    # Six significant digits, since noise makes the rest worthless; and a line for each list of numbers.
    document = json.loads(json.dumps(document), parse_float=lambda text: float(f"{float(text):.6g}"))
    text = re.sub(r"\[[^\]\[\"]*\]", lambda match: " ".join(match[0].split()), json.dumps(document, indent=1))
    (output / "results.json").write_text(text + "\n")
    (output / "results.md").write_text(table := markdown(document))
    draw(document, output / "results.svg")
    print(f"\n{table}\n{document['minutes']} minutes. In {output}: results.json, results.md, results.svg")


def cell_of(document: Document, mode: str, key: str, peer: Peer) -> tuple[list[float], list[str]]:
    """The values and the errors."""
    cell = document["figures"].get(mode, {}).get(key, {}).get(peer.key, {})
    return cell.get("values", []), cell.get("errors", [])


def ratio(values: list[float], base: list[float]) -> float:
    """Round by round: what slows the machine for a while slows both."""
    if len(values) == len(base):
        return statistics.median(over / under for over, under in zip(values, base, strict=True))
    return statistics.median(values) / statistics.median(base)


def markdown(document: Document) -> str:
    notes: list[str] = []

    def note(text: str) -> str:
        if text not in notes:
            notes.append(text)
        return f" [{notes.index(text) + 1}]"

    def cell(mode: str, key: str, peer: Peer) -> str:
        values, errors = cell_of(document, mode, key, peer)
        if not values:
            return "no" + note(errors[-1] if errors else "not measured")
        failed = note(f"failed {len(errors)} of {len(errors + values)} times: {errors[-1]}") if errors else ""
        base, _ = cell_of(document, mode, key, OURS)
        if base and peer is not OURS:
            return f"{ratio(values, base):.2f}{failed}"
        low, _, high = statistics.quantiles(values if len(values) > 1 else values * 2, n=4, method="inclusive")
        return written(FIGURES[key][1], statistics.median(values), *((low, high) if peer is OURS else ())) + failed

    def verified(peer: Peer) -> str:
        answers = document["strangers refused"]["mtls"].get(peer.key)
        if answers is None:
            return cell("mtls", "verified", peer)
        served = ", ".join(sorted(stranger for stranger, answer in answers.items() if answer == "served"))
        text = "served to strangers with a self-signed certificate or none: "
        return f"no{note(text + served)}" if served else "yes"

    rows = [["", *(peer.name for peer in PEERS)], ["---", *["---:"] * len(PEERS)]]
    for mode, label in MODES.items():
        rows.append([f"**{label}**", *[""] * len(PEERS)])
        for key, (label, unit) in FIGURES.items():
            if (key, mode) != ("kv_put", "mtls"):  # the example host has no AutoMTLS
                rows.append([f"{label} {'↑' if unit == '/s' else '↓'}", *(cell(mode, key, peer) for peer in PEERS)])
    rows.append(["verifies the caller", *map(verified, PEERS)])
    besides = [["besides", "", "divided by"], ["---", "---:", "---"]]
    for section, series, label, bases in BESIDES:
        found, error = document[section]["values"], document[section]["error"]
        if error:
            besides.append([label, "no" + note(error), ""])
            continue
        ratios = [f"{words}: {ratio(found[series], found[base]):.2f}" for base, words in bases.items()]
        unit = "/s" if section == "multiplexed" else "s"
        besides.append([label, written(unit, statistics.median(found[series])), "; ".join(ratios)])
    tables = ["\n".join(f"| {' | '.join(row)} |" for row in table) for table in (rows, besides)]
    footnotes = [f"[{number}] {text.replace('|', chr(92) + '|')}" for number, text in enumerate(notes, 1)]
    return "\n\n".join([head(document), *tables, steadiness(document), "  \n".join(footnotes)]).rstrip() + "\n"


def head(document: Document) -> str:
    about = document["machine"]
    return (
        f"{document['date']}, {about['processor']}, {about['cores']} cores, {about['system']}, "
        f"Python {document['python']}, {document['versions']['go'].get('go', 'Go')}, go-plugin {GO_PLUGIN_VERSION}"
        f"{'; a quick run, and rough' if document['quick'] else ''}. This plugin: the median, and in brackets the "
        "middle half of what was measured. The others: the median of their rounds, each divided by this plugin's. "
        "↓ less is better, ↑ more is better."
    )


def steadiness(document: Document) -> str:
    """How steady the machine was, by what is the same in all rounds and hardly Python's."""
    parts = []
    for mode, label in MODES.items():
        if rates := cell_of(document, mode, USUAL.keys[0], GO)[0]:
            first, last = f"{rates[0]:,.0f}/s in the first round", f"{rates[-1]:,.0f}/s in the last"
            parts.append(f"{label} {first}, {last}, {min(rates):,.0f}/s at least")
    return f"The plugin in Go, {USUAL.label}: {'; '.join(parts)}. On a quiet machine these are the same."


def draw(document: Document, path: Path) -> None:
    """The main figures as bars, one panel each, with AutoMTLS below."""
    import matplotlib

    matplotlib.use("svg")
    # Text stays text, so that the file is small; the same figures always give the same file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bench", "font.size": 9})
    from matplotlib import pyplot

    shape: dict[str, Any] = {"figsize": (14, 4.8), "sharex": "col", "sharey": True, "layout": "constrained"}
    chart, axes = pyplot.subplots(len(MODES), len(DRAWN), **shape)
    for row, (mode, label) in zip(axes, MODES.items(), strict=True):
        row[0].set_ylabel(label, fontweight="bold")
        for axis, key in zip(row, DRAWN, strict=True):
            for place, peer in enumerate(PEERS):
                values, _ = cell_of(document, mode, key, peer)
                value = statistics.median(values) if values else 0
                colour = "#d55e00" if peer is OURS else "#e9a06b" if peer.name.startswith(OURS.name) else "#b8b8b8"
                axis.barh(place, value, color=colour)
                text = written(FIGURES[key][1], value) if values else "no"
                axis.annotate(text, (value, place), xytext=(3, 0), textcoords="offset points", va="center")
            axis.spines[["top", "right", "bottom"]].set_visible(False)
            axis.tick_params(left=False)
    for axis, key in zip(axes[0], DRAWN, strict=True):
        label, unit = FIGURES[key]
        title = re.sub("(,| that) ", "\\1\n", label)
        axis.set_title(f"{title}\n{'more' if unit == '/s' else 'less'} is better", fontsize=9, loc="left")
        axis.set_xlim(right=1.5 * axis.get_xlim()[1])  # room for the numbers
        axis.set_xticks([])
    axes[0][0].set_yticks(range(len(PEERS)), [peer.name for peer in PEERS])
    axes[0][0].invert_yaxis()
    chart.savefig(path, metadata={"Date": None})
    pyplot.close(chart)
