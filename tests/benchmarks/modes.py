"""The ways to exchange that benchmarks compare: the only place that says what each of them means."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mode:
    """One way.

    Attributes:
        codec: Name of the wire codec.
        factored: Whether the head's gradient travels as factors.
        push: Name of the codec of pushed gradients: `same` or `int8`.
        pull: What is pulled: `live`, or the name of the codec of differences to publications.
    """

    codec: str
    factored: bool = False
    push: str = "same"
    pull: str = "live"

    @property
    def title(self) -> str:
        """For a table."""
        push = "" if self.push == "same" else f" push {self.push}"
        pull = "" if self.pull == "live" else f" pull {self.pull}"
        return f"downpour {self.codec}{' factors' * self.factored}{push}{pull}"


# exact: what arrives is what a float32 exchange would have brought, rounded to the wire type.
# best: half of the bytes of that for a tenth more processor time. smallest: the fewest bytes.
MODES = {
    "float32": Mode("float32"),
    "bfloat16": Mode("bfloat16"),
    "exact": Mode("bfloat16", factored=True),
    "best": Mode("bfloat16", factored=True, pull="int4"),
    "smallest": Mode("bfloat16", factored=True, push="int8", pull="int4"),
}
