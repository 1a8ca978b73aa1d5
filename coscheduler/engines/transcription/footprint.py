"""Predicted device bytes and times of transcription, from shapes alone.

A run goes through phases that give their memory back: detecting speech, text, word times, speakers.
The recording lies in a mapped file, which is none of the device's memory. Within a phase the C heap
keeps freed buffers and uses them again, some of them beside what is live. Loading counts as one
more phase: on the CPU the weights are read as they are stored and then converted.

Sources of the formulas:

    text, encoder   attention scores of a whole batch are one tensor, heads x T x T per window; with
                    it live the stream, the fused projection and its three parts: 7 x T x d
    text, decoder   keys and values of the cross-attention: layers x 2 x T x d per window, with the
                    fused projection of one layer; of self-attention: layers x 2 x L x d per beam
    word times      the first convolution of wav2vec2 has the longest output: samples / 5 x channels
"""

from collections.abc import Iterable
from dataclasses import dataclass

from coscheduler.config import Settings, TranscriptionSettings
from coscheduler.core.model import Line, LineBytes, Lines, RunLine
from coscheduler.engines.transcription.checkpoint import AlignerModel, WhisperModel
from coscheduler.engines.transcription.placement import HELD, Part, Placement

MIB = 1024 * 1024
WINDOW_SECONDS = 30
SAMPLE_RATE_HZ = 16_000
TEXT_TOKENS_MAX = 224  # half of the text positions: the other half is kept for a prompt

PLACED_BYTES_MIN = 64 * 1024
VAD_WEIGHT_BYTES = 6 * MIB  # of the model that whisperx brings
VAD_WORKSPACE_BYTES = {"cpu": 30 * MIB, "cuda": 180 * MIB}  # for one batch of its windows
VAD_BYTES_PER_SECOND = 4 * 1024  # scores, and the frame times of the thresholding
AHEAD_SECONDS_MAX = 3600  # of a recording whose speech is found beside the text of another
VAD_LOAD_BYTES = 34 * MIB  # its checkpoint while it is being read
# Larger buffers are mapped. Where words are timed, long convolutions would leave much to chance.
REUSED_BYTES_MAX, REUSED_BYTES_MAX_OF_WORDS = 32 * MIB, 4 * MIB
# What the heap keeps of the text's activations beside those that are live: streams, as below. For
# the shapes from tiny to small, of one to four windows, 17 to 83 MiB were measured.
KEPT_STREAMS, KEPT_BYTES_MAX = 2, 56 * MIB
HEAP_BYTES = 1 * MIB  # what is too small for mappings of its own, and kernels for new shapes
# Tensors of the size of the first convolution's output, alive at once, in halves.
ALIGNER_HALVES, ALIGNER_HALVES_WITH_LAYER_NORMS = 5, 7
DIARIZER_WORKSPACE_BYTES = {"cpu": 144 * MIB, "cuda": 768 * MIB}  # of speakers.BATCH_SIZE
SMALL_DIARIZER_WORKSPACE_BYTES = 32 * MIB
# Its clustering compares all pairs of stretches, 3 a second at most. This is its share up to an
# hour; after that it grows faster than the recording.
DIARIZER_BYTES_PER_SECOND = 128 * 1024
CONTEXT_BYTES = {"cpu": 192 * MIB, "cuda": 700 * MIB}

LINES = {Part.WHISPER: Line.WEIGHTS, Part.ALIGNERS: Line.ALIGNER, Part.DIARIZER: Line.DIARIZER}
TIERS = {"float32": 0, "float16": 0, "int8": 1, "int8_float16": 1}


@dataclass(frozen=True)
class Models:
    """The model folders of a config, by their headers."""

    whisper: WhisperModel
    aligners: tuple[AlignerModel, ...]
    diarizer_bytes: int  # 0 without one
    has_small_diarizer: bool = False  # `voices.VoiceClustering`, which has no network

    @property
    def parts(self) -> frozenset[Part]:
        """What is worth being placed: the rest always stays."""
        sizes = {part: part_bytes(self, part, "int8") for part in Part}
        return frozenset(part for part, size in sizes.items() if size >= PLACED_BYTES_MIN)


def compute_types(settings: Settings, transcription: TranscriptionSettings) -> tuple[str, ...]:
    """The configured types in order, as the device can compute them.

    CTranslate2 has no half precision on the CPU: float16 is carried out as float32 there.
    """
    if settings.device.device == "cuda":
        return tuple(dict.fromkeys(transcription.compute_types))
    return tuple(
        dict.fromkeys("int8" if kind.startswith("int8") else "float32"
                      for kind in transcription.compute_types)
    )  # fmt: skip


def weight_bytes(model: WhisperModel, compute_type: str) -> int:
    """Whisper's weights in memory, bytes. Convolutions and positions are never integers."""
    float_bytes = activation_bytes(compute_type)
    if not compute_type.startswith("int8"):
        return float_bytes * (model.matrix_count + model.other_count)
    return model.matrix_count + 4 * model.matrix_row_count + float_bytes * model.other_count


def activation_bytes(compute_type: str) -> int:
    """Bytes of one activation."""
    return 2 if compute_type.endswith("float16") else 4


def part_bytes(models: Models, part: Part, compute_type: str) -> int:
    """The weights of a part; of all aligners."""
    if part is Part.WHISPER:
        return weight_bytes(models.whisper, compute_type)
    if part is Part.ALIGNERS:
        return sum(aligner.parameter_bytes for aligner in models.aligners)
    return models.diarizer_bytes


def resident(models: Models, compute_type: str, placement: Placement = HELD) -> Lines:
    """What is held from load to unload; the rest comes and goes within a run."""
    held = {Line.WEIGHTS: VAD_WEIGHT_BYTES}
    for part, line in LINES.items():
        if placement.holds(part):
            held[line] = held.get(line, 0) + part_bytes(models, part, compute_type)
    return tuple(LineBytes(line, size) for line, size in held.items() if size)


def moved_bytes(models: Models, compute_type: str, placement: Placement) -> int:
    """What one run brings to the device: of the aligners one, that of its language."""
    largest = max((aligner.parameter_bytes for aligner in models.aligners), default=0)
    sizes = {part: part_bytes(models, part, compute_type) for part in placement.in_use}
    return sum(largest if part is Part.ALIGNERS else size for part, size in sizes.items())


def window_count(duration_ms: int, batch_size: int) -> int:
    """How many windows a batch may hold: no more than the recording would fill."""
    return max(1, min(batch_size, -(-duration_ms // (1000 * WINDOW_SECONDS))))


@dataclass(frozen=True)
class Place:
    """Where a run takes place. On a card the C heap is not its memory."""

    device: str
    seconds_max: int  # the longest recording that is accepted
    detects_ahead: bool = False

    @property
    def heap_bytes(self) -> int:
        """What the C heap holds beside the tensors."""
        return HEAP_BYTES if self.device == "cpu" else 0


def run_lines(
    models: Models,
    place: Place,
    compute_type: str,
    batch_size: int,
    beam_size: int,
    placement: Placement = HELD,
) -> tuple[RunLine, ...]:
    """The lines of every phase. What is not held is a line of the phase that uses it."""
    lines = [
        RunLine(Line.WORKSPACE, _load_bytes(models, place, compute_type), phase="load"),
        *_speech_phase(place),
        *_text_phase(models.whisper, place, compute_type, batch_size, beam_size),
    ]
    for aligner in dict.fromkeys(models.aligners):
        lines += _words_phase(aligner, place)
        if not placement.holds(Part.ALIGNERS):
            lines.append(RunLine(Line.ALIGNER, aligner.parameter_bytes, phase=_words(aligner)))
    if models.diarizer_bytes:
        lines += _speakers_phase(place, models.has_small_diarizer)
        if not placement.holds(Part.DIARIZER):
            lines.append(RunLine(Line.DIARIZER, models.diarizer_bytes, phase="speakers"))
    if not placement.holds(Part.WHISPER):  # it is parked after it was loaded
        weights = weight_bytes(models.whisper, compute_type)
        lines += [RunLine(Line.WEIGHTS, weights, phase=phase) for phase in ("load", "text")]
    if place.detects_ahead:
        lines += _ahead_lines(place, {line.phase for line in lines} - {"load", "speech"})
    return tuple(lines)


def _ahead_lines(place: Place, phases: Iterable[str]) -> list[RunLine]:
    """Detecting speech in the next recording, beside whatever follows the detection in this one."""
    per_second = VAD_BYTES_PER_SECOND if place.device == "cpu" else 0
    size = VAD_WORKSPACE_BYTES[place.device] + per_second * AHEAD_SECONDS_MAX
    return [RunLine(Line.WORKSPACE, size, phase=phase) for phase in sorted(phases)]


def _load_bytes(models: Models, place: Place, compute_type: str) -> int:
    """What loading takes beside the loaded weights; for a card the host converts them."""
    if place.device != "cpu":
        return 0
    converted = weight_bytes(models.whisper, compute_type)
    return max(VAD_LOAD_BYTES, models.whisper.stored_bytes - converted)


def _speech_phase(place: Place) -> list[RunLine]:
    workspace = VAD_WORKSPACE_BYTES[place.device] + place.heap_bytes
    per_second = VAD_BYTES_PER_SECOND if place.device == "cpu" else 0
    return [
        RunLine(Line.WORKSPACE, workspace, per_second, place.seconds_max, phase="speech"),
    ]


def _text_phase(
    model: WhisperModel, place: Place, compute_type: str, batch_size: int, beam_size: int
) -> list[RunLine]:
    cache = cache_bytes(model, compute_type, beam_size)
    encoder = encoder_bytes(model, compute_type) - cache  # the cache is filled when it is done
    decoder = _decoder_bytes(model, compute_type)
    spectra = 2 * 4 * model.mel_count * 2 * model.audio_position_count  # float32, and a copy
    return [
        _per_window(Line.KV_CACHE, 0, cache, batch_size),
        _per_window(Line.WORKSPACE, place.heap_bytes, max(encoder, decoder) + spectra, batch_size),
        *_kept_lines(model, place, compute_type, batch_size),
    ]


def _kept_lines(
    model: WhisperModel, place: Place, compute_type: str, batch_size: int
) -> list[RunLine]:
    """What the heap keeps while text is made, for as many windows as it keeps anything of."""
    if place.device != "cpu":
        return []
    window = KEPT_STREAMS * stream_bytes(model, compute_type)
    window_count = min(batch_size, max(1, KEPT_BYTES_MAX // window))
    return [_per_window(Line.WORKSPACE, 0, min(window, KEPT_BYTES_MAX), window_count)]


def _per_window(line: Line, fixed_bytes: int, window_bytes: int, batch_size: int) -> RunLine:
    """So many bytes for every window of the batch."""
    return RunLine(
        line,
        fixed_bytes,
        bytes_per_second=-(-window_bytes // WINDOW_SECONDS),
        seconds_max=WINDOW_SECONDS * batch_size,
        seconds_step=WINDOW_SECONDS,
        phase="text",
    )


def _words_phase(aligner: AlignerModel, place: Place) -> list[RunLine]:
    frame_hz = SAMPLE_RATE_HZ // aligner.conv_strides[0]
    halves = ALIGNER_HALVES_WITH_LAYER_NORMS if aligner.has_layer_norms else ALIGNER_HALVES
    per_second = halves * 4 * frame_hz * aligner.conv_dims[0] // 2
    phase = _words(aligner)
    return [RunLine(Line.WORKSPACE, place.heap_bytes, per_second, WINDOW_SECONDS, phase=phase)]


def _words(aligner: AlignerModel) -> str:
    return f"words/{aligner.name}"


def _speakers_phase(place: Place, is_small: bool) -> list[RunLine]:
    workspace = DIARIZER_WORKSPACE_BYTES[place.device]
    if is_small:  # it computes on the host
        workspace = SMALL_DIARIZER_WORKSPACE_BYTES if place.device == "cpu" else 0
    per_second = DIARIZER_BYTES_PER_SECOND if place.device == "cpu" else 0
    return [
        RunLine(
            Line.WORKSPACE, workspace + place.heap_bytes, per_second, place.seconds_max,
            phase="speakers",
        )
    ]  # fmt: skip


def encoder_bytes(model: WhisperModel, compute_type: str) -> int:
    """Peak of the encoder for one window."""
    scores = model.head_count * model.audio_position_count**2
    return activation_bytes(compute_type) * scores + stream_bytes(model, compute_type)


def stream_bytes(model: WhisperModel, compute_type: str) -> int:
    """The encoder's stream for one window, the fused projection and its three parts."""
    return activation_bytes(compute_type) * 7 * model.audio_position_count * model.hidden_dim


def cache_bytes(
    model: WhisperModel, compute_type: str, beam_size: int, token_count: int = TEXT_TOKENS_MAX
) -> int:
    """Keys and values of the decoder for one window, when so many tokens stand in each beam."""
    columns = model.audio_position_count + beam_size * token_count
    per_column = 2 * model.decoder_layer_count * model.hidden_dim
    return columns * per_column * activation_bytes(compute_type)


def prompted_count(
    model: WhisperModel, compute_type: str, beam_size: int, window_count: int
) -> int:
    """How many windows with a prompt take no more than `window_count` without one; at least 1.

    A prompt and hotwords stand in the cache of every beam: with the text up to all the positions.
    """
    encoder, decoder = encoder_bytes(model, compute_type), _decoder_bytes(model, compute_type)
    plain, prompted = (
        max(encoder, decoder + cache_bytes(model, compute_type, beam_size, token_count))
        for token_count in (TEXT_TOKENS_MAX, 2 * TEXT_TOKENS_MAX)
    )
    return max(1, window_count * plain // prompted)


def _decoder_bytes(model: WhisperModel, compute_type: str) -> int:
    return 4 * model.audio_position_count * model.hidden_dim * activation_bytes(compute_type)
