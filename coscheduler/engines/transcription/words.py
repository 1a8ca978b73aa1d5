"""Word times: a wav2vec2 aligner by language, loaded while in use, and `whisperx.align`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coscheduler.engines.transcription import checkpoint
from coscheduler.engines.transcription.libraries import module

# A sentence splitter without parameters: no known abbreviations, so sentences end at full stops.
_PUNKT_FILES = ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt")

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Aligner:
    """A loaded aligner: the model and what `whisperx.align` wants to know of it."""

    model: Any
    metadata: Mapping[str, Any]
    device: str

    def align(
        self,
        segment: dict[str, Any],
        samples: Samples,
        interpolate_method: str = "nearest",
        char_alignments: bool = False,
    ) -> list[dict[str, Any]]:
        """Split one segment of text into sentences with the times of their words.

        `samples` is the whole recording, float32 [N] at 16 kHz.
        """
        aligned = module("whisperx.alignment").align(
            [segment],
            self.model,
            self.metadata,
            samples,
            self.device,
            interpolate_method=interpolate_method,
            return_char_alignments=char_alignments,
        )
        found: list[dict[str, Any]] = aligned["segments"]
        return found


def load_aligner(language: str, folder: Path, device: str, punkt_dir: Path) -> Aligner:
    """Load the wav2vec2 folder onto `device`. Raises EngineFault MODEL_MISSING or MODEL_CORRUPT."""
    checkpoint.read_aligner(folder)
    _provide_punkt(language, punkt_dir)
    torch = module("torch")
    try:
        model, metadata = module("whisperx.alignment").load_align_model(
            language, device, model_name=str(folder), model_cache_only=True
        )
    except ValueError as error:
        raise checkpoint.corrupt(folder, str(error)) from None
    if device == "cpu":
        with torch.no_grad():
            for parameter in model.parameters():  # mapped from the file until now: not counted
                parameter.data = parameter.data.clone()
    return Aligner(model.eval(), metadata, device)


class InRam:
    """Moves an aligner between RAM and its device. The copy in RAM, made when it first leaves, is
    kept: leaving again copies nothing.
    """

    def __init__(self) -> None:
        self._copies: list[Any] = []

    def __call__(self, aligner: Aligner, is_coming: bool) -> None:
        """Bring it to its device, or let only the copies stay."""
        tensors = [*aligner.model.parameters(), *aligner.model.buffers()]
        self._copies = self._copies or [tensor.data.cpu() for tensor in tensors]
        for tensor, copy in zip(tensors, self._copies, strict=True):
            tensor.data = copy.to(aligner.device) if is_coming else copy


def _provide_punkt(language: str, folder: Path) -> None:
    """NLTK would download its sentence splitter; where there is none, give it an untrained one."""
    names = module("whisperx.utils").PUNKT_LANGUAGES
    name = names.get(language, "english")
    data = module("nltk.data")
    try:
        data.find(f"tokenizers/punkt_tab/{name}/")
    except LookupError:
        target = folder / "tokenizers" / "punkt_tab" / name
        target.mkdir(parents=True, exist_ok=True)
        for file in _PUNKT_FILES:
            (target / file).touch()
        if str(folder) not in data.path:
            data.path.append(str(folder))
