"""The chief's gRPC methods, which workers, the evaluator, shards and launchers call.

Threads: the server's threads enter here. What an answer depends on is in the journal before the answer is sent.
"""

from __future__ import annotations

import time

import grpc
from absl import logging

from downpour.proto import chief_pb2 as pb
from downpour.proto import chief_pb2_grpc
from downpour.proto.errors import NotYet
from downpour.worker.chief.admission import let_in
from downpour.worker.chief.progress import progress
from downpour.worker.chief.scores import Scores
from downpour.worker.chief.settings import JobSettings
from downpour.worker.chief.state import JobState
from downpour.worker.chief.traces import Traces

_LEASE_WITHIN_S, _LOOK_AGAIN_S = 0.25, 0.05  # for a lease that waits for an epoch's checkpoint or score
_CHECKPOINT_WITHIN_S = 0.5


class Service(chief_pb2_grpc.ChiefServicer):
    """Serves one job. Until its state is ready, workers that register are refused with `NotReady`.

    Args:
        settings: The job's settings.
        state: The job's state.
        scores: Takes scores.
        traces: Takes spans of traced steps; None: none is traced.
    """

    def __init__(self, settings: JobSettings, state: JobState, scores: Scores, traces: Traces | None = None) -> None:
        self._settings, self._state, self._scores = settings, state, scores
        self._traces = traces or Traces(0, 0)

    def Register(self, request: pb.RegisterRequest, context: grpc.ServicerContext) -> pb.RegisterReply:
        """See `downpour/proto/chief.proto`."""
        state = self._state
        with state.journaled():
            self._settings.check_worker(request, state.ready().fingerprint)
            now = time.monotonic()
            incarnation = state.coordinator.give_incarnation(request, now)
            stop = state.coordinator.should_stop(now)
        logging.info("worker %d is %s, incarnation %d", request.worker, request.host, incarnation)
        trace_steps = self._traces.steps_of(request.worker)
        return pb.RegisterReply(stop=stop, incarnation=incarnation, job_id=state.job_id, trace_steps=trace_steps)

    def Report(self, request: pb.WorkerReport, context: grpc.ServicerContext) -> pb.ReportReply:
        """See `downpour/proto/chief.proto`."""
        state, received_s = self._state, self._traces.clock()
        spans = request.trace if request.HasField("trace") else None
        request.ClearField("trace")  # the rest is kept, and written to the journal
        with state.changed:
            state.ready()
            stop = state.coordinator.report(request, time.monotonic())
            state.changed.notify_all()
        reply = pb.ReportReply(stop=stop, overlap=state.overlap.overlaps)
        if spans is not None:
            reply.trace_received.CopyFrom(self._traces.take("worker", request.worker, spans))
            reply.received_seconds, reply.replied_seconds = received_s, self._traces.clock()
        return reply

    def Lease(self, request: pb.LeaseRequest, context: grpc.ServicerContext) -> pb.LeaseReply:
        """See `downpour/proto/chief.proto`."""
        state, begin = self._state, time.monotonic()
        with state.changed:
            state.ready()
            ask_again_s = let_in(state.coordinator, request.worker, request.incarnation, begin)
            if ask_again_s:
                return pb.LeaseReply(ask_again_seconds=ask_again_s)
        with state.journaled():
            who = request.worker, request.incarnation, request.number
            while (lease := state.coordinator.lease(*who, time.monotonic())) is None:
                if time.monotonic() > begin + _LEASE_WITHIN_S:
                    raise NotYet("an epoch has no checkpoint or score yet")
                if not state.lease_waits:
                    state.lease_waits = True
                    state.changed.notify_all()
                state.changed.wait(_LOOK_AGAIN_S)
        return pb.LeaseReply(epoch=lease.epoch, start=lease.start, stop=lease.stop)

    def NextCheckpoint(
        self, request: pb.NextCheckpointRequest, context: grpc.ServicerContext
    ) -> pb.NextCheckpointReply:
        """See `downpour/proto/chief.proto`."""
        state = self._state
        self._settings.check_job("the evaluator", request.job or self._settings.job)
        over, turns = (pb.ProgressReply.STATE_DONE, pb.ProgressReply.STATE_FAILED), state.turns

        def found() -> pb.NextCheckpointReply | None:
            newest = state.journal_state.checkpoint
            saved = [*state.unscored, *([newest] if newest is not None else [])]
            return turns.next(request.evaluator, saved, time.monotonic())

        with state.changed:
            state.evaluator_heard_s = time.monotonic()
            if request.job:  # it is asked for nothing but the comparison
                return pb.NextCheckpointReply()
            if request.HasField("scoring"):
                turns.renew(request, time.monotonic())
                return pb.NextCheckpointReply()
            turns.ask(request, time.monotonic())
            state.unscored = [one for one in state.unscored if one.step > turns.after or one.step in turns.steps]
        self._scores.count()  # those that waited for a checkpoint that was passed over
        state.wait(lambda: found() is not None or state.phase in over, _CHECKPOINT_WITHIN_S)
        with state.changed:
            saved = found()
            if saved is not None:
                turns.give(request.evaluator, saved, time.monotonic())
            state.journal_state.offered = turns.steps
            return saved or pb.NextCheckpointReply(stop=state.phase in over)

    def ReportScore(self, request: pb.Score, context: grpc.ServicerContext) -> pb.ReportScoreReply:
        """See `downpour/proto/chief.proto`."""
        self._scores.take(request)
        return pb.ReportScoreReply()

    def Progress(self, request: pb.ProgressRequest, context: grpc.ServicerContext) -> pb.ProgressReply:
        """See `downpour/proto/chief.proto`."""
        with self._state.changed:
            return progress(self._settings, self._state, detailed=request.detailed)

    def Leaving(self, request: pb.LeavingRequest, context: grpc.ServicerContext) -> pb.LeavingReply:
        """See `downpour/proto/chief.proto`."""
        state = self._state
        with state.changed:
            state.ready()
            may_go = state.departures.ask(request.shard, request.incarnation, time.monotonic())
            state.changed.notify_all()
            saved = state.journal_state.checkpoint
            return pb.LeavingReply(may_go=may_go or (saved is not None and saved.last))
