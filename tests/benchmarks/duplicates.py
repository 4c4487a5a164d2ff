"""Near-duplicates: which planted copies are found, how many other pictures are taken for copies, and what it costs.

    python -m tests.benchmarks.duplicates [--photos=FOLDER] [--sizes=5000,10000,20000] [--plot=duplicates.png]

Recall: of every picture a copy of each kind is compared with its original; it is found if the two are near each other.
False alarms: pairs of different originals that are near each other, of all pairs. Some are none, but copies that the
set had: --list names them, to be looked at. Pictures: OpenMoji, drawn at 256 pixels, every eighth; with --photos, all
JPEG files below that folder, and as many pieces, of the photographs cut into 16: many show nothing but sky or a wall.

Cost: CPU seconds of one core to hash and to match two sets of the same size, of pieces of the photographs (of the
drawings without them) that do not overlap.

The last line is `RESULT {json}`: recall and false alarms by set, kind and distance, and the cost by size.
"""

from __future__ import annotations

import io
import itertools
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from downpour.launch.roles import entry
from downpour.model.vision import hashing, openmoji

_PHOTOS = flags.DEFINE_string("photos", None, "Folder with photographs; none by default.")
_SIZES = flags.DEFINE_list("sizes", ["5000", "10000", "20000"], "Pictures of each set whose cost is measured.")
_EVERY = flags.DEFINE_integer("every", 8, "Of the drawings, every which one.", lower_bound=1)
_PLOT = flags.DEFINE_string("plot", None, "File for a figure of the cost.")
_LIST = flags.DEFINE_boolean("list", False, "Whether false alarms are listed by name.")

DISTANCES = (4, 6, 8, 10)
Picture = Image.Image


def resized(picture: Picture, rng: random.Random) -> Picture:
    """Half to five quarters of its size."""
    factor = rng.choice([0.5, 0.75, 1.25])
    size = round(picture.width * factor), round(picture.height * factor)
    return picture.resize(size, Image.Resampling.BICUBIC)


def recompressed(picture: Picture, _: random.Random) -> Picture:
    """JPEG of quality 50."""
    return Image.open(io.BytesIO(encoded(picture, quality=50)))


def cropped(picture: Picture, rng: random.Random) -> Picture:
    """A window of 95 % of both sides, anywhere."""
    width, height = round(picture.width * 0.95), round(picture.height * 0.95)
    left, top = rng.randint(0, picture.width - width), rng.randint(0, picture.height - height)
    return picture.crop((left, top, left + width, top + height))


def trimmed(picture: Picture, _: random.Random) -> Picture:
    """5 % less on every side."""
    across, down = round(picture.width * 0.05), round(picture.height * 0.05)
    return picture.crop((across, down, picture.width - across, picture.height - down))


def mirrored(picture: Picture, _: random.Random) -> Picture:
    """Left to right."""
    return ImageOps.mirror(picture)


def recolored(picture: Picture, rng: random.Random) -> Picture:
    """Warmer by a quarter, and paler or more saturated."""
    pixels = np.asarray(picture) * np.array([1.15, 1.0, 0.75])
    warm = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return ImageEnhance.Color(warm).enhance(rng.choice([0.3, 1.6]))


def brightened(picture: Picture, rng: random.Random) -> Picture:
    """Gamma 0.6 or 1.6."""
    gamma = rng.choice([0.6, 1.6])
    return Image.fromarray(((np.asarray(picture) / 255) ** gamma * 255).astype(np.uint8))


def swapped(picture: Picture, _: random.Random) -> Picture:
    """Red and blue exchanged."""
    red, green, blue = picture.split()
    return Image.merge("RGB", (blue, green, red))


KINDS: tuple[Callable[[Picture, random.Random], Picture], ...] = (
    resized, recompressed, cropped, trimmed, mirrored, recolored, brightened, swapped,
)  # fmt: skip


def encoded(picture: Picture, quality: int = 95) -> bytes:
    """As a JPEG file."""
    file = io.BytesIO()
    picture.save(file, "jpeg", quality=quality)
    return file.getvalue()


def photographs(folder: Path) -> Iterator[tuple[str, Picture]]:
    """Name and picture of every JPEG file below a folder."""
    for path in sorted(folder.rglob("*.jpg")):
        yield path.name, Image.open(path).convert("RGB")


def drawings(every: int) -> Iterator[tuple[str, Picture]]:
    """Name and picture of OpenMoji's drawings, of `every` one."""
    art = openmoji.art_of(openmoji.read_emoji())
    for path in list(art.values())[::every]:
        yield path.name, Image.open(io.BytesIO(openmoji.render(path, 256))).convert("RGB")


def hashed(pictures: list[Picture], *, mirrored: bool) -> NDArray[np.uint64]:
    """[N, V] hashes of pictures as JPEG files."""
    return np.array([hashing.hashes(encoded(picture), mirrored=mirrored) for picture in pictures])


def quality(named: list[tuple[str, Picture]]) -> dict[str, Any]:
    """Recall by kind and distance, and false alarms by distance, of a set of pictures."""
    names, pictures = [name for name, _ in named], [picture for _, picture in named]
    originals = hashed(pictures, mirrored=True)
    found: dict[str, Any] = {"pictures": len(pictures), "pairs": len(pictures) * (len(pictures) - 1) // 2}
    found["recall"] = {kind.__name__: recall(pictures, originals, kind) for kind in KINDS}
    plain = originals[:, : len(hashing.WINDOWS)]
    alarms = [
        (int(distance), names[row], names[column])
        for row in range(len(names) - 1)
        for column, distance in enumerate(distances_of(plain[row], originals[row + 1 :]), row + 1)
        if distance <= max(DISTANCES)
    ]
    if _LIST.value:
        print(*sorted(alarms), sep="\n")
    found["alarms"] = {limit: sum(distance <= limit for distance, _, _ in alarms) for limit in DISTANCES}
    return found


def recall(
    pictures: list[Picture], originals: NDArray[np.uint64], kind: Callable[[Picture, random.Random], Picture]
) -> dict[int, float]:
    """The part of copies whose own original is within each distance; by `hashing.nearest`, picture by picture."""
    rng = random.Random(0)
    copies = hashed([kind(picture, rng) for picture in pictures], mirrored=False)
    return {
        limit: float(
            np.mean([
                hashing.nearest(copies[row : row + 1], originals[row : row + 1], limit)[0][0] <= limit
                for row in range(len(copies))
            ])
        )
        for limit in DISTANCES
    }  # fmt: skip


def distances_of(one: NDArray[np.uint64], others: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """[M] distances of a picture to others, without bands."""
    wholes = others[:, [0, len(hashing.WINDOWS)]]
    of_whole = np.bitwise_count(others ^ one[0]).min(axis=1)
    return np.minimum(of_whole, np.bitwise_count(wholes[:, :, None] ^ one[1:]).min(axis=(1, 2)))


def pieces(pictures: list[Picture], count: int) -> list[Picture]:
    """Pictures cut into equal pieces that do not overlap, as many as wanted."""
    across = int(np.ceil(np.sqrt(count / len(pictures))))
    cut = (
        picture.crop((
            column * picture.width // across, row * picture.height // across,
            (column + 1) * picture.width // across, (row + 1) * picture.height // across,
        ))
        for row, column in itertools.product(range(across), repeat=2) for picture in pictures
    )  # fmt: skip
    return list(itertools.islice(cut, count))


def costs_of(pictures: list[Picture], sizes: list[int]) -> dict[int, dict[str, float]]:
    """By size, CPU seconds of one core to hash two sets of so many pieces, and to look for the first in the second.

    The sets of every size begin with those of the size before, so each piece is hashed once. Also says how many of the
    first are near one of the second, which are all different.
    """
    cut = pieces(pictures, 2 * max(sizes))
    first, second, hashing_s = list[Any](), list[Any](), 0.0
    found: dict[int, dict[str, float]] = {}
    for size in sorted(sizes):
        some = [(encoded(cut[2 * at]), encoded(cut[2 * at + 1])) for at in range(len(first), size)]
        began = time.process_time()
        for one, other in some:
            first.append(hashing.hashes(one, mirrored=False))
            second.append(hashing.hashes(other, mirrored=True))
        hashing_s += time.process_time() - began
        began = time.process_time()
        distances, _ = hashing.nearest(np.array(first), np.array(second), hashing.MOST_SURE)
        matching_s = time.process_time() - began
        near = int(np.count_nonzero(distances <= hashing.MOST_SURE))
        found[size] = {"hashing_s": round(hashing_s, 2), "matching_s": round(matching_s, 3), "near": near}
        print(size, found[size], flush=True)
    return found


def plot(costs: dict[int, dict[str, float]], path: Path) -> None:
    """Draws seconds over the number of pictures."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name, label in (("hashing_s", "hashing"), ("matching_s", "matching")):
        axes.loglog(list(costs), [each[name] for each in costs.values()], "o-", label=label)
    first = next(iter(costs))
    line = [costs[first]["matching_s"] * size / first for size in costs]
    axes.loglog(list(costs), line, ":", color="grey", label="linear")
    axes.set(xlabel="pictures of each set", ylabel="seconds on one core")
    axes.set_xticks(list(costs), [f"{size:,}" for size in costs], minor=False)
    axes.legend()
    figure.savefig(path, dpi=120)


def run() -> None:
    """Measures everything."""
    sets = {"drawings": list(drawings(_EVERY.value))}
    if _PHOTOS.value:
        sets["photographs"] = list(photographs(Path(_PHOTOS.value)))
        cut = pieces([picture for _, picture in sets["photographs"]], 16 * len(sets["photographs"]))
        sets["pieces"] = [(f"piece {number}", cut[number]) for number in range(0, len(cut), 16)]
    result: dict[str, Any] = {}
    for name, named in sets.items():
        result[name] = quality(named)
        print(name, json.dumps(result[name], indent=1), flush=True)
    pictures = [picture for _, picture in sets.get("photographs", sets["drawings"])]
    costs = costs_of(pictures, [int(size) for size in _SIZES.value])
    if _PLOT.value:
        plot(costs, Path(_PLOT.value))
    print("RESULT " + json.dumps(result | {"cost": costs}))


if __name__ == "__main__":
    entry.run(run, role="benchmark")
