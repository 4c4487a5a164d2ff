from downpour.proto import trace_pb2 as _trace_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Codec(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CODEC_UNSPECIFIED: _ClassVar[Codec]
    CODEC_FLOAT32: _ClassVar[Codec]
    CODEC_BFLOAT16: _ClassVar[Codec]
    CODEC_INT8: _ClassVar[Codec]
    CODEC_INT4: _ClassVar[Codec]
    CODEC_FLOAT16: _ClassVar[Codec]
CODEC_UNSPECIFIED: Codec
CODEC_FLOAT32: Codec
CODEC_BFLOAT16: Codec
CODEC_INT8: Codec
CODEC_INT4: Codec
CODEC_FLOAT16: Codec

class Chunk(_message.Message):
    __slots__ = ("initialize", "pull", "push", "start", "count", "codec", "payload", "base", "rows", "runs")
    INITIALIZE_FIELD_NUMBER: _ClassVar[int]
    PULL_FIELD_NUMBER: _ClassVar[int]
    PUSH_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    initialize: ShardSpecification
    pull: PullHeader
    push: PushHeader
    start: int
    count: int
    codec: Codec
    payload: bytes
    base: bytes
    rows: int
    runs: bytes
    def __init__(self, initialize: _Optional[_Union[ShardSpecification, _Mapping]] = ..., pull: _Optional[_Union[PullHeader, _Mapping]] = ..., push: _Optional[_Union[PushHeader, _Mapping]] = ..., start: _Optional[int] = ..., count: _Optional[int] = ..., codec: _Optional[_Union[Codec, str]] = ..., payload: _Optional[bytes] = ..., base: _Optional[bytes] = ..., rows: _Optional[int] = ..., runs: _Optional[bytes] = ...) -> None: ...

class ShardSpecification(_message.Message):
    __slots__ = ("shard", "fingerprint", "layout", "rule", "schedule", "pace", "num_workers", "staleness", "average", "job_id")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    PACE_FIELD_NUMBER: _ClassVar[int]
    NUM_WORKERS_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    AVERAGE_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    shard: int
    fingerprint: bytes
    layout: str
    rule: Named
    schedule: Named
    pace: Named
    num_workers: int
    staleness: Named
    average: Named
    job_id: str
    def __init__(self, shard: _Optional[int] = ..., fingerprint: _Optional[bytes] = ..., layout: _Optional[str] = ..., rule: _Optional[_Union[Named, _Mapping]] = ..., schedule: _Optional[_Union[Named, _Mapping]] = ..., pace: _Optional[_Union[Named, _Mapping]] = ..., num_workers: _Optional[int] = ..., staleness: _Optional[_Union[Named, _Mapping]] = ..., average: _Optional[_Union[Named, _Mapping]] = ..., job_id: _Optional[str] = ...) -> None: ...

class Named(_message.Message):
    __slots__ = ("name", "parameters")
    class ParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Numbers
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Numbers, _Mapping]] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    parameters: _containers.MessageMap[str, Numbers]
    def __init__(self, name: _Optional[str] = ..., parameters: _Optional[_Mapping[str, Numbers]] = ...) -> None: ...

class Numbers(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class RestoreRequest(_message.Message):
    __slots__ = ("specification", "directory", "without_slots")
    SPECIFICATION_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_SLOTS_FIELD_NUMBER: _ClassVar[int]
    specification: ShardSpecification
    directory: str
    without_slots: bool
    def __init__(self, specification: _Optional[_Union[ShardSpecification, _Mapping]] = ..., directory: _Optional[str] = ..., without_slots: bool = ...) -> None: ...

class InitializeReply(_message.Message):
    __slots__ = ("kept", "version")
    KEPT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    kept: bool
    version: int
    def __init__(self, kept: bool = ..., version: _Optional[int] = ...) -> None: ...

class PullRequest(_message.Message):
    __slots__ = ("fingerprint", "codec", "worker", "incarnation", "num_pushes", "publish_every", "publication", "differences", "shard", "job_id", "traced_step")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NUM_PUSHES_FIELD_NUMBER: _ClassVar[int]
    PUBLISH_EVERY_FIELD_NUMBER: _ClassVar[int]
    PUBLICATION_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    TRACED_STEP_FIELD_NUMBER: _ClassVar[int]
    fingerprint: bytes
    codec: Codec
    worker: int
    incarnation: int
    num_pushes: int
    publish_every: int
    publication: int
    differences: Codec
    shard: int
    job_id: str
    traced_step: int
    def __init__(self, fingerprint: _Optional[bytes] = ..., codec: _Optional[_Union[Codec, str]] = ..., worker: _Optional[int] = ..., incarnation: _Optional[int] = ..., num_pushes: _Optional[int] = ..., publish_every: _Optional[int] = ..., publication: _Optional[int] = ..., differences: _Optional[_Union[Codec, str]] = ..., shard: _Optional[int] = ..., job_id: _Optional[str] = ..., traced_step: _Optional[int] = ...) -> None: ...

class PullHeader(_message.Message):
    __slots__ = ("version", "publication", "live", "pushed")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PUBLICATION_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    PUSHED_FIELD_NUMBER: _ClassVar[int]
    version: int
    publication: int
    live: bool
    pushed: PushReply
    def __init__(self, version: _Optional[int] = ..., publication: _Optional[int] = ..., live: bool = ..., pushed: _Optional[_Union[PushReply, _Mapping]] = ...) -> None: ...

class PushHeader(_message.Message):
    __slots__ = ("fingerprint", "worker", "incarnation", "sequence", "base_version", "shard", "job_id", "pull", "traced_step")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    BASE_VERSION_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    PULL_FIELD_NUMBER: _ClassVar[int]
    TRACED_STEP_FIELD_NUMBER: _ClassVar[int]
    fingerprint: bytes
    worker: int
    incarnation: int
    sequence: int
    base_version: int
    shard: int
    job_id: str
    pull: PullRequest
    traced_step: int
    def __init__(self, fingerprint: _Optional[bytes] = ..., worker: _Optional[int] = ..., incarnation: _Optional[int] = ..., sequence: _Optional[int] = ..., base_version: _Optional[int] = ..., shard: _Optional[int] = ..., job_id: _Optional[str] = ..., pull: _Optional[_Union[PullRequest, _Mapping]] = ..., traced_step: _Optional[int] = ...) -> None: ...

class PushReply(_message.Message):
    __slots__ = ("version", "staleness", "repeated", "dropped")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    REPEATED_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    version: int
    staleness: int
    repeated: bool
    dropped: bool
    def __init__(self, version: _Optional[int] = ..., staleness: _Optional[int] = ..., repeated: bool = ..., dropped: bool = ...) -> None: ...

class AbsentRequest(_message.Message):
    __slots__ = ("fingerprint", "workers", "shard", "job_id")
    class Worker(_message.Message):
        __slots__ = ("index", "incarnation")
        INDEX_FIELD_NUMBER: _ClassVar[int]
        INCARNATION_FIELD_NUMBER: _ClassVar[int]
        index: int
        incarnation: int
        def __init__(self, index: _Optional[int] = ..., incarnation: _Optional[int] = ...) -> None: ...
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    fingerprint: bytes
    workers: _containers.RepeatedCompositeFieldContainer[AbsentRequest.Worker]
    shard: int
    job_id: str
    def __init__(self, fingerprint: _Optional[bytes] = ..., workers: _Optional[_Iterable[_Union[AbsentRequest.Worker, _Mapping]]] = ..., shard: _Optional[int] = ..., job_id: _Optional[str] = ...) -> None: ...

class AbsentReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Rate(_message.Message):
    __slots__ = ("number", "factor", "version")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    FACTOR_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    number: int
    factor: float
    version: int
    def __init__(self, number: _Optional[int] = ..., factor: _Optional[float] = ..., version: _Optional[int] = ...) -> None: ...

class SetRateRequest(_message.Message):
    __slots__ = ("fingerprint", "number", "factor", "shard", "job_id")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    FACTOR_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    fingerprint: bytes
    number: int
    factor: float
    shard: int
    job_id: str
    def __init__(self, fingerprint: _Optional[bytes] = ..., number: _Optional[int] = ..., factor: _Optional[float] = ..., shard: _Optional[int] = ..., job_id: _Optional[str] = ...) -> None: ...

class SetRateReply(_message.Message):
    __slots__ = ("rate",)
    RATE_FIELD_NUMBER: _ClassVar[int]
    rate: Rate
    def __init__(self, rate: _Optional[_Union[Rate, _Mapping]] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ("with_layout", "trace")
    WITH_LAYOUT_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    with_layout: bool
    trace: _trace_pb2.SpansReceived
    def __init__(self, with_layout: bool = ..., trace: _Optional[_Union[_trace_pb2.SpansReceived, _Mapping]] = ...) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("ready", "shard", "fingerprint", "layout", "version", "pushes_refused", "pushes_repeated", "staleness_histogram", "state_bytes", "pushes", "pushes_dropped", "specification", "guests", "job_id", "incarnation", "rate", "trace", "bytes_received", "bytes_sent", "pulls", "queue_seconds", "push_seconds", "receive_seconds", "apply_seconds", "pull_seconds", "pace_seconds", "pushes_waiting", "pulls_waiting", "memory_bytes", "uptime_seconds")
    class Guests(_message.Message):
        __slots__ = ("connections", "connections_admitted", "refused_role", "refused_token", "refused_malformed", "broken_off", "connections_malformed", "connections_dropped")
        CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
        CONNECTIONS_ADMITTED_FIELD_NUMBER: _ClassVar[int]
        REFUSED_ROLE_FIELD_NUMBER: _ClassVar[int]
        REFUSED_TOKEN_FIELD_NUMBER: _ClassVar[int]
        REFUSED_MALFORMED_FIELD_NUMBER: _ClassVar[int]
        BROKEN_OFF_FIELD_NUMBER: _ClassVar[int]
        CONNECTIONS_MALFORMED_FIELD_NUMBER: _ClassVar[int]
        CONNECTIONS_DROPPED_FIELD_NUMBER: _ClassVar[int]
        connections: int
        connections_admitted: int
        refused_role: int
        refused_token: int
        refused_malformed: int
        broken_off: int
        connections_malformed: int
        connections_dropped: int
        def __init__(self, connections: _Optional[int] = ..., connections_admitted: _Optional[int] = ..., refused_role: _Optional[int] = ..., refused_token: _Optional[int] = ..., refused_malformed: _Optional[int] = ..., broken_off: _Optional[int] = ..., connections_malformed: _Optional[int] = ..., connections_dropped: _Optional[int] = ...) -> None: ...
    READY_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PUSHES_REFUSED_FIELD_NUMBER: _ClassVar[int]
    PUSHES_REPEATED_FIELD_NUMBER: _ClassVar[int]
    STALENESS_HISTOGRAM_FIELD_NUMBER: _ClassVar[int]
    STATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PUSHES_FIELD_NUMBER: _ClassVar[int]
    PUSHES_DROPPED_FIELD_NUMBER: _ClassVar[int]
    SPECIFICATION_FIELD_NUMBER: _ClassVar[int]
    GUESTS_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    PULLS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PUSH_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RECEIVE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    APPLY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PULL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PACE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PUSHES_WAITING_FIELD_NUMBER: _ClassVar[int]
    PULLS_WAITING_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ready: bool
    shard: int
    fingerprint: bytes
    layout: str
    version: int
    pushes_refused: int
    pushes_repeated: int
    staleness_histogram: _containers.RepeatedScalarFieldContainer[int]
    state_bytes: int
    pushes: int
    pushes_dropped: int
    specification: ShardSpecification
    guests: StatusReply.Guests
    job_id: str
    incarnation: int
    rate: Rate
    trace: _trace_pb2.Spans
    bytes_received: int
    bytes_sent: int
    pulls: int
    queue_seconds: float
    push_seconds: float
    receive_seconds: float
    apply_seconds: float
    pull_seconds: float
    pace_seconds: float
    pushes_waiting: int
    pulls_waiting: int
    memory_bytes: int
    uptime_seconds: float
    def __init__(self, ready: bool = ..., shard: _Optional[int] = ..., fingerprint: _Optional[bytes] = ..., layout: _Optional[str] = ..., version: _Optional[int] = ..., pushes_refused: _Optional[int] = ..., pushes_repeated: _Optional[int] = ..., staleness_histogram: _Optional[_Iterable[int]] = ..., state_bytes: _Optional[int] = ..., pushes: _Optional[int] = ..., pushes_dropped: _Optional[int] = ..., specification: _Optional[_Union[ShardSpecification, _Mapping]] = ..., guests: _Optional[_Union[StatusReply.Guests, _Mapping]] = ..., job_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., rate: _Optional[_Union[Rate, _Mapping]] = ..., trace: _Optional[_Union[_trace_pb2.Spans, _Mapping]] = ..., bytes_received: _Optional[int] = ..., bytes_sent: _Optional[int] = ..., pulls: _Optional[int] = ..., queue_seconds: _Optional[float] = ..., push_seconds: _Optional[float] = ..., receive_seconds: _Optional[float] = ..., apply_seconds: _Optional[float] = ..., pull_seconds: _Optional[float] = ..., pace_seconds: _Optional[float] = ..., pushes_waiting: _Optional[int] = ..., pulls_waiting: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., uptime_seconds: _Optional[float] = ...) -> None: ...

class WriteCheckpointRequest(_message.Message):
    __slots__ = ("fingerprint", "directory", "check_only", "shard", "job_id")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    CHECK_ONLY_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    fingerprint: bytes
    directory: str
    check_only: bool
    shard: int
    job_id: str
    def __init__(self, fingerprint: _Optional[bytes] = ..., directory: _Optional[str] = ..., check_only: bool = ..., shard: _Optional[int] = ..., job_id: _Optional[str] = ...) -> None: ...

class WriteCheckpointReply(_message.Message):
    __slots__ = ("file", "version", "pushes", "checksums")
    class Checksums(_message.Message):
        __slots__ = ("tensor", "blocks")
        TENSOR_FIELD_NUMBER: _ClassVar[int]
        BLOCKS_FIELD_NUMBER: _ClassVar[int]
        tensor: str
        blocks: _containers.RepeatedScalarFieldContainer[int]
        def __init__(self, tensor: _Optional[str] = ..., blocks: _Optional[_Iterable[int]] = ...) -> None: ...
    FILE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PUSHES_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    file: str
    version: int
    pushes: int
    checksums: _containers.RepeatedCompositeFieldContainer[WriteCheckpointReply.Checksums]
    def __init__(self, file: _Optional[str] = ..., version: _Optional[int] = ..., pushes: _Optional[int] = ..., checksums: _Optional[_Iterable[_Union[WriteCheckpointReply.Checksums, _Mapping]]] = ...) -> None: ...

class StopRequest(_message.Message):
    __slots__ = ("fingerprint", "shard", "job_id")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    fingerprint: bytes
    shard: int
    job_id: str
    def __init__(self, fingerprint: _Optional[bytes] = ..., shard: _Optional[int] = ..., job_id: _Optional[str] = ...) -> None: ...

class StopReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
