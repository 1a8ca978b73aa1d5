"""What a config needs, and what is there of it."""

from pathlib import Path

import pytest

from coscheduler import config
from coscheduler.config import Settings
from coscheduler.core.model import EngineName
from coscheduler.models import local, needs
from coscheduler.models.needs import Need


def settings(base: Path, **sections: object) -> Settings:
    return config.parse(dict(sections), base)


def roles(found: tuple[Need, ...]) -> list[str]:
    return [f"{need.engine}/{need.role}" for need in found]


def test_every_model_of_every_engine_is_listed(tmp_path: Path) -> None:
    found = needs.of(
        settings(
            tmp_path,
            separation={"model": "auto", "models": ["sam", "hub:a/sam"], "text_encoder": "t5"},
            transcription={"model": "w", "aligners": {"en": "e", "de": "hub:d"}, "diarizer": "p"},
            analysis={"model": "hub:a/b/c.gguf@v1"},
        )
    )
    assert roles(found) == [
        "separation/model", "separation/model", "separation/text encoder", "transcription/model",
        "transcription/aligner en", "transcription/aligner de", "transcription/diarizer",
        "analysis/model",
    ]  # fmt: skip
    assert [need.repository is not None for need in found].count(True) == 3
    assert found[-1].groups == (("c.gguf",),)
    assert needs.of(settings(tmp_path, engines="fake", analysis={"model": "x"})) == ()


def test_a_split_gguf_needs_all_of_its_parts(tmp_path: Path) -> None:
    name = "big-00001-of-00003.gguf"
    (need,) = needs.of(settings(tmp_path, analysis={"model": f"hub:a/b/q4/{name}"}))
    assert [group[0] for group in need.groups] == [
        f"q4/big-0000{n}-of-00003.gguf" for n in (1, 2, 3)
    ]
    (tmp_path / name).write_bytes(b"12345")
    (plain,) = needs.of(settings(tmp_path, analysis={"model": name}))
    found = local.look(plain)
    assert found.size_bytes == 5
    assert found.missing == ("big-00002-of-00003.gguf", "big-00003-of-00003.gguf")


def test_only_what_is_read_is_wanted_of_a_repository() -> None:
    need = Need(EngineName.TRANSCRIPTION, "aligner en", "hub:a", needs.ALIGNER, ("added*",))
    files = [
        "config.json", "flax_model.msgpack", "pytorch_model.bin", "vocab.json", "README.md",
        "preprocessor_config.json", "added_tokens.json", "model.safetensors", ".gitattributes",
    ]  # fmt: skip
    assert set(need.wanted(iter(files))) == {
        "config.json", "preprocessor_config.json", "vocab.json", "model.safetensors",
        "added_tokens.json", "README.md",
    }  # fmt: skip
    assert need.missing(iter(["config.json", "vocab.json", "pytorch_model.bin"])) == (
        "preprocessor_config.json",
    )


def test_a_folder_is_complete_when_each_group_has_a_file(tmp_path: Path) -> None:
    (need,) = needs.of(settings(tmp_path, transcription={"model": "whisper"}))
    assert local.look(need).folder is None
    folder = tmp_path / "whisper"
    folder.mkdir()
    for name in ("config.json", "model.bin", "tokenizer.json"):
        (folder / name).write_bytes(b"x")
    found = local.look(need)
    assert not found.is_complete and found.missing == ("vocabulary.json or vocabulary.txt",)
    (folder / "vocabulary.txt").write_bytes(b"xyz")
    found = local.look(need)
    assert found.is_complete and found.size_bytes == 6


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\n# Model", "mit"),
        ("---\nlicense: other\nlicense_name: sam\n---\n", "sam"),
        ('---\nlicense: "apache-2.0"\n---\n', "apache-2.0"),
        ("---\nlicense: other\n---\n", "other"),
        ("# license: mit\n", ""),
        ("---\ntags: [x]\n---\nlicense: mit\n", ""),
    ],
)
def test_the_licence_is_what_the_front_of_the_card_says(card: str, licence: str) -> None:
    assert local.licence_in(card) == licence
