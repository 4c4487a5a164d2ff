"""A trace as Perfetto's viewer shows it: two steps of a worker and what the shards did for them, with an arrow."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from PIL import Image

from tests.launch.jobs import LocalJob, write_recipe
from tests.perfetto import viewer

_COLORS = 128
_RECIPE = """

def job():
    data = GeneratedImages(image_size=32, num_labels=20, num_heldout=4)
    return tiny(model=Small(32), data=data, num_steps=400, batch_size=16, schedule=Constant(1e-5), clip=CLIPPED)
"""
_OF_STEPS = (
    "from slice join thread_track on track_id = thread_track.id join thread using (utid) join process using (upid) "
    "where process.name = 'worker 1' and extract_arg(slice.arg_set_id, 'args.step') between 3 and 4 and slice.name ="
)


def draw(_: LocalJob, folder: Path) -> None:
    """Traces a run of its own, whose rows fit, and writes `trace.png`."""
    with tempfile.TemporaryDirectory() as place:
        run = LocalJob(write_recipe(Path(place), _RECIPE), Path(place), "--trace=5", "--noevaluator")
        assert run.end() == 0, run.stderr
        with viewer(run.run_dir / "trace.json", 1280, 900) as opened:
            ((begin, end),) = opened.query(
                f"select min(slice.ts) as a, max(slice.ts + slice.dur) as b {_OF_STEPS} 'step'"
            )
            ((push,),) = opened.query(f"select min(slice.id) as id {_OF_STEPS} 'push'")
            opened.show(begin, end, push)
            picture = Image.open(io.BytesIO(opened.page.screenshot())).convert("RGB")
    picture.quantize(_COLORS, Image.Quantize.MAXCOVERAGE).save(folder / "trace.png", optimize=True)
