"""WhisperX behind the Engine protocol: a recording in, a transcript with word times out."""

import gc
import logging
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from coscheduler.config import Settings, TranscriptionSettings
from coscheduler.core.model import (
    EngineDescription,
    EngineName,
    Line,
    LineBytes,
    Lines,
    Option,
)
from coscheduler.engines.base import OnProgress, Slice, StageResult, Task
from coscheduler.engines.streaming import heap
from coscheduler.engines.transcription import (
    checkpoint,
    footprint,
    libraries,
    offer,
    speakers,
    speech,
    words,
)
from coscheduler.engines.transcription.ahead import Ahead
from coscheduler.engines.transcription.components import Component, File, Parked, Ram, Source
from coscheduler.engines.transcription.footprint import LINES, VAD_WEIGHT_BYTES, Models
from coscheduler.engines.transcription.libraries import module
from coscheduler.engines.transcription.offer import Choice
from coscheduler.engines.transcription.placement import HELD, Part, Placement
from coscheduler.engines.transcription.transcribe import Loaded, Transcription
from coscheduler.errors import EngineFault, Refused
from coscheduler.stages import TranscribeParameters

log = logging.getLogger(__name__)

T = TypeVar("T")


class TranscriptionEngine:
    """Speech detection, and three kinds of models that stay or come and go: Whisper, aligners and
    the diarizer.
    """

    name = EngineName.TRANSCRIPTION

    def __init__(self, settings: Settings) -> None:
        """Raises Refused ENGINE_NOT_CONFIGURED without a [transcription] section."""
        if settings.transcription is None:
            raise Refused("ENGINE_NOT_CONFIGURED", "the config has no [transcription] section")
        self._settings = settings
        self._transcription: TranscriptionSettings = settings.transcription
        self._loaded: Loaded | None = None
        self._next: Task | None = None
        self._placement = HELD

    @property
    def _device(self) -> str:
        """The device as torch names it."""
        chosen = self._settings.device
        return "cpu" if chosen.device == "cpu" else f"cuda:{chosen.index}"

    @property
    def _punkt_dir(self) -> Path:
        """Where an untrained sentence splitter is put for NLTK, which has none of its own."""
        return self._settings.data_dir / "punkt"

    def describe(self) -> EngineDescription:
        """Options: compute types x batch sizes x placements, from headers and file sizes alone.

        Raises EngineFault MODEL_MISSING or MODEL_CORRUPT, naming the file.
        """
        models = self._models()
        types = footprint.compute_types(self._settings, self._transcription)
        batch_sizes, device = self._transcription.batch_sizes, self._settings.device.device
        choices = offer.choices(models, types, batch_sizes, device)
        return EngineDescription(
            engine=self.name,
            model=models.whisper.name,
            options=tuple(self._option(models, choice) for choice in choices),
            context_bytes=footprint.CONTEXT_BYTES[self._settings.device.device],
        )

    def start(self) -> None:
        """Import WhisperX and warm it up, so that thread pools and whatever the libraries set up at
        their first use belong to the context and not to the first stage.
        """
        thread_count = self._settings.device.threads
        libraries.import_all(thread_count)
        from coscheduler.engines.transcription.warmup import warm_up  # it needs torch

        warm_up(self._device, thread_count, self._punkt_dir)
        self._give_back()
        gc.freeze()  # the libraries stay: no later collection need look through them

    def load(self, option: Option, on_progress: OnProgress) -> None:
        """Load the speech detection, Whisper and what else the option holds.

        Raises EngineFault MODEL_MISSING or MODEL_CORRUPT; then nothing is held.
        """
        self.unload()
        choice = offer.from_json(option.settings_json)
        try:
            self._loaded = self._load(self._models(), choice, on_progress)
        except (RuntimeError, ValueError) as error:
            if "out of memory" in str(error).lower():  # CTranslate2 has no type of its own for it
                raise
            raise checkpoint.corrupt(self._transcription.model, str(error)) from None
        finally:
            self._give_back()

    def resize(self, option: Option) -> None:
        """Hold what the option holds; what is in use and is no longer held goes when its phase is
        over, whose run lines count it.

        Raises EngineFault NOT_LOADED, OUT_OF_MEMORY, MODEL_MISSING or MODEL_CORRUPT; then it is as
        it was. UNLOAD_INCOMPLETE: CTranslate2 is busy and kept its weights.
        """
        if self._loaded is None:
            raise EngineFault("NOT_LOADED", "no option of the transcription model is loaded")
        components = self._loaded.components
        try:
            self._placement = place(components, offer.from_json(option.settings_json).placement)
        except (EngineFault, RuntimeError, MemoryError) as error:
            place(components, self._placement)
            if isinstance(error, EngineFault):
                raise
            raise EngineFault(
                "OUT_OF_MEMORY", f"no room for {option.name}: {error}", option=option.name
            ) from None
        finally:
            self._give_back()

    def slices(self, task: Task) -> Generator[Slice, None, StageResult]:
        """Transcribe `task.input_path` into transcript.json and the asked-for formats.

        Raises EngineFault NOT_LOADED, MODEL_MISSING or MODEL_CORRUPT (an aligner), InvalidInput
        LANGUAGE_UNKNOWN, TASK_UNKNOWN, BEAM_TOO_WIDE, AUDIO_UNREADABLE or AUDIO_NOT_FINITE.

        Goes on after the last batch of text that an earlier attempt left in `task.resume_dir`.
        """
        if self._loaded is None:
            raise EngineFault("NOT_LOADED", "no option of the transcription model is loaded")
        ahead, self._next = self._ahead(), None
        try:
            return (yield from self._run(task).slices(ahead))
        finally:
            if ahead is not None:
                ahead.stop()
            self._give_back()

    def look_ahead(self, task: Task) -> None:
        """See `base.LookingAheadEngine`: its speech is found beside the text of the next run."""
        if _is_short(task) and task.resume_dir is not None:
            self._next = replace(task, output_dir=task.resume_dir)

    def _ahead(self) -> Ahead | None:
        return None if self._next is None else Ahead(self._run(self._next).detected())

    def _run(self, task: Task) -> Transcription:
        assert self._loaded is not None
        parameters = TranscribeParameters.model_validate(dict(task.parameters))
        return Transcription(self._loaded, task, parameters, self._give_back)

    def unload(self) -> None:
        """Drop the models. Raises EngineFault UNLOAD_INCOMPLETE when CTranslate2 keeps its weights,
        which it does without a word while a batch is running.
        """
        if self._loaded is None:
            return
        whisper = self._loaded.pipeline.model.model
        self._loaded = None
        whisper.unload_model()
        if whisper.model_is_loaded:
            raise EngineFault("UNLOAD_INCOMPLETE", "CTranslate2 is busy and kept its weights")
        del whisper
        self._give_back()

    def held(self) -> Lines:
        """What is on the device now, by the shapes in the files; nothing when nothing is loaded."""
        if self._loaded is None:
            return ()
        held = {Line.WEIGHTS: VAD_WEIGHT_BYTES}
        for components in self._loaded.components.values():
            for line in (entry for component in components for entry in component.held):
                held[line.line] = held.get(line.line, 0) + line.bytes
        return tuple(LineBytes(line, size) for line, size in held.items())

    def _models(self) -> Models:
        chosen = self._transcription
        return Models(
            whisper=checkpoint.read_whisper(chosen.model),
            aligners=tuple(checkpoint.read_aligner(folder) for folder in chosen.aligners.values()),
            diarizer_bytes=checkpoint.diarizer_bytes(chosen.diarizer) if chosen.diarizer else 0,
            has_small_diarizer=checkpoint.is_small_diarizer(chosen.diarizer),
        )

    def _option(self, models: Models, choice: Choice) -> Option:
        settings, chosen = self._settings, self._transcription
        recording_ms_max = settings.store.recording_ms_max
        option = offer.option(
            models,
            choice,
            chosen.beam_size,
            settings.device,
            recording_ms_max,
            chosen.detect_ahead,
        )
        others = [*chosen.aligners.values(), *((chosen.diarizer,) if chosen.diarizer else ())]
        files = [chosen.model / "model.bin"]
        files += [path for folder in others for path in checkpoint.weight_files(folder)]
        return replace(option, files=tuple(map(str, files)))

    def _load(self, models: Models, choice: Choice, on_progress: OnProgress) -> Loaded:
        steps = 1 + len(Part)
        on_progress(0, steps)
        pipeline = self._load_pipeline(choice)
        on_progress(1, steps)
        loaded = self._loaded_with(pipeline, models, choice)
        self._placement = place(
            loaded.components, choice.placement, lambda done, _: on_progress(1 + done, steps)
        )
        return loaded

    def _loaded_with(self, pipeline: Any, models: Models, choice: Choice) -> Loaded:
        """The models as components; of them only Whisper is there."""
        chosen, device, whisper = self._transcription, self._device, pipeline.model.model
        weights = footprint.weight_bytes(models.whisper, choice.compute_type)
        loaded_whisper = self._component(Parked(whisper), Part.WHISPER, weights)
        loaded_whisper.place(is_held=True)
        aligners = {}
        for (key, folder), sizes in zip(chosen.aligners.items(), models.aligners, strict=True):
            language = key.partition("-")[0]
            read = partial(words.load_aligner, language, folder, device, self._punkt_dir)
            source = self._source(read, words.InRam())
            aligners[key] = self._component(source, Part.ALIGNERS, sizes.parameter_bytes)
        diarizer = None
        if chosen.diarizer:
            read_diarizer = partial(speakers.load_diarizer, chosen.diarizer, device)
            source = self._source(read_diarizer, partial(speakers.move, device=device))
            diarizer = self._component(source, Part.DIARIZER, models.diarizer_bytes)
        return Loaded(
            pipeline,
            models.whisper,
            whisper.is_multilingual,
            loaded_whisper,
            aligners,
            diarizer,
            chosen,
            choice.compute_type,
            choice.batch_size,
        )

    def _source(self, read: Callable[[], T], move: Callable[[T, bool], None]) -> Source[T]:
        """Where a model goes: on a card into RAM; on the CPU it is read again."""
        return Ram(read, move) if self._settings.device.device == "cuda" else File(read)

    def _component(self, source: Source[T], part: Part, size_bytes: int) -> Component[T]:
        return Component(source, LINES[part], size_bytes, self._give_back)

    def _load_pipeline(self, choice: Choice) -> Any:
        """WhisperX's pipeline of Whisper and speech detection."""
        chosen, device = self._transcription, self._settings.device
        pipeline = module("whisperx.asr").load_model(
            str(chosen.model),
            device.device,
            device_index=device.index,
            compute_type=choice.compute_type,
            asr_options={"beam_size": chosen.beam_size},
            vad_options={"vad_onset": chosen.vad_onset, "vad_offset": chosen.vad_offset},
            local_files_only=True,
            threads=device.threads,
        )
        if device.device == "cpu":
            speech.bound_front_end(pipeline.vad_model)
        return pipeline

    def _give_back(self) -> None:
        """Freed memory goes back to the system, so that the ledger's word is true."""
        gc.collect()
        heap.trim()
        if self._settings.device.device == "cuda":
            module("torch").cuda.empty_cache()


def place(
    components: Mapping[Part, tuple[Component[Any], ...]],
    placement: Placement,
    on_progress: OnProgress = lambda done, total: None,
) -> Placement:
    """Let every part stay, or be there only while in use: first what goes, then what comes.

    An aligner that cannot be read fails the jobs of its language, not the others.
    """
    parts = sorted(components, key=placement.holds)
    for done, part in enumerate(parts, start=1):
        for component in components[part]:
            try:
                component.place(placement.holds(part))
            except EngineFault as fault:
                if part is not Part.ALIGNERS:
                    raise
                log.warning("%s; jobs that need it will fail", fault.message)
        on_progress(done, len(parts))
    return placement


def _is_short(task: Task) -> bool:
    """Whether there is memory for what is kept of each second of it."""
    return task.duration_ms <= 1000 * footprint.AHEAD_SECONDS_MAX
