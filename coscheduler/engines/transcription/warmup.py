"""Use every library once, so that what they set up at their first use belongs to the context.

The demonstration's tiny models are complete in their formats and take a moment to write and to run.
"""

import tempfile
from pathlib import Path

import numpy as np

from coscheduler.demo import tiny_aligner, tiny_whisper
from coscheduler.engines.transcription import silero, speech, words
from coscheduler.engines.transcription.libraries import module
from coscheduler.engines.transcription.speech import SAMPLE_RATE_HZ

_PROMPT = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
_NOISE_SECONDS = 30


def warm_up(device: str, thread_count: int, punkt_dir: Path) -> None:
    """Detect, transcribe and align noise with models that are gone afterwards."""
    noise = np.random.default_rng(0).standard_normal(_NOISE_SECONDS * SAMPLE_RATE_HZ)
    samples = (0.1 * noise).astype(np.float32)
    _speech(device, samples)
    with tempfile.TemporaryDirectory() as scratch:
        _text(Path(scratch) / "whisper", device, thread_count, samples)
        _words(Path(scratch) / "aligner", device, punkt_dir, samples)


def _speech(device: str, samples: words.Samples) -> None:
    torch = module("torch")
    vad = module("whisperx.vads").Pyannote(torch.device(device), vad_onset=0.5, vad_offset=0.5)
    inference = vad.vad_pipeline._segmentation
    size = inference.model.audio.get_num_samples(inference.duration)
    inference.infer(torch.from_numpy(samples[: 2 * size]).view(2, 1, size))
    for _ in silero.chunks(samples, speech.Thresholds(0.5, 0.5, 30.0)):  # it stays, 1 MB
        pass


def _text(folder: Path, device: str, thread_count: int, samples: words.Samples) -> None:
    tiny_whisper.write(folder)
    kind, _, index = device.partition(":")
    whisper = module("whisperx.asr").WhisperModel(
        str(folder), device=kind, device_index=int(index or 0), cpu_threads=thread_count
    )
    mel = module("whisperx.audio").log_mel_spectrogram(samples, tiny_whisper.MEL_COUNT)
    prompt = [whisper.hf_tokenizer.token_to_id(token) for token in _PROMPT]
    whisper.model.generate(whisper.encode(mel), [prompt])


def _words(folder: Path, device: str, punkt_dir: Path, samples: words.Samples) -> None:
    tiny_aligner.write(folder)
    aligner = words.load_aligner("en", folder, device, punkt_dir)
    segment = {"text": " good morning", "start": 0.0, "end": float(_NOISE_SECONDS)}
    aligner.align(segment, samples)
