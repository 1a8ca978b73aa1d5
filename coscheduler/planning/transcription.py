"""WhisperX in a plan: compute types and batch sizes."""

from dataclasses import replace

from coscheduler.config import Settings, TranscriptionSettings
from coscheduler.core.model import EngineName, total_bytes
from coscheduler.engines.transcription import checkpoint, footprint, offer, sizes
from coscheduler.engines.transcription.footprint import Models
from coscheduler.engines.transcription.offer import Choice
from coscheduler.engines.transcription.placement import Part
from coscheduler.planning.offer import Facts, Machine, Offer, Offered, local, shape_wanted, title


def offered(settings: Settings, section: TranscriptionSettings, machine: Machine) -> Offer:
    """The engine's options. Raises InvalidInput SIZES_UNKNOWN, EngineFault MODEL_CORRUPT."""
    models, types = _models(section), footprint.compute_types(settings, section)
    choices = offer.choices(models, types, section.batch_sizes, machine.device.device)
    found = tuple(_entry(section, models, choice, machine) for choice in choices)
    return Offer(
        EngineName.TRANSCRIPTION,
        models.whisper.name,
        footprint.CONTEXT_BYTES[machine.device.device],
        found,
    )


def _entry(
    section: TranscriptionSettings, models: Models, choice: Choice, machine: Machine
) -> Offered:
    option = offer.option(
        models,
        choice,
        section.beam_size,
        machine.device,
        machine.recording_ms_max,
        section.detect_ahead,
    )
    moved_bytes = footprint.moved_bytes(models, choice.compute_type, choice.placement)
    load_ms, run_ms = machine.copy_ms(total_bytes(option.resident)), machine.copy_ms(moved_bytes)
    facts: Facts = {
        "compute_type": choice.compute_type,
        "batch_size": choice.batch_size,
        "in_use": ", ".join(part for part in Part if part in choice.placement.in_use),
    }
    timed = replace(option, load_ms=load_ms, run_ms_fixed=run_ms)
    host = {"ram": option.host_bytes} if option.host_bytes else {}
    return Offered(timed, choice.compute_type, facts, host)


def _models(section: TranscriptionSettings) -> Models:
    """The model folders by their headers, or what the config states of them."""
    shape, folder = section.shape, local(section.model, "config.json")
    if shape is not None and not (folder / "model.bin").is_file():
        aligner = (sizes.aligner(shape.aligner, "aligner"),) if shape.aligner else ()
        whisper = sizes.whisper(shape, title(section.model))
        return Models(whisper, aligner, int(shape.diarizer_bytes))
    with shape_wanted(EngineName.TRANSCRIPTION, section.model):
        aligners = [local(path, "config.json") for path in section.aligners.values()]
        diarizer = section.diarizer and local(section.diarizer, "config.yaml")
        return Models(
            checkpoint.read_whisper(folder),
            tuple(map(checkpoint.read_aligner, aligners)),
            checkpoint.diarizer_bytes(diarizer) if diarizer else 0,
            checkpoint.is_small_diarizer(diarizer),
        )
