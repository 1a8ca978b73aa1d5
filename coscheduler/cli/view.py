"""What people see of jobs and of the device: bars while they run, tables afterwards."""

from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from coscheduler.cli.say import duration, printable, sentence, size
from coscheduler.core.model import Stage, StageState
from coscheduler.runtime.api import EngineView, GpuSnapshot, JobSnapshot, LedgerLine

BAR_CELLS = 40
STATE_STYLES = {
    "SUCCEEDED": "green",
    "FAILED": "red",
    "CANCELLED": "yellow",
    "CANCELLING": "yellow",
    "RUNNING": "cyan",
    "LOADING": "cyan",
}
ENGINE_STYLES = {"separation": "magenta", "transcription": "cyan", "analysis": "green"}


class Watching:
    """Bars for several jobs: one for each upload and each stage.

    Where the console is no terminal, a line for each change of state instead.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(BAR_CELLS // 2),
            TextColumn("{task.fields[note]}"), TimeElapsedColumn(), console=console,
        )  # fmt: skip
        self._rows: dict[tuple[str, str], TaskID] = {}
        self._said: dict[tuple[str, str], str] = {}

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def upload(self, title: str, done_bytes: int, total_bytes: int) -> None:
        """Show the bytes sent so far."""
        ended = done_bytes >= total_bytes
        self._show(title, "upload", "sent" if ended else "sending", done_bytes, total_bytes)

    def job(self, title: str, snapshot: JobSnapshot) -> None:
        """Show every stage of the job."""
        for index, stage in enumerate(snapshot.job.stages):
            progress = snapshot.progress
            if stage.state is StageState.SUCCEEDED:
                self._show(title, str(stage.kind), _stage_note(stage), 1, 1)
            elif progress is not None and progress.stage_index == index:
                note = f"{stage.state}: {progress.note}" if progress.note else str(stage.state)
                self._show(title, str(stage.kind), note, progress.done, progress.total)
            else:
                self._show(title, str(stage.kind), _pending_note(stage, snapshot), 0, 0)

    def _show(self, title: str, step: str, note: str, done: int, total: int) -> None:
        if self._console.is_terminal:
            self._draw(title, step, note, done, total)
            return
        state = note.partition(":")[0]
        if self._said.get((title, step)) != state:
            self._said[title, step] = state
            line = f"{title}: {step}: {note}"
            self._console.print(Text(printable(line)), soft_wrap=True)

    def _draw(self, title: str, step: str, note: str, done: int, total: int) -> None:
        key = (title, step)
        if key not in self._rows:
            description = printable(f"{title}  {step}").replace("[", r"\[")
            self._rows[key] = self._bars.add_task(description, total=None, note="")
        row = self._rows[key]
        idle = not total and not done
        self._bars.update(
            row, completed=done, total=1 if idle else max(total, done), note=Text(note).plain
        )


def _stage_note(stage: Stage) -> str:
    return f"done: {duration(stage.run_ms)}" + (f", {stage.option}" if stage.option else "")


def _pending_note(stage: Stage, snapshot: JobSnapshot) -> str:
    if stage.state is StageState.PENDING and snapshot.waiting_for:
        return f"waiting: {snapshot.waiting_for}"
    return str(stage.state)


def state_text(state: str) -> Text:
    """A state in its colour."""
    return Text(state, style=STATE_STYLES.get(state, ""))


def outcome(metrics: dict[str, Any]) -> RenderableType:
    """A job's metrics as a table, its failure, its notes and its files."""
    lines: list[RenderableType] = [
        Text.assemble(
            (printable(metrics["title"]), "bold"),
            f"  {metrics['job']}  ",
            state_text(metrics["state"]),
        )
    ]
    if metrics["stages"]:
        lines.append(_stage_table(metrics["stages"]))
    if failure := metrics["failure"]:
        told = sentence(failure["reason"], failure["message"], failure["numbers"])
        lines.append(Text(printable(told), style="red"))
    for stage in metrics["stages"]:
        lines += [Text(f"{stage['stage']}: {note}") for note in stage["notes"]]
        lines += [Text(f"{stage['stage']} evicted {what}") for what in stage["evicted"]]
        lines += [Text(f"{stage['stage']} waited for {what}") for what in stage["waited_for"]]
    lines += [Text(printable(note), style="yellow") for note in metrics.get("notes", ())]
    lines += [Text(f"  {printable(path)}") for path in metrics["files"]]
    return Group(*lines)


def _stage_table(stages: list[dict[str, Any]]) -> Table:
    table = Table("stage", "state", "waited", "loaded", "ran", "x real time", "predicted")
    table.add_column("measured")
    table.add_column("option")
    for stage in stages:
        factor = stage["real_time_factor"]
        table.add_row(
            stage["stage"], state_text(stage["state"]), duration(stage["wait_ms"]),
            duration(stage["load_ms"]), duration(stage["run_ms"]),
            "" if factor is None else f"{factor:.2f}", size(stage["predicted_peak_bytes"]),
            size(stage["measured_peak_bytes"]), stage["option"],
        )  # fmt: skip
    return table


def job_table(jobs: list[JobSnapshot], now_ms: int) -> Table:
    """One row for each job."""
    table = Table("job", "title", "class", "state", "stages", "age")
    for snapshot in jobs:
        job = snapshot.job
        stages = " ".join(_stage_mark(stage) for stage in job.stages)
        table.add_row(
            job.name, Text(printable(job.title)), job.priority.name.lower(),
            state_text(job.state.name), stages, duration(max(0, now_ms - job.arrival_ms)),
        )  # fmt: skip
    return table


def _stage_mark(stage: Stage) -> str:
    marks = {StageState.SUCCEEDED: "✓", StageState.FAILED: "✗", StageState.RUNNING: "▶"}
    return f"{stage.kind}{marks.get(stage.state, '')}"


def gpu(snapshot: GpuSnapshot) -> RenderableType:
    """The ledger as bars: the whole, each line of each engine, and what each engine is doing."""
    lines: list[RenderableType] = [
        Text(f"{snapshot.device} {snapshot.device_name}", style="bold"),
        _whole(snapshot),
        Text(
            f"ledger {size(snapshot.reserved_bytes)} of {size(snapshot.capacity_bytes)}, "
            f"measured {size(snapshot.measured_bytes)}, other programs "
            f"{size(snapshot.other_bytes)}, headroom {size(snapshot.headroom_bytes)}"
        ),
        _ledger_table(snapshot),
        _engine_table(snapshot.engines),
        Text(f"{snapshot.running_count} jobs running, {snapshot.queued_count} queued"),
        *(Text(f"{view.engine}: {view.note}") for view in snapshot.engines if view.note),
    ]
    if snapshot.is_draining:
        lines.append(Text("draining: nothing is started", style="yellow"))
    return Group(*lines, *(Text(warning, style="yellow") for warning in snapshot.warnings))


def _cells(part_bytes: int, whole_bytes: int) -> int:
    return min(BAR_CELLS, round(BAR_CELLS * part_bytes / whole_bytes)) if whole_bytes else 0


def _whole(snapshot: GpuSnapshot) -> Text:
    bar, used = Text(), 0
    for engine, style in ENGINE_STYLES.items():
        held = sum(line.bytes for line in snapshot.lines if line.engine == engine)
        cells = min(_cells(held, snapshot.capacity_bytes), BAR_CELLS - used)
        bar.append("█" * cells, style=style)
        used += cells
    return bar.append("░" * (BAR_CELLS - used))


def _ledger_table(snapshot: GpuSnapshot) -> Table:
    table = Table("engine", "line", "state", "held", "", box=None)
    for line in snapshot.lines:
        table.add_row(
            line.engine, line.line, line.state, size(line.bytes),
            _line_bar(line, snapshot.capacity_bytes),
        )  # fmt: skip
    return table


def _line_bar(line: LedgerLine, capacity_bytes: int) -> Text:
    """Taken bytes are solid; those set aside or on their way back are shaded."""
    block = "█" if line.state == "committed" else "▒"
    return Text(
        block * _cells(line.bytes, capacity_bytes), style=ENGINE_STYLES.get(line.engine, "")
    )


def _engine_table(engines: tuple[EngineView, ...]) -> Table:
    table = Table("engine", "state", "model", "option", "predicted", "measured", "job", box=None)
    for view in engines:
        table.add_row(
            view.engine, Text(_state(view)), Text(view.model), Text(view.option),
            size(view.predicted_bytes), size(view.measured_bytes), view.job,
        )  # fmt: skip
    return table


def _state(view: EngineView) -> str:
    return (view.failure or view.state) + (", pinned" if view.is_pinned else "")
