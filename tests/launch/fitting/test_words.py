"""What the parts that `fit` shares with the command line ask for, as arguments of `fit`."""

from __future__ import annotations

import pytest

from downpour.launch.fitting import words
from downpour.launch.local import ProcessFailed
from downpour.launch.local.preflight import _WITHOUT_SCORES


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        (f"give held-out examples, or {_WITHOUT_SCORES}", "or leave validation_data out to train without scores"),
        ("no evaluator connected within 60 s; start without one by --noevaluator", "; leave validation_data out"),
        ("continue with --set=cluster.num_ps=3 first", "continue with shards=3 first"),
        ("give --set=batch_size=7 or less", "give batch_size=7 or less"),
        ("is in use by another run with the same --run_dir", "with the same run_dir"),
    ],
)
def test_flags_are_named_as_arguments_of_fit(message: str, wanted: str) -> None:
    with pytest.raises(ProcessFailed) as failed, words.spoken():
        raise ProcessFailed(2, message)
    assert wanted in str(failed.value) and "--" not in str(failed.value) and failed.value.code == 2
