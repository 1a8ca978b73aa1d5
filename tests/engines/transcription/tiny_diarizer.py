"""A pyannote diarization folder with random weights, in the layout of the published pipelines.

Its segmentation hears one speaker all the time. Imports pyannote: only for child processes.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from pyannote.audio.core.task import Problem, Resolution, Specifications
from pyannote.audio.models.embedding import WeSpeakerResNet34
from pyannote.audio.models.segmentation import PyanNet

EMBEDDING_DIM, PLDA_DIM = 256, 128
PIPELINE = {
    "version": "4.0.0",
    "pipeline": {
        "name": "pyannote.audio.pipelines.SpeakerDiarization",
        "params": {
            "clustering": "VBxClustering",
            "segmentation": "$model/segmentation",
            "segmentation_batch_size": 32,
            "embedding": "$model/embedding",
            "embedding_batch_size": 32,
            "embedding_exclude_overlap": True,
            "plda": "$model/plda",
        },
    },
    "params": {
        "clustering": {"threshold": 0.6, "Fa": 0.07, "Fb": 0.8},
        "segmentation": {"min_duration_off": 0.0},
    },
}


def write(folder: Path) -> None:
    torch.manual_seed(0)
    for part in ("segmentation", "embedding", "plda"):
        (folder / part).mkdir(parents=True)
    _save(_segmentation(), folder / "segmentation")
    embedding = WeSpeakerResNet34()
    embedding.specifications = Specifications(
        problem=Problem.REPRESENTATION, resolution=Resolution.CHUNK, duration=5.0
    )
    _save(embedding, folder / "embedding")
    rng = np.random.default_rng(0)
    np.savez(
        folder / "plda" / "xvec_transform.npz",
        mean1=np.zeros(EMBEDDING_DIM),
        mean2=np.zeros(PLDA_DIM),
        lda=rng.standard_normal((EMBEDDING_DIM, PLDA_DIM)),
    )
    np.savez(
        folder / "plda" / "plda.npz",
        mu=np.zeros(PLDA_DIM),
        tr=np.eye(PLDA_DIM),
        psi=np.linspace(2.0, 1.0, PLDA_DIM),
    )
    (folder / "config.yaml").write_text(yaml.safe_dump(PIPELINE), encoding="utf-8")


def _segmentation() -> Any:
    model = PyanNet(lstm={"hidden_size": 16, "num_layers": 1}, linear={"num_layers": 0})
    model.specifications = Specifications(
        problem=Problem.MONO_LABEL_CLASSIFICATION,
        resolution=Resolution.FRAME,
        duration=10.0,
        classes=["a", "b", "c"],
        powerset_max_classes=2,
        permutation_invariant=True,
    )
    model.build()  # type: ignore[no-untyped-call]
    torch.nn.init.zeros_(model.classifier.bias)
    with torch.no_grad():
        model.classifier.bias[1] = 10.0  # of the powerset: nobody, a, b, c, a and b, ...
    return model


def _save(model: Any, folder: Path) -> None:
    checkpoint = {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "pytorch-lightning_version": "2.6.0",
    }
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, folder / "pytorch_model.bin")
