"""`downpour prepare folder` beside what reading and decoding the same files costs.

    python -m tests.benchmarks.prepare [--pictures=5000] [--photos=FOLDER] [--beam]

Pictures of 500 x 375, about ImageNet's usual size, are cut out of the photographs of a folder, or out of drawings of
OpenMoji enlarged to photographs' size, and written as JPEG of quality 90 into 40 folders. Measured are, a picture, in a
process of its own each, interleaved, the median of `--repetitions`:

    read      reading the file, and nothing else
    check     reading, and Pillow decoding it to an eighth of its size: the least that finds damaged files
    decode    reading, and Pillow decoding it at full size
    prepare   all of `downpour prepare`, one process: listing, looking for copies, checking, writing, the page
    local     the same with a process a core
    beam      with --beam: the same by Apache Beam's DirectRunner
    beam, processes      with --beam: by its DirectRunner with as many processes as cores

Times of processors (user and system, of a process and those that it started) do not depend on what else runs. The files
are in the page cache. The last line is `RESULT {json}`: `cpu_ms` and `pictures_per_s_per_core` by name, and `wall_s`.
"""

from __future__ import annotations

import io
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import flags

from downpour.launch.roles import entry

_PICTURES = flags.DEFINE_integer("pictures", 5000, "Number of pictures.", lower_bound=10)
_PHOTOS = flags.DEFINE_string("photos", None, "Folder of photographs to cut pictures out of; default: drawings.")
_BEAM = flags.DEFINE_boolean("beam", False, "Measure Apache Beam, too.")
_REPETITIONS = flags.DEFINE_integer("repetitions", 3, "Measurements of each; an odd number.", lower_bound=1)

_WIDTH, _HEIGHT, _QUALITY = 500, 375, 90
_BARE = """
import io, sys
from pathlib import Path
from PIL import Image
for path in Path(sys.argv[2]).rglob("*.jpg"):
    with open(path, "rb", buffering=0) as file:
        data = file.read()
    if sys.argv[1] != "read":
        image = Image.open(io.BytesIO(data), formats=("JPEG",))
        if sys.argv[1] == "check":
            image.draft("L", (1, 1))
        image.load()
"""


def write_pictures(folder: Path, photos: str | None, number: int) -> None:
    """Writes `number` JPEG files into 40 folders."""
    from PIL import Image

    sources = [image.convert("RGB") for image in _sources(photos)]
    rng = random.Random(0)
    for each in range(number):
        source = sources[each % len(sources)]
        scale = max(1.0, 1.05 * _WIDTH / source.width, 1.05 * _HEIGHT / source.height)
        width, height = int(_WIDTH / scale), int(_HEIGHT / scale)
        left, top = rng.randint(0, source.width - width), rng.randint(0, source.height - height)
        path = folder / "abcde"[each % 5] / str(each % 8) / f"{each:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cut = source.resize((_WIDTH, _HEIGHT), Image.Resampling.BILINEAR, (left, top, left + width, top + height))
        cut.save(path, "JPEG", quality=_QUALITY)


def _sources(photos: str | None):  # type: ignore[no-untyped-def]
    from PIL import Image

    if photos:
        paths = sorted(Path(photos).rglob("*.jpg"))[:100]
        if not paths:
            raise ValueError(f"no *.jpg in {photos}; give a folder of photographs")
        return [Image.open(path) for path in paths]
    from downpour.model.vision import openmoji

    art = list(openmoji.art_of(openmoji.read_emoji()).values())[::80]
    return [Image.open(io.BytesIO(openmoji.render(path, 700))) for path in art]


def commands(folder: Path, out: Path, num_cores: int) -> dict[str, list[str]]:
    """What is run, by its name in the result."""
    prepare = [sys.executable, "-m", "downpour.launch.cli", "prepare", "folder", str(folder), f"--out={out}"]
    found = {name: [sys.executable, "-c", _BARE, name, str(folder)] for name in ("read", "check", "decode")}
    found |= {"prepare": [*prepare, "--processes=1"], "local": prepare}
    if _BEAM.value:
        processes = f"--beam_args=--direct_num_workers={num_cores}"
        found["beam"] = [*prepare, "--runner=DirectRunner"]
        found["beam, processes"] = [*found["beam"], processes, "--beam_args=--direct_running_mode=multi_processing"]
    return found


def measure(command: list[str], out: Path) -> tuple[float, float]:
    """Seconds of processors, and by the clock, of a command; what it writes is removed again."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise ValueError(f"{' '.join(command)} failed: {done.stderr}")
    subprocess.run(["rm", "-rf", str(out)], check=True)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def _main() -> None:
    num_cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as scratch:
        folder, out = Path(scratch) / "pictures", Path(scratch) / "out"
        write_pictures(folder, _PHOTOS.value, _PICTURES.value)
        size = statistics.mean(path.stat().st_size for path in folder.rglob("*.jpg"))
        runs = commands(folder, out, num_cores)
        samples: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for _ in range(_REPETITIONS.value):
            for name, command in runs.items():
                samples[name].append(measure(command, out))
    cpu = {name: statistics.median(each[0] for each in found) for name, found in samples.items()}
    wall = {name: statistics.median(each[1] for each in found) for name, found in samples.items()}
    print(f"{_PICTURES.value} pictures of {size / 1e3:.0f} kB; {num_cores} cores; median of {_REPETITIONS.value}")
    print(f"{'':<18}{'core-ms a picture':>19}{'pictures/s a core':>19}{'s by the clock':>16}")
    for name in runs:
        each = cpu[name] / _PICTURES.value
        print(f"{name:<18}{1e3 * each:>19.2f}{1 / each:>19.0f}{wall[name]:>16.1f}")
    result = {
        "pictures": _PICTURES.value,
        "bytes_a_picture": round(size),
        "cpu_ms": {name: round(1e3 * each / _PICTURES.value, 3) for name, each in cpu.items()},
        "pictures_per_s_per_core": {name: round(_PICTURES.value / each) for name, each in cpu.items()},
        "wall_s": {name: round(each, 1) for name, each in wall.items()},
    }
    print(f"RESULT {json.dumps(result)}", flush=True)


def main() -> None:
    """See the module."""
    entry.run(_main, role="prepare benchmark")


if __name__ == "__main__":
    main()
