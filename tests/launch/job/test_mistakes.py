"""How errors are described: type, message, and the line of the user's own code."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from downpour.launch.job import mistakes
from downpour.launch.job.mistakes import Mistake, describe, final
from downpour.model.vision.labels import LabelTree
from downpour.proto.errors import Unreachable


@pytest.fixture
def mine(tmp_path: Path) -> Any:
    """`mine(code)`: a user's own module of that code."""

    def make(code: str) -> Any:
        path = tmp_path / "mine.py"
        path.write_text(code)
        names: dict[str, Any] = {}
        exec(compile(code, str(path), "exec"), names)
        return SimpleNamespace(**names)

    return make


def raised(function: Any, *arguments: Any) -> BaseException:
    with pytest.raises(Exception) as found:
        function(*arguments)
    return found.value


def test_the_innermost_line_of_the_users_code_is_named(mine: Any, tmp_path: Path) -> None:
    module = mine("import json\n\ndef outer():\n    inner()\n\ndef inner():\n    json.loads('')\n")
    assert describe(raised(module.outer)) == (
        f"JSONDecodeError: Expecting value: line 1 column 1 (char 0) ({tmp_path}/mine.py:7)"
    )


def test_our_own_words_have_no_type_and_the_line_that_they_are_about(mine: Any, tmp_path: Path) -> None:
    module = mine("def tree(kind):\n    return kind(('a',), (5,))\n")
    message = describe(raised(module.tree, LabelTree))
    assert message.endswith(f"({tmp_path}/mine.py:2)")
    assert not message.startswith("ValueError")
    assert describe(Unreachable("nobody there")) == "nobody there"


def test_notes_of_an_error_are_shown_behind_its_place(mine: Any, tmp_path: Path) -> None:
    error = raised(mine("def f():\n    return {}['a']\n").f)
    error.add_note("while reading train, item 37")
    assert describe(error) == f"KeyError: 'a' ({tmp_path}/mine.py:2; while reading train, item 37)"
    ours = Unreachable("nobody there")
    ours.add_note("while reading train, item 37")
    assert describe(ours) == "nobody there (while reading train, item 37)"


def test_what_autograph_puts_around_an_error_is_left_out(mine: Any, tmp_path: Path) -> None:
    import tensorflow as tf

    module = mine("import tensorflow as tf\n\ndef loss(x):\n    y = x\n    return tf.resahpe(y, [1])\n")
    error = raised(tf.function(module.loss), 1.0)
    assert str(error).startswith("in user code:")
    found = f"AttributeError: module 'tensorflow' has no attribute 'resahpe' ({tmp_path}/mine.py:5)"
    assert describe(error).replace("'tensorflow._api.v2.v2'", "'tensorflow'") == found


def test_what_keras_puts_around_an_error_is_left_out(mine: Any, tmp_path: Path) -> None:
    import numpy as np

    module = mine(
        "import keras\n\nclass Odd(keras.layers.Layer):\n    def call(self, x):\n"
        "        return x + self.offest\n\ndef build(size):\n    return Odd()(keras.Input((size,)))\n\n"
        "def run(x):\n    return Odd()(x)\n"
    )
    for error in (raised(module.build, 3), raised(module.run, np.zeros((1000, 3)))):
        assert describe(error) == f"AttributeError: 'Odd' object has no attribute 'offest' ({tmp_path}/mine.py:5)"


def test_what_tensorflow_puts_around_an_error_of_a_graph_is_left_out(mine: Any) -> None:
    import tensorflow as tf

    text = (
        'Detected at node a/b defined at (most recent call last):\n  File "<frozen runpy>", line 8, in _run_code\n\n'
        * 9
    )
    text += "Received a label value of 3.  Label values: 3\n\t [[{{node a/b}}]] [Op:step]"
    error = tf.errors.InvalidArgumentError(None, None, f"Graph execution error:\n\n{text}")
    assert describe(error) == "InvalidArgumentError: Received a label value of 3. Label values: 3"


def test_a_long_message_is_cut(mine: Any) -> None:
    message = describe(raised(mine("def f():\n    raise TypeError('x' * 10_000)\n").f))
    assert len(message) < 800
    assert "(--verbosity=1 shows all of it)" in message


def test_final_errors_are_the_users_and_those_of_peers_and_files_are_not(mine: Any, tmp_path: Path) -> None:
    def attempt(function: Any, is_final: Any = lambda: True) -> BaseException:
        def run() -> None:
            with final(is_final):
                function()

        return raised(run)

    module = mine("def typo():\n    nonsuch\n\ndef missing():\n    open('/nonsuch')\n")
    assert str(attempt(module.typo)) == f"NameError: name 'nonsuch' is not defined ({tmp_path}/mine.py:2)"
    assert describe(attempt(module.typo)) == str(attempt(module.typo))
    assert isinstance(attempt(module.missing), Mistake)
    assert isinstance(attempt(module.typo, lambda: False), NameError)

    def unreachable() -> None:
        raise Unreachable("shard 0")

    assert isinstance(attempt(unreachable), Unreachable)


def test_where_a_function_is_defined(mine: Any, tmp_path: Path) -> None:
    module = mine("\n\ndef loss(labels, outputs):\n    return 0\n")
    assert mistakes.defined(module.loss) == f" ({tmp_path}/mine.py:3)"
    assert mistakes.defined(len) == mistakes.defined(describe) == ""


def test_frames_are_those_of_the_users_own_code(mine: Any, tmp_path: Path) -> None:
    module = mine("import csv\n\ndef outer():\n    inner()\n\ndef inner():\n    csv.reader(0)\n")
    place = f'  File "{tmp_path}/mine.py", line'
    both = [f"{place} 4, in outer", "    inner()", f"{place} 7, in inner", "    csv.reader(0)"]
    assert mistakes.frames(raised(module.outer))[-4:] == both
    with pytest.raises(Mistake) as converted, final():
        module.outer()
    assert mistakes.frames(converted.value)[-4:] == both
    assert mistakes.frames(ValueError("of Downpour")) == []


def test_a_syntax_error_shows_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def job()\n    pass\n")
    error = raised(lambda: compile(path.read_text(), str(path), "exec"))
    assert mistakes.frames(error)[:2] == [f'  File "{path}", line 1', "    def job()"]


def test_an_argument_that_is_not_taken_names_the_nearest(mine: Any) -> None:
    module = mine(
        "from downpour.launch.job import Cluster\n\ndef job():\n    return Cluster(num_pss=3)\n\n"
        "def other():\n    return Cluster(x=1)\n"
    )
    assert "unexpected keyword argument 'num_pss'; did you mean num_ps? (" in describe(raised(module.job))
    assert "argument 'x'; it takes num_ps, num_workers, max_workers," in describe(raised(module.other))
