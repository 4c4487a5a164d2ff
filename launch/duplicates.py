"""Finds pictures of one prepared set that recur in another, as they are, resized, recompressed, cropped or mirrored.

    downpour duplicates data/mine
    downpour duplicates data/jft data/imagenet --remove=data/jft-clean

Compares the training pictures of the first folder with the held-out ones of the second, or of the same if there is only
one; FOLDER:train and FOLDER:heldout name others. Lists the pictures of the first that are near one of the second, with
the nearest. --remove writes a copy of the first folder without them, for a recipe's data.folder, so that a model can be
trained, or scored, with and without. docs/duplicates.md has what is found, what is not, and what it costs.
"""

from __future__ import annotations

import json
from pathlib import Path

from absl import flags, logging

from downpour.launch.roles import entry
from downpour.launch.roles.command_line import Syntax
from downpour.model.vision import duplicates, hashing

SYNTAX = Syntax("first second distance report remove", positional="first second")
_MOST_LISTED = 20
_MOST_DISTANCE = 12


def main() -> None:
    """Finds and lists them."""
    define()
    entry.run(_main, role="duplicates", syntax=SYNTAX)


def define() -> None:
    """Defines the flags."""
    flags.DEFINE_string("first", None, "Folder whose pictures are looked for; FOLDER:train by default.")
    flags.DEFINE_string("second", None, "Folder they are looked for in; FOLDER:heldout, and the first, by default.")
    text = f"Bits of 64 in which hashes of a picture may differ; to {hashing.MOST_SURE} no pair is missed."
    flags.DEFINE_integer("distance", hashing.MOST_SURE, text, lower_bound=0, upper_bound=_MOST_DISTANCE)
    flags.DEFINE_enum("report", "text", ("text", "json"), "Form of the list; only json has all of it.")
    flags.DEFINE_string("remove", None, "Folder for a copy of the first without what was found.")


def _main() -> None:
    values = flags.FLAGS.flag_values_dict()
    if not values["first"]:
        raise ValueError("no folder; give one or two that were prepared: downpour duplicates data/mine")
    first = duplicates.Split.parse(values["first"], "train")
    second = duplicates.Split.parse(values["second"] or str(first.folder), "heldout")
    out = Path(values["remove"]) if values["remove"] else None
    if out and out.exists():
        raise ValueError(f"--remove={out} exists; give a folder that does not")
    found = duplicates.find(first, second, values["distance"], logging.info)
    if out:
        duplicates.remove(found, out)
    print(json.dumps(found.report(), ensure_ascii=False) if values["report"] == "json" else text_of(found, out))


def text_of(found: duplicates.Found, out: Path | None) -> str:
    """The pictures found, the nearest first, up to 20, and a line that sums up."""
    lines = [f"{pair.distance:2}  {pair.first.name}  =  {pair.second.name}" for pair in found.pairs[:_MOST_LISTED]]
    if len(found.pairs) > _MOST_LISTED:
        lines.append(f"and {len(found.pairs) - _MOST_LISTED} more, which --report=json lists")
    unreadable = f"; {len(found.unreadable)} records cannot be read" if found.unreadable else ""
    left = f"; {out} has the other {found.num_first - len(found.pairs)}" if out else ""
    summary = (
        f"{len(found.pairs)} of {found.num_first} pictures of {found.first} are near one of the {found.num_second} of "
        f"{found.second}{unreadable}{left}"
    )
    return "\n".join([*lines, summary])


if __name__ == "__main__":
    main()
