"""One page of what came in: numbers, long tail, sizes, sample pictures, and every picture that was left out or changed.

The page is one file: pictures and plots are inside it. matplotlib draws, and is imported only for that.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from downpour import how_to_install
from downpour.model.vision.preparing.manifest import mean
from downpour.model.vision.preparing.pictures import KINDS
from downpour.model.vision.preparing.plan import SPLITS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _FAINT, _TRAIN, _HELDOUT = "#1f2933", "#d9e2ec", "#3b6fb6", "#d1495b"
_COLOURS = dict(zip(SPLITS, (_TRAIN, _HELDOUT), strict=True))
_MOST_ROWS = 2000  # of the table
_MOST_LABELS = 30
_EDGES = [0, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096]  # pixels

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Pictures prepared for Downpour</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: {ink}; max-width: 1100px; margin: 2rem auto; padding: 0 1rem }}
h1 {{ font-size: 1.5rem }} h2 {{ font-size: 1.15rem; margin-top: 2.2rem }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ text-align: left; vertical-align: top; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid {faint};
  overflow-wrap: anywhere }}
.plots {{ display: flex; flex-wrap: wrap; gap: 1rem }} .plots img {{ max-width: 100% }}
.grid {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); gap: 1rem }}
figure {{ margin: 0 }} figure img {{ display: block; max-width: 100%; height: 100px; object-fit: contain }}
figcaption {{ font-size: 12px; line-height: 1.3; overflow-wrap: anywhere }} .faint {{ color: #66788a }}
</style></head><body>
<h1>Pictures prepared for Downpour</h1>
{numbers}
<h2>Labels, pictures, sizes</h2><div class="plots">{plots}</div>
<h2>Most frequent and rarest labels</h2>{labels}
<h2>Some training pictures</h2><div class="grid">{samples}</div>
<h2>What was left out or changed</h2>{table}
</body></html>
"""


def check_installed() -> None:
    """Raises `ValueError` if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(f"the page needs matplotlib, which is not installed: {how_to_install('images')}")


def page(manifest: Mapping[str, Any], samples: Sequence[tuple[str, Sequence[int], str]], names: Sequence[str]) -> str:
    """The page's HTML.

    Args:
        manifest: See `downpour.model.vision.preparing.manifest`.
        samples: Name, labels and JPEG (base64) of some pictures.
        names: Of the labels.
    """
    return _PAGE.format(
        ink=_INK,
        faint=_FAINT,
        numbers=_table([], _numbers(manifest)),
        plots="".join(f'<img alt="{escape(alt)}" src="{source}">' for alt, source in _plots(manifest)),
        labels=_labels(manifest),
        samples="".join(_figure(name, [names[label] for label in labels], jpeg) for name, labels, jpeg in samples),
        table=_left_out_or_changed(manifest),
    )


def _numbers(manifest: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    def listed(counts: Mapping[str, int]) -> str:
        return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"

    own, filled = (mean(manifest["labels_an_image"][which]) for which in ("own", "with_ancestors"))
    empty, widest = manifest["without_training_pictures"], manifest["widest"]
    yield "Pictures", listed(manifest["pictures"])
    yield "Bytes", listed(manifest["bytes"])
    yield "Labels", f"{manifest['num_labels']:,}, at most {manifest['depth']} deep"
    yield "Most children", f"{widest['children']:,} of {widest['label']!r}" if widest["children"] else "none: no tree"
    yield "Labels an image", f"{own:.2f}; {filled:.2f} with their ancestors"
    yield "Source formats", listed(manifest["formats"])
    yield "Left out", listed(manifest["num_skipped"])
    yield "Converted or worth knowing", listed(manifest["num_changed"])
    yield "Labels without a training picture", f"{len(empty):,}" + (f": {', '.join(empty[:20])}" if empty else "")
    yield "Settings", ", ".join(f"{name}={value}" for name, value in manifest["settings"].items())


def _labels(manifest: Mapping[str, Any]) -> str:
    rows = sorted(manifest["labels"].items(), key=lambda item: -item[1][SPLITS[0]])
    if len(rows) > 2 * _MOST_LABELS:
        rows = [*rows[:_MOST_LABELS], ("...", dict.fromkeys(SPLITS, "")), *rows[-_MOST_LABELS:]]
    return _table(["label", *SPLITS], ((name, *(str(counts[split]) for split in SPLITS)) for name, counts in rows))


def _figure(name: str, labels: Sequence[str], jpeg: str) -> str:
    text = f'{escape(", ".join(labels))}<br><span class="faint">{escape(name)}</span>'
    return f'<figure><img alt="" src="data:image/jpeg;base64,{jpeg}"><figcaption>{text}</figcaption></figure>'


def _left_out_or_changed(manifest: Mapping[str, Any]) -> str:
    skipped = [(each["name"], f"skipped: {each['kind']}", each["why"]) for each in manifest["skipped"]]
    changed = [
        (each["name"], ", ".join(f"{KINDS[kind].outcome}: {kind}" for kind in each["kinds"]), each["why"])
        for each in manifest["changed"]
    ]
    rows = skipped + changed
    more = f"<p>{len(rows) - _MOST_ROWS:,} more are in manifest.json.</p>" if len(rows) > _MOST_ROWS else ""
    return _table(["picture", "what", "why"], rows[:_MOST_ROWS]) + more if rows else "<p>Nothing.</p>"


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in heading) + "</tr>" if heading else ""
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{head}{body}</table>"


def _plots(manifest: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    yield "Pictures of each label, by rank", _drawn(_long_tail, manifest)
    yield "Number of labels of a picture", _drawn(_labels_an_image, manifest)
    yield "Longer side of the source pictures", _drawn(_sizes, manifest)


def _drawn(draw: Any, manifest: Mapping[str, Any]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 3.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes, manifest)
    figure.savefig(file := io.BytesIO(), format="png", metadata={"Software": None})
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _long_tail(axes: Axes, manifest: Mapping[str, Any]) -> None:
    for split in SPLITS:
        counts = sorted((label[split] for label in manifest["labels"].values() if label[split]), reverse=True)
        axes.plot(range(1, len(counts) + 1), counts, color=_COLOURS[split], label=split, marker=".")
    axes.set(xscale="log", yscale="log", xlabel="rank of the label", ylabel="pictures", title="Long tail")
    axes.legend(frameon=False)


def _labels_an_image(axes: Axes, manifest: Mapping[str, Any]) -> None:
    for which, colour, shift in (("own", _TRAIN, -0.2), ("with_ancestors", _HELDOUT, 0.2)):
        counts = manifest["labels_an_image"][which]
        places = [int(number) + shift for number in counts]
        axes.bar(places, list(counts.values()), width=0.4, color=colour, label=which.replace("_", " "))
    axes.locator_params(axis="x", integer=True)
    axes.set(xlabel="labels of a picture", ylabel="pictures", title="Labels an image")
    axes.legend(frameon=False)


def _sizes(axes: Axes, manifest: Mapping[str, Any]) -> None:
    sides = {int(side): count for side, count in manifest["longer_sides"].items()}
    edges = [*_EDGES, max([_EDGES[-1], *sides]) + 1]
    bins = [
        sum(count for side, count in sides.items() if low <= side < high) for low, high in itertools.pairwise(edges)
    ]
    first = next(i for i, count in enumerate(bins) if count)
    last = max(i for i, count in enumerate(bins) if count)
    shown = range(first, last + 1)
    axes.bar(shown, [bins[i] for i in shown], color=_TRAIN)
    axes.set_xticks(shown, [f"{edges[i]}-{edges[i + 1] - 1}" for i in shown], rotation=60)
    axes.set(xlabel="longer side, pixels", ylabel="pictures", title="Sizes of the sources")
