"""GpuSnapshot <-> v1.Gpu."""

from coscheduler.core.model import EngineName
from coscheduler.rpc.convert.names import ENGINE, ENGINE_STATE, LEDGER_STATE
from coscheduler.runtime.api import EngineView, GpuSnapshot, LedgerLine
from coscheduler.v1 import gpu_pb2


def engine_from_wire(number: int) -> EngineName:
    """The engine that a request names. Raises InvalidInput ENGINE_UNKNOWN."""
    return ENGINE.from_wire(number)


def engine_to_wire(engine: EngineName) -> gpu_pb2.Engine.ValueType:
    """The number of an engine."""
    return ENGINE.to_wire(engine)


def gpu_to_wire(snapshot: GpuSnapshot) -> gpu_pb2.Gpu:
    """The message for a snapshot of the device."""
    return gpu_pb2.Gpu(
        device=snapshot.device,
        device_name=snapshot.device_name,
        capacity_bytes=snapshot.capacity_bytes,
        headroom_bytes=snapshot.headroom_bytes,
        reserved_bytes=snapshot.reserved_bytes,
        measured_bytes=snapshot.measured_bytes,
        other_bytes=snapshot.other_bytes,
        lines=[_line_to_wire(line) for line in snapshot.lines],
        engines=[_engine_to_wire(engine) for engine in snapshot.engines],
        queued_count=snapshot.queued_count,
        running_count=snapshot.running_count,
        warnings=snapshot.warnings,
        budget_bytes=snapshot.budget_bytes,
        draining=snapshot.is_draining,
    )


def gpu_from_wire(message: gpu_pb2.Gpu) -> GpuSnapshot:
    """The snapshot in a message. Raises InvalidInput ENGINE_UNKNOWN and the like."""
    return GpuSnapshot(
        device=message.device,
        device_name=message.device_name,
        capacity_bytes=message.capacity_bytes,
        headroom_bytes=message.headroom_bytes,
        reserved_bytes=message.reserved_bytes,
        measured_bytes=message.measured_bytes,
        other_bytes=message.other_bytes,
        lines=tuple(_line_from_wire(line) for line in message.lines),
        engines=tuple(_engine_from_wire(engine) for engine in message.engines),
        queued_count=message.queued_count,
        running_count=message.running_count,
        warnings=tuple(message.warnings),
        budget_bytes=message.budget_bytes,
        is_draining=message.draining,
    )


def _line_to_wire(line: LedgerLine) -> gpu_pb2.LedgerLine:
    return gpu_pb2.LedgerLine(
        engine=ENGINE.to_wire(line.engine),
        line=line.line,
        held_bytes=line.bytes,
        state=LEDGER_STATE.to_wire(line.state),
    )


def _line_from_wire(message: gpu_pb2.LedgerLine) -> LedgerLine:
    return LedgerLine(
        engine=ENGINE.from_wire(message.engine),
        line=message.line,
        bytes=message.held_bytes,
        state=LEDGER_STATE.from_wire(message.state),
    )


def _engine_to_wire(view: EngineView) -> gpu_pb2.EngineStatus:
    return gpu_pb2.EngineStatus(
        engine=ENGINE.to_wire(view.engine),
        state=ENGINE_STATE.to_wire(view.state),
        model=view.model,
        option=view.option,
        quality_tier=view.quality_tier,
        pid=view.pid,
        job=view.job,
        predicted_bytes=view.predicted_bytes,
        measured_bytes=view.measured_bytes,
        options=view.options,
        failure=view.failure,
        pinned=view.is_pinned,
        note=view.note,
    )


def _engine_from_wire(message: gpu_pb2.EngineStatus) -> EngineView:
    return EngineView(
        engine=ENGINE.from_wire(message.engine),
        state=ENGINE_STATE.from_wire(message.state),
        model=message.model,
        option=message.option,
        quality_tier=message.quality_tier,
        pid=message.pid,
        job=message.job,
        predicted_bytes=message.predicted_bytes,
        measured_bytes=message.measured_bytes,
        options=tuple(message.options),
        failure=message.failure,
        is_pinned=message.pinned,
        note=message.note,
    )
