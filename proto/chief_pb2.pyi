from downpour.proto import trace_pb2 as _trace_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RegisterRequest(_message.Message):
    __slots__ = ("worker", "fingerprint", "host", "process", "job")
    class JobEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    WORKER_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    worker: int
    fingerprint: bytes
    host: str
    process: str
    job: _containers.ScalarMap[str, str]
    def __init__(self, worker: _Optional[int] = ..., fingerprint: _Optional[bytes] = ..., host: _Optional[str] = ..., process: _Optional[str] = ..., job: _Optional[_Mapping[str, str]] = ...) -> None: ...

class RegisterReply(_message.Message):
    __slots__ = ("stop", "incarnation", "job_id", "trace_steps")
    STOP_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    TRACE_STEPS_FIELD_NUMBER: _ClassVar[int]
    stop: bool
    incarnation: int
    job_id: str
    trace_steps: int
    def __init__(self, stop: bool = ..., incarnation: _Optional[int] = ..., job_id: _Optional[str] = ..., trace_steps: _Optional[int] = ...) -> None: ...

class WorkerReport(_message.Message):
    __slots__ = ("worker", "incarnation", "version", "steps", "examples", "pushes_acknowledged", "loss_sum", "staleness_sum", "pull_seconds", "compute_seconds", "push_seconds", "bytes_pulled", "bytes_pushed", "records_read", "records_skipped", "skipped_examples", "finished", "pushes_dropped", "failure", "records_done", "versions", "steps_skipped", "input_seconds", "epochs", "wait_seconds", "exchanges_ahead", "pulls_late", "staleness_own_sum", "staleness_early_sum", "periods", "period_seconds", "period_square_seconds", "input_share", "norms", "trace")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    PUSHES_ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    LOSS_SUM_FIELD_NUMBER: _ClassVar[int]
    STALENESS_SUM_FIELD_NUMBER: _ClassVar[int]
    PULL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PUSH_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_PULLED_FIELD_NUMBER: _ClassVar[int]
    BYTES_PUSHED_FIELD_NUMBER: _ClassVar[int]
    RECORDS_READ_FIELD_NUMBER: _ClassVar[int]
    RECORDS_SKIPPED_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    PUSHES_DROPPED_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    RECORDS_DONE_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    STEPS_SKIPPED_FIELD_NUMBER: _ClassVar[int]
    INPUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    EXCHANGES_AHEAD_FIELD_NUMBER: _ClassVar[int]
    PULLS_LATE_FIELD_NUMBER: _ClassVar[int]
    STALENESS_OWN_SUM_FIELD_NUMBER: _ClassVar[int]
    STALENESS_EARLY_SUM_FIELD_NUMBER: _ClassVar[int]
    PERIODS_FIELD_NUMBER: _ClassVar[int]
    PERIOD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PERIOD_SQUARE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    INPUT_SHARE_FIELD_NUMBER: _ClassVar[int]
    NORMS_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    worker: int
    incarnation: int
    version: int
    steps: int
    examples: int
    pushes_acknowledged: int
    loss_sum: float
    staleness_sum: float
    pull_seconds: float
    compute_seconds: float
    push_seconds: float
    bytes_pulled: int
    bytes_pushed: int
    records_read: int
    records_skipped: int
    skipped_examples: _containers.RepeatedScalarFieldContainer[str]
    finished: bool
    pushes_dropped: int
    failure: str
    records_done: int
    versions: _containers.RepeatedScalarFieldContainer[int]
    steps_skipped: int
    input_seconds: float
    epochs: _containers.RepeatedCompositeFieldContainer[EpochSums]
    wait_seconds: float
    exchanges_ahead: int
    pulls_late: int
    staleness_own_sum: float
    staleness_early_sum: float
    periods: int
    period_seconds: float
    period_square_seconds: float
    input_share: float
    norms: Norms
    trace: _trace_pb2.Spans
    def __init__(self, worker: _Optional[int] = ..., incarnation: _Optional[int] = ..., version: _Optional[int] = ..., steps: _Optional[int] = ..., examples: _Optional[int] = ..., pushes_acknowledged: _Optional[int] = ..., loss_sum: _Optional[float] = ..., staleness_sum: _Optional[float] = ..., pull_seconds: _Optional[float] = ..., compute_seconds: _Optional[float] = ..., push_seconds: _Optional[float] = ..., bytes_pulled: _Optional[int] = ..., bytes_pushed: _Optional[int] = ..., records_read: _Optional[int] = ..., records_skipped: _Optional[int] = ..., skipped_examples: _Optional[_Iterable[str]] = ..., finished: bool = ..., pushes_dropped: _Optional[int] = ..., failure: _Optional[str] = ..., records_done: _Optional[int] = ..., versions: _Optional[_Iterable[int]] = ..., steps_skipped: _Optional[int] = ..., input_seconds: _Optional[float] = ..., epochs: _Optional[_Iterable[_Union[EpochSums, _Mapping]]] = ..., wait_seconds: _Optional[float] = ..., exchanges_ahead: _Optional[int] = ..., pulls_late: _Optional[int] = ..., staleness_own_sum: _Optional[float] = ..., staleness_early_sum: _Optional[float] = ..., periods: _Optional[int] = ..., period_seconds: _Optional[float] = ..., period_square_seconds: _Optional[float] = ..., input_share: _Optional[float] = ..., norms: _Optional[_Union[Norms, _Mapping]] = ..., trace: _Optional[_Union[_trace_pb2.Spans, _Mapping]] = ...) -> None: ...

class Norms(_message.Message):
    __slots__ = ("version", "gradients", "weights")
    class GradientsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class WeightsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    GRADIENTS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    version: int
    gradients: _containers.ScalarMap[str, float]
    weights: _containers.ScalarMap[str, float]
    def __init__(self, version: _Optional[int] = ..., gradients: _Optional[_Mapping[str, float]] = ..., weights: _Optional[_Mapping[str, float]] = ...) -> None: ...

class EpochSums(_message.Message):
    __slots__ = ("epoch", "steps", "loss_sum")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    LOSS_SUM_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    steps: int
    loss_sum: float
    def __init__(self, epoch: _Optional[int] = ..., steps: _Optional[int] = ..., loss_sum: _Optional[float] = ...) -> None: ...

class ReportReply(_message.Message):
    __slots__ = ("stop", "overlap", "trace_received", "received_seconds", "replied_seconds")
    STOP_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_FIELD_NUMBER: _ClassVar[int]
    TRACE_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REPLIED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    stop: bool
    overlap: bool
    trace_received: _trace_pb2.SpansReceived
    received_seconds: float
    replied_seconds: float
    def __init__(self, stop: bool = ..., overlap: bool = ..., trace_received: _Optional[_Union[_trace_pb2.SpansReceived, _Mapping]] = ..., received_seconds: _Optional[float] = ..., replied_seconds: _Optional[float] = ...) -> None: ...

class LeaseRequest(_message.Message):
    __slots__ = ("worker", "incarnation", "number")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    worker: int
    incarnation: int
    number: int
    def __init__(self, worker: _Optional[int] = ..., incarnation: _Optional[int] = ..., number: _Optional[int] = ...) -> None: ...

class LeaseReply(_message.Message):
    __slots__ = ("epoch", "start", "stop", "ask_again_seconds")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    ASK_AGAIN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    start: int
    stop: int
    ask_again_seconds: float
    def __init__(self, epoch: _Optional[int] = ..., start: _Optional[int] = ..., stop: _Optional[int] = ..., ask_again_seconds: _Optional[float] = ...) -> None: ...

class NextCheckpointRequest(_message.Message):
    __slots__ = ("after_step", "job", "evaluator", "incarnation", "scoring")
    class JobEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    AFTER_STEP_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    EVALUATOR_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SCORING_FIELD_NUMBER: _ClassVar[int]
    after_step: int
    job: _containers.ScalarMap[str, str]
    evaluator: int
    incarnation: int
    scoring: int
    def __init__(self, after_step: _Optional[int] = ..., job: _Optional[_Mapping[str, str]] = ..., evaluator: _Optional[int] = ..., incarnation: _Optional[int] = ..., scoring: _Optional[int] = ...) -> None: ...

class NextCheckpointReply(_message.Message):
    __slots__ = ("directory", "step", "last", "stop")
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    directory: str
    step: int
    last: bool
    stop: bool
    def __init__(self, directory: _Optional[str] = ..., step: _Optional[int] = ..., last: bool = ..., stop: bool = ...) -> None: ...

class Score(_message.Message):
    __slots__ = ("step", "metrics", "records_read", "records_skipped", "skipped_examples", "illustration")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    STEP_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    RECORDS_READ_FIELD_NUMBER: _ClassVar[int]
    RECORDS_SKIPPED_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    ILLUSTRATION_FIELD_NUMBER: _ClassVar[int]
    step: int
    metrics: _containers.ScalarMap[str, float]
    records_read: int
    records_skipped: int
    skipped_examples: _containers.RepeatedScalarFieldContainer[str]
    illustration: Illustration
    def __init__(self, step: _Optional[int] = ..., metrics: _Optional[_Mapping[str, float]] = ..., records_read: _Optional[int] = ..., records_skipped: _Optional[int] = ..., skipped_examples: _Optional[_Iterable[str]] = ..., illustration: _Optional[_Union[Illustration, _Mapping]] = ...) -> None: ...

class Illustration(_message.Message):
    __slots__ = ("pictures", "curves")
    class Curve(_message.Message):
        __slots__ = ("name", "positives", "negatives")
        NAME_FIELD_NUMBER: _ClassVar[int]
        POSITIVES_FIELD_NUMBER: _ClassVar[int]
        NEGATIVES_FIELD_NUMBER: _ClassVar[int]
        name: str
        positives: _containers.RepeatedScalarFieldContainer[int]
        negatives: _containers.RepeatedScalarFieldContainer[int]
        def __init__(self, name: _Optional[str] = ..., positives: _Optional[_Iterable[int]] = ..., negatives: _Optional[_Iterable[int]] = ...) -> None: ...
    PICTURES_FIELD_NUMBER: _ClassVar[int]
    CURVES_FIELD_NUMBER: _ClassVar[int]
    pictures: bytes
    curves: _containers.RepeatedCompositeFieldContainer[Illustration.Curve]
    def __init__(self, pictures: _Optional[bytes] = ..., curves: _Optional[_Iterable[_Union[Illustration.Curve, _Mapping]]] = ...) -> None: ...

class ReportScoreReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ProgressRequest(_message.Message):
    __slots__ = ("detailed",)
    DETAILED_FIELD_NUMBER: _ClassVar[int]
    detailed: bool
    def __init__(self, detailed: bool = ...) -> None: ...

class ProgressReply(_message.Message):
    __slots__ = ("state", "step", "num_steps", "loss", "examples_per_second", "pushes_per_second", "staleness_mean", "seconds_left", "metrics", "failure", "epoch_loss", "details")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[ProgressReply.State]
        STATE_PREPARING: _ClassVar[ProgressReply.State]
        STATE_TRAINING: _ClassVar[ProgressReply.State]
        STATE_SCORING: _ClassVar[ProgressReply.State]
        STATE_DONE: _ClassVar[ProgressReply.State]
        STATE_FAILED: _ClassVar[ProgressReply.State]
    STATE_UNSPECIFIED: ProgressReply.State
    STATE_PREPARING: ProgressReply.State
    STATE_TRAINING: ProgressReply.State
    STATE_SCORING: ProgressReply.State
    STATE_DONE: ProgressReply.State
    STATE_FAILED: ProgressReply.State
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class Details(_message.Message):
        __slots__ = ("recipe", "job_id", "epochs", "train_seconds", "seconds_per_step", "score_step", "checkpoint", "checkpoint_step", "faults", "workers", "shards", "checkpoint_age_seconds", "learning_rate", "staleness_histogram", "events", "lease_seconds", "checkpoint_every_steps", "expects_evaluator", "evaluators")
        class SecondsPerStepEntry(_message.Message):
            __slots__ = ("key", "value")
            KEY_FIELD_NUMBER: _ClassVar[int]
            VALUE_FIELD_NUMBER: _ClassVar[int]
            key: str
            value: float
            def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
        class FaultsEntry(_message.Message):
            __slots__ = ("key", "value")
            KEY_FIELD_NUMBER: _ClassVar[int]
            VALUE_FIELD_NUMBER: _ClassVar[int]
            key: str
            value: int
            def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
        RECIPE_FIELD_NUMBER: _ClassVar[int]
        JOB_ID_FIELD_NUMBER: _ClassVar[int]
        EPOCHS_FIELD_NUMBER: _ClassVar[int]
        TRAIN_SECONDS_FIELD_NUMBER: _ClassVar[int]
        SECONDS_PER_STEP_FIELD_NUMBER: _ClassVar[int]
        SCORE_STEP_FIELD_NUMBER: _ClassVar[int]
        CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
        CHECKPOINT_STEP_FIELD_NUMBER: _ClassVar[int]
        FAULTS_FIELD_NUMBER: _ClassVar[int]
        WORKERS_FIELD_NUMBER: _ClassVar[int]
        SHARDS_FIELD_NUMBER: _ClassVar[int]
        CHECKPOINT_AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
        LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
        STALENESS_HISTOGRAM_FIELD_NUMBER: _ClassVar[int]
        EVENTS_FIELD_NUMBER: _ClassVar[int]
        LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
        CHECKPOINT_EVERY_STEPS_FIELD_NUMBER: _ClassVar[int]
        EXPECTS_EVALUATOR_FIELD_NUMBER: _ClassVar[int]
        EVALUATORS_FIELD_NUMBER: _ClassVar[int]
        recipe: str
        job_id: str
        epochs: float
        train_seconds: float
        seconds_per_step: _containers.ScalarMap[str, float]
        score_step: int
        checkpoint: str
        checkpoint_step: int
        faults: _containers.ScalarMap[str, int]
        workers: _containers.RepeatedCompositeFieldContainer[ProgressReply.Worker]
        shards: _containers.RepeatedCompositeFieldContainer[ProgressReply.Shard]
        checkpoint_age_seconds: float
        learning_rate: float
        staleness_histogram: _containers.RepeatedScalarFieldContainer[int]
        events: _containers.RepeatedCompositeFieldContainer[ProgressReply.Event]
        lease_seconds: float
        checkpoint_every_steps: int
        expects_evaluator: bool
        evaluators: _containers.RepeatedCompositeFieldContainer[ProgressReply.Evaluator]
        def __init__(self, recipe: _Optional[str] = ..., job_id: _Optional[str] = ..., epochs: _Optional[float] = ..., train_seconds: _Optional[float] = ..., seconds_per_step: _Optional[_Mapping[str, float]] = ..., score_step: _Optional[int] = ..., checkpoint: _Optional[str] = ..., checkpoint_step: _Optional[int] = ..., faults: _Optional[_Mapping[str, int]] = ..., workers: _Optional[_Iterable[_Union[ProgressReply.Worker, _Mapping]]] = ..., shards: _Optional[_Iterable[_Union[ProgressReply.Shard, _Mapping]]] = ..., checkpoint_age_seconds: _Optional[float] = ..., learning_rate: _Optional[float] = ..., staleness_histogram: _Optional[_Iterable[int]] = ..., events: _Optional[_Iterable[_Union[ProgressReply.Event, _Mapping]]] = ..., lease_seconds: _Optional[float] = ..., checkpoint_every_steps: _Optional[int] = ..., expects_evaluator: bool = ..., evaluators: _Optional[_Iterable[_Union[ProgressReply.Evaluator, _Mapping]]] = ...) -> None: ...
    class Event(_message.Message):
        __slots__ = ("time", "step", "kind", "text")
        TIME_FIELD_NUMBER: _ClassVar[int]
        STEP_FIELD_NUMBER: _ClassVar[int]
        KIND_FIELD_NUMBER: _ClassVar[int]
        TEXT_FIELD_NUMBER: _ClassVar[int]
        time: float
        step: int
        kind: str
        text: str
        def __init__(self, time: _Optional[float] = ..., step: _Optional[int] = ..., kind: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...
    class Worker(_message.Message):
        __slots__ = ("index", "state", "host", "incarnation", "steps", "examples", "silent_seconds", "input_share", "seconds", "seconds_per_step", "examples_per_second", "staleness_mean", "version", "bytes_pulled", "bytes_pushed")
        class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
            __slots__ = ()
            STATE_UNSPECIFIED: _ClassVar[ProgressReply.Worker.State]
            STATE_EXPECTED: _ClassVar[ProgressReply.Worker.State]
            STATE_RUNNING: _ClassVar[ProgressReply.Worker.State]
            STATE_LOST: _ClassVar[ProgressReply.Worker.State]
            STATE_FINISHED: _ClassVar[ProgressReply.Worker.State]
            STATE_WAITING: _ClassVar[ProgressReply.Worker.State]
        STATE_UNSPECIFIED: ProgressReply.Worker.State
        STATE_EXPECTED: ProgressReply.Worker.State
        STATE_RUNNING: ProgressReply.Worker.State
        STATE_LOST: ProgressReply.Worker.State
        STATE_FINISHED: ProgressReply.Worker.State
        STATE_WAITING: ProgressReply.Worker.State
        class SecondsEntry(_message.Message):
            __slots__ = ("key", "value")
            KEY_FIELD_NUMBER: _ClassVar[int]
            VALUE_FIELD_NUMBER: _ClassVar[int]
            key: str
            value: float
            def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
        class SecondsPerStepEntry(_message.Message):
            __slots__ = ("key", "value")
            KEY_FIELD_NUMBER: _ClassVar[int]
            VALUE_FIELD_NUMBER: _ClassVar[int]
            key: str
            value: float
            def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
        INDEX_FIELD_NUMBER: _ClassVar[int]
        STATE_FIELD_NUMBER: _ClassVar[int]
        HOST_FIELD_NUMBER: _ClassVar[int]
        INCARNATION_FIELD_NUMBER: _ClassVar[int]
        STEPS_FIELD_NUMBER: _ClassVar[int]
        EXAMPLES_FIELD_NUMBER: _ClassVar[int]
        SILENT_SECONDS_FIELD_NUMBER: _ClassVar[int]
        INPUT_SHARE_FIELD_NUMBER: _ClassVar[int]
        SECONDS_FIELD_NUMBER: _ClassVar[int]
        SECONDS_PER_STEP_FIELD_NUMBER: _ClassVar[int]
        EXAMPLES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
        STALENESS_MEAN_FIELD_NUMBER: _ClassVar[int]
        VERSION_FIELD_NUMBER: _ClassVar[int]
        BYTES_PULLED_FIELD_NUMBER: _ClassVar[int]
        BYTES_PUSHED_FIELD_NUMBER: _ClassVar[int]
        index: int
        state: ProgressReply.Worker.State
        host: str
        incarnation: int
        steps: int
        examples: int
        silent_seconds: float
        input_share: float
        seconds: _containers.ScalarMap[str, float]
        seconds_per_step: _containers.ScalarMap[str, float]
        examples_per_second: float
        staleness_mean: float
        version: int
        bytes_pulled: int
        bytes_pushed: int
        def __init__(self, index: _Optional[int] = ..., state: _Optional[_Union[ProgressReply.Worker.State, str]] = ..., host: _Optional[str] = ..., incarnation: _Optional[int] = ..., steps: _Optional[int] = ..., examples: _Optional[int] = ..., silent_seconds: _Optional[float] = ..., input_share: _Optional[float] = ..., seconds: _Optional[_Mapping[str, float]] = ..., seconds_per_step: _Optional[_Mapping[str, float]] = ..., examples_per_second: _Optional[float] = ..., staleness_mean: _Optional[float] = ..., version: _Optional[int] = ..., bytes_pulled: _Optional[int] = ..., bytes_pushed: _Optional[int] = ...) -> None: ...
    class Evaluator(_message.Message):
        __slots__ = ("index", "state", "step", "seconds", "scored", "silent_seconds")
        class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
            __slots__ = ()
            STATE_UNSPECIFIED: _ClassVar[ProgressReply.Evaluator.State]
            STATE_WAITING: _ClassVar[ProgressReply.Evaluator.State]
            STATE_SCORING: _ClassVar[ProgressReply.Evaluator.State]
            STATE_LOST: _ClassVar[ProgressReply.Evaluator.State]
        STATE_UNSPECIFIED: ProgressReply.Evaluator.State
        STATE_WAITING: ProgressReply.Evaluator.State
        STATE_SCORING: ProgressReply.Evaluator.State
        STATE_LOST: ProgressReply.Evaluator.State
        INDEX_FIELD_NUMBER: _ClassVar[int]
        STATE_FIELD_NUMBER: _ClassVar[int]
        STEP_FIELD_NUMBER: _ClassVar[int]
        SECONDS_FIELD_NUMBER: _ClassVar[int]
        SCORED_FIELD_NUMBER: _ClassVar[int]
        SILENT_SECONDS_FIELD_NUMBER: _ClassVar[int]
        index: int
        state: ProgressReply.Evaluator.State
        step: int
        seconds: float
        scored: int
        silent_seconds: float
        def __init__(self, index: _Optional[int] = ..., state: _Optional[_Union[ProgressReply.Evaluator.State, str]] = ..., step: _Optional[int] = ..., seconds: _Optional[float] = ..., scored: _Optional[int] = ..., silent_seconds: _Optional[float] = ...) -> None: ...
    class Shard(_message.Message):
        __slots__ = ("address", "state", "version", "pushes", "state_bytes", "pulls", "bytes_received", "bytes_sent", "pushes_waiting", "seconds", "memory_bytes", "uptime_seconds", "pushes_refused", "pushes_dropped", "pushes_per_second", "staleness_mean", "seconds_per_push", "bytes_received_per_second", "bytes_sent_per_second")
        class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
            __slots__ = ()
            STATE_UNSPECIFIED: _ClassVar[ProgressReply.Shard.State]
            STATE_SILENT: _ClassVar[ProgressReply.Shard.State]
            STATE_EMPTY: _ClassVar[ProgressReply.Shard.State]
            STATE_READY: _ClassVar[ProgressReply.Shard.State]
        STATE_UNSPECIFIED: ProgressReply.Shard.State
        STATE_SILENT: ProgressReply.Shard.State
        STATE_EMPTY: ProgressReply.Shard.State
        STATE_READY: ProgressReply.Shard.State
        class SecondsEntry(_message.Message):
            __slots__ = ("key", "value")
            KEY_FIELD_NUMBER: _ClassVar[int]
            VALUE_FIELD_NUMBER: _ClassVar[int]
            key: str
            value: float
            def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
        class SecondsPerPushEntry(_message.Message):
            __slots__ = ("key", "value")
            KEY_FIELD_NUMBER: _ClassVar[int]
            VALUE_FIELD_NUMBER: _ClassVar[int]
            key: str
            value: float
            def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
        ADDRESS_FIELD_NUMBER: _ClassVar[int]
        STATE_FIELD_NUMBER: _ClassVar[int]
        VERSION_FIELD_NUMBER: _ClassVar[int]
        PUSHES_FIELD_NUMBER: _ClassVar[int]
        STATE_BYTES_FIELD_NUMBER: _ClassVar[int]
        PULLS_FIELD_NUMBER: _ClassVar[int]
        BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
        BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
        PUSHES_WAITING_FIELD_NUMBER: _ClassVar[int]
        SECONDS_FIELD_NUMBER: _ClassVar[int]
        MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
        UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
        PUSHES_REFUSED_FIELD_NUMBER: _ClassVar[int]
        PUSHES_DROPPED_FIELD_NUMBER: _ClassVar[int]
        PUSHES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
        STALENESS_MEAN_FIELD_NUMBER: _ClassVar[int]
        SECONDS_PER_PUSH_FIELD_NUMBER: _ClassVar[int]
        BYTES_RECEIVED_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
        BYTES_SENT_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
        address: str
        state: ProgressReply.Shard.State
        version: int
        pushes: int
        state_bytes: int
        pulls: int
        bytes_received: int
        bytes_sent: int
        pushes_waiting: int
        seconds: _containers.ScalarMap[str, float]
        memory_bytes: int
        uptime_seconds: float
        pushes_refused: int
        pushes_dropped: int
        pushes_per_second: float
        staleness_mean: float
        seconds_per_push: _containers.ScalarMap[str, float]
        bytes_received_per_second: float
        bytes_sent_per_second: float
        def __init__(self, address: _Optional[str] = ..., state: _Optional[_Union[ProgressReply.Shard.State, str]] = ..., version: _Optional[int] = ..., pushes: _Optional[int] = ..., state_bytes: _Optional[int] = ..., pulls: _Optional[int] = ..., bytes_received: _Optional[int] = ..., bytes_sent: _Optional[int] = ..., pushes_waiting: _Optional[int] = ..., seconds: _Optional[_Mapping[str, float]] = ..., memory_bytes: _Optional[int] = ..., uptime_seconds: _Optional[float] = ..., pushes_refused: _Optional[int] = ..., pushes_dropped: _Optional[int] = ..., pushes_per_second: _Optional[float] = ..., staleness_mean: _Optional[float] = ..., seconds_per_push: _Optional[_Mapping[str, float]] = ..., bytes_received_per_second: _Optional[float] = ..., bytes_sent_per_second: _Optional[float] = ...) -> None: ...
    STATE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    PUSHES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    STALENESS_MEAN_FIELD_NUMBER: _ClassVar[int]
    SECONDS_LEFT_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_LOSS_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    state: ProgressReply.State
    step: int
    num_steps: int
    loss: float
    examples_per_second: float
    pushes_per_second: float
    staleness_mean: float
    seconds_left: float
    metrics: _containers.ScalarMap[str, float]
    failure: str
    epoch_loss: float
    details: ProgressReply.Details
    def __init__(self, state: _Optional[_Union[ProgressReply.State, str]] = ..., step: _Optional[int] = ..., num_steps: _Optional[int] = ..., loss: _Optional[float] = ..., examples_per_second: _Optional[float] = ..., pushes_per_second: _Optional[float] = ..., staleness_mean: _Optional[float] = ..., seconds_left: _Optional[float] = ..., metrics: _Optional[_Mapping[str, float]] = ..., failure: _Optional[str] = ..., epoch_loss: _Optional[float] = ..., details: _Optional[_Union[ProgressReply.Details, _Mapping]] = ...) -> None: ...

class LeavingRequest(_message.Message):
    __slots__ = ("shard", "incarnation")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    shard: int
    incarnation: int
    def __init__(self, shard: _Optional[int] = ..., incarnation: _Optional[int] = ...) -> None: ...

class LeavingReply(_message.Message):
    __slots__ = ("may_go",)
    MAY_GO_FIELD_NUMBER: _ClassVar[int]
    may_go: bool
    def __init__(self, may_go: bool = ...) -> None: ...
