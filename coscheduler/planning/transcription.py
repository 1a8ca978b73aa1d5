"""WhisperX in a plan: compute types and batch sizes."""

from coscheduler.config import Settings, TranscriptionSettings
from coscheduler.core.model import EngineName, Option, total_bytes
from coscheduler.engines.transcription import checkpoint, footprint, sizes, timing
from coscheduler.engines.transcription.footprint import Models, Place
from coscheduler.planning.offer import Facts, Machine, Offer, Offered, local, shape_wanted, title


def offered(settings: Settings, section: TranscriptionSettings, machine: Machine) -> Offer:
    """The engine's options. Raises InvalidInput SIZES_UNKNOWN, EngineFault MODEL_CORRUPT."""
    models = _models(section)
    found = tuple(
        _entry(section, models, compute_type, batch_size, machine)
        for compute_type in footprint.compute_types(settings, section)
        for batch_size in section.batch_sizes
    )
    return Offer(
        EngineName.TRANSCRIPTION,
        models.whisper.name,
        footprint.CONTEXT_BYTES[machine.device.device],
        found,
    )


def _entry(
    section: TranscriptionSettings, models: Models, compute_type: str, batch_size: int,
    machine: Machine,
) -> Offered:  # fmt: skip
    device, beam_size = machine.device, section.beam_size
    window_ms = timing.window_ms(models.whisper, device, compute_type, beam_size, batch_size)
    place = Place(device.device, -(-machine.recording_ms_max // 1000))
    resident = footprint.resident(models, compute_type)
    option = Option(
        name=f"{compute_type}, batch {batch_size}",
        resident=resident,
        run=footprint.run_lines(models, place, compute_type, batch_size, beam_size),
        quality_tier=footprint.TIERS[compute_type],
        load_ms=machine.copy_ms(total_bytes(resident)),
        run_ms_per_second=timing.run_ms_per_second(window_ms, device),
        slice_ms_max=timing.slice_ms_max(window_ms, batch_size, device),
    )
    facts: Facts = {"compute_type": compute_type, "batch_size": batch_size}
    return Offered(option, compute_type, facts)


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
        )
