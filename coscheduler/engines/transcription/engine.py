"""WhisperX behind the Engine protocol: a recording in, a transcript with word times out."""

import gc
import json
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

from coscheduler.config import Settings, TranscriptionSettings
from coscheduler.core.model import (
    EngineDescription,
    EngineName,
    Line,
    LineBytes,
    Lines,
    Option,
    total_bytes,
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
)
from coscheduler.engines.transcription.libraries import module
from coscheduler.engines.transcription.offer import Choice
from coscheduler.engines.transcription.transcribe import Loaded, Transcription
from coscheduler.errors import EngineFault, Refused
from coscheduler.stages import TranscribeParameters


class TranscriptionEngine:
    """One Whisper with speech detection; aligners come and go within a stage."""

    name = EngineName.TRANSCRIPTION

    def __init__(self, settings: Settings) -> None:
        """Raises Refused ENGINE_NOT_CONFIGURED without a [transcription] section."""
        if settings.transcription is None:
            raise Refused("ENGINE_NOT_CONFIGURED", "the config has no [transcription] section")
        self._settings = settings
        self._transcription: TranscriptionSettings = settings.transcription
        self._loaded: Loaded | None = None
        self._held_bytes = 0

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
        """Options: compute types x batch sizes, from headers and file sizes alone.

        Raises EngineFault MODEL_MISSING or MODEL_CORRUPT, naming the file.
        """
        models = self._models()
        types = footprint.compute_types(self._settings, self._transcription)
        return EngineDescription(
            engine=self.name,
            model=models.whisper.name,
            options=tuple(
                self._option(models, Choice(compute_type, batch_size))
                for compute_type in types
                for batch_size in self._transcription.batch_sizes
            ),
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
        """Load Whisper, the speech detection and, where configured, the diarizer.

        Raises EngineFault MODEL_MISSING or MODEL_CORRUPT; then nothing is held.
        """
        self.unload()
        choice = Choice(**json.loads(option.settings_json))
        models = self._models()
        try:
            self._loaded = self._load(choice, on_progress)
        except (RuntimeError, ValueError) as error:
            self._give_back()
            if "out of memory" in str(error).lower():  # CTranslate2 has no type of its own for it
                raise
            raise checkpoint.corrupt(self._transcription.model, str(error)) from None
        self._held_bytes = total_bytes(footprint.resident(models, choice.compute_type))
        self._give_back()

    def slices(self, task: Task) -> Generator[Slice, None, StageResult]:
        """Transcribe `task.input_path` into transcript.json and the asked-for formats.

        Raises EngineFault NOT_LOADED, MODEL_MISSING or MODEL_CORRUPT (an aligner), InvalidInput
        LANGUAGE_UNKNOWN, TASK_UNKNOWN, BEAM_TOO_WIDE, AUDIO_UNREADABLE or AUDIO_NOT_FINITE.

        Goes on after the last batch of text that an earlier attempt left in `task.resume_dir`.
        """
        if self._loaded is None:
            raise EngineFault("NOT_LOADED", "no option of the transcription model is loaded")
        parameters = TranscribeParameters.model_validate(dict(task.parameters))
        try:
            run = Transcription(self._loaded, task, parameters, self._give_back)
            return (yield from run.slices())
        finally:
            self._give_back()

    def unload(self) -> None:
        """Drop the models. Raises EngineFault UNLOAD_INCOMPLETE when CTranslate2 keeps its weights,
        which it does without a word while a batch is running.
        """
        if self._loaded is None:
            return
        whisper = self._loaded.pipeline.model.model
        self._loaded, self._held_bytes = None, 0
        whisper.unload_model()
        if whisper.model_is_loaded:
            raise EngineFault("UNLOAD_INCOMPLETE", "CTranslate2 is busy and kept its weights")
        del whisper
        self._give_back()

    def held(self) -> Lines:
        """The weights, by the shapes in their files; nothing when nothing is loaded."""
        if self._loaded is None:
            return ()
        return (LineBytes(Line.WEIGHTS, self._held_bytes),)

    def _models(self) -> footprint.Models:
        chosen = self._transcription
        return footprint.Models(
            whisper=checkpoint.read_whisper(chosen.model),
            aligners=tuple(checkpoint.read_aligner(folder) for folder in chosen.aligners.values()),
            diarizer_bytes=checkpoint.diarizer_bytes(chosen.diarizer) if chosen.diarizer else 0,
        )

    def _option(self, models: footprint.Models, choice: Choice) -> Option:
        settings, chosen = self._settings, self._transcription
        recording_ms_max = settings.store.recording_ms_max
        option = offer.option(models, choice, chosen.beam_size, settings.device, recording_ms_max)
        return replace(option, files=(str(chosen.model / "model.bin"),))

    def _load(self, choice: Choice, on_progress: OnProgress) -> Loaded:
        chosen, device = self._transcription, self._device
        steps = 2 if chosen.diarizer else 1
        on_progress(0, steps)
        pipeline = self._load_pipeline(choice)
        on_progress(1, steps)
        diarizer = None
        if chosen.diarizer:
            diarizer = speakers.load_diarizer(chosen.diarizer, device)
            on_progress(2, steps)
        return Loaded(
            pipeline,
            diarizer,
            chosen,
            choice.compute_type,
            choice.batch_size,
            device,
            self._punkt_dir,
        )

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
