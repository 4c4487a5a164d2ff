from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Span(_message.Message):
    __slots__ = ("name", "track", "begin_seconds", "end_seconds", "worker", "step", "shard")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TRACK_FIELD_NUMBER: _ClassVar[int]
    BEGIN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    END_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    name: str
    track: str
    begin_seconds: float
    end_seconds: float
    worker: int
    step: int
    shard: int
    def __init__(self, name: _Optional[str] = ..., track: _Optional[str] = ..., begin_seconds: _Optional[float] = ..., end_seconds: _Optional[float] = ..., worker: _Optional[int] = ..., step: _Optional[int] = ..., shard: _Optional[int] = ...) -> None: ...

class Spans(_message.Message):
    __slots__ = ("process", "first", "spans", "clock_seconds", "complete", "round_trip")
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    CLOCK_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    ROUND_TRIP_FIELD_NUMBER: _ClassVar[int]
    process: int
    first: int
    spans: _containers.RepeatedCompositeFieldContainer[Span]
    clock_seconds: float
    complete: bool
    round_trip: RoundTrip
    def __init__(self, process: _Optional[int] = ..., first: _Optional[int] = ..., spans: _Optional[_Iterable[_Union[Span, _Mapping]]] = ..., clock_seconds: _Optional[float] = ..., complete: bool = ..., round_trip: _Optional[_Union[RoundTrip, _Mapping]] = ...) -> None: ...

class SpansReceived(_message.Message):
    __slots__ = ("process", "count")
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    process: int
    count: int
    def __init__(self, process: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class RoundTrip(_message.Message):
    __slots__ = ("asked_seconds", "received_seconds", "replied_seconds", "answered_seconds")
    ASKED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REPLIED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    asked_seconds: float
    received_seconds: float
    replied_seconds: float
    answered_seconds: float
    def __init__(self, asked_seconds: _Optional[float] = ..., received_seconds: _Optional[float] = ..., replied_seconds: _Optional[float] = ..., answered_seconds: _Optional[float] = ...) -> None: ...
