"""Pulls share what they encode for as long as no push changes it, and see every push."""

from __future__ import annotations

import numpy as np
import pytest

from downpour.proto import codec
from downpour.proto import parameter_server_pb2 as pb
from downpour.ps.layout import FROZEN, Variable, lay_out
from downpour.ps.policy.pace import Async, Mode, Sync
from downpour.ps.policy.rules import SGD
from downpour.ps.shard.encodings import Encodings
from downpour.ps.shard.shard import Shard
from tests.chunks import encode_chunk
from tests.ps.pushing import new_shard

LAYOUT = lay_out([Variable("w", (6,)), Variable("fixed", (3,), FROZEN)], 1)


def pulled(shard: Shard, wire: int) -> list[np.ndarray]:
    return [shard.vector.encoded(start, stop, wire) for start, stop in shard.vector.cut(0, shard.vector.size)]


@pytest.mark.parametrize("pace", [Async(), Sync(1)], ids=["async", "sync"])
def test_a_chunk_is_encoded_anew_when_a_push_has_changed_it(pace: Mode) -> None:
    shard = new_shard(LAYOUT, np.arange(9, dtype=np.float32), SGD(), pace=pace)
    first, second = pulled(shard, codec.FLOAT32), pulled(shard, codec.FLOAT32)
    assert all(a is b for a, b in zip(first, second, strict=True))
    kept = first[0].copy()
    opened = shard.begin(pb.PushHeader(worker=0, incarnation=1, sequence=1))
    shard.apply(opened, codec.decode_chunk(encode_chunk(0, codec.FLOAT32, np.ones(6, np.float32))))
    shard.finish(opened)
    third = pulled(shard, codec.FLOAT32)
    np.testing.assert_array_equal(third[0], shard.arena.parameters[:6])
    assert np.all(third[0] != kept)
    np.testing.assert_array_equal(first[0], kept)  # a message may still refer to it
    assert third[1] is first[1]  # frozen


def test_codecs_are_kept_apart() -> None:
    shard = new_shard(LAYOUT, np.arange(9, dtype=np.float32), SGD())
    wide, narrow = pulled(shard, codec.FLOAT32)[0], pulled(shard, codec.BFLOAT16)[0]
    assert (wide.dtype, narrow.dtype) == (np.float32, np.uint16)
    assert pulled(shard, codec.FLOAT32)[0] is wide


def test_the_oldest_are_forgotten_when_there_are_too_many_bytes() -> None:
    encodings, values = Encodings(most_bytes=100), np.zeros(40, np.uint8)
    for start in range(3):
        encodings.keep((start, start + 40, codec.BFLOAT16), 1, values)
    kept = [encodings.get((start, start + 40, codec.BFLOAT16), 1) is not None for start in range(3)]
    assert kept == [False, True, True]
    encodings.keep((1, 41, codec.BFLOAT16), 2, values)  # anew, so the other is the oldest now
    encodings.keep((3, 43, codec.BFLOAT16), 1, values)
    assert encodings.get((1, 41, codec.BFLOAT16), 2) is values
    assert encodings.get((1, 41, codec.BFLOAT16), 1) is None and encodings.get((2, 42, codec.BFLOAT16), 1) is None
    encodings.keep((4, 204, codec.BFLOAT16), 1, np.zeros(200, np.uint8))
    assert encodings.get((4, 204, codec.BFLOAT16), 1) is None
