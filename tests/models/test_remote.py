"""Fetching from a hub: the real client against a small server that speaks its protocol."""

from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from coscheduler.core.model import EngineName
from coscheduler.errors import EngineFault
from coscheduler.models import local, needs, remote
from coscheduler.models.needs import Need
from tests.hub_server import COMMIT, Hub, serving

NEED = Need(EngineName.SEPARATION, "model", "hub:someone/sam", needs.SAM_AUDIO)
WEIGHTS = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with serving() as hub:
        hub.repositories["someone/sam"] = {
            "config.json": b"{}", "checkpoint.pt": WEIGHTS, "unread.bin": b"x" * 1000,
            "README.md": b"---\nlicense: other\nlicense_name: sam\n---\n",
        }  # fmt: skip
        hub.card = {"license": "other", "license_name": "sam"}
        yield hub


def pull(server: Hub, cache: Path, need: Need = NEED, token: str | None = None) -> list[str]:
    told: list[str] = []
    remote.pull(
        need,
        lambda number, count, name, size: told.append(f"{number}/{count} {name} {size}"),
        cache_dir=cache, endpoint=server.endpoint, token=token,
    )  # fmt: skip
    return told


def fault(server: Hub, cache: Path, need: Need = NEED) -> EngineFault:
    with pytest.raises(EngineFault) as caught:
        pull(server, cache, need)
    return caught.value


def test_size_licence_and_gating_are_asked_for(server: Hub) -> None:
    server.gated.add("someone/sam")
    assert NEED.repository is not None
    offered = remote.ask(NEED.repository, server.endpoint)
    assert offered.commit == COMMIT
    assert (offered.licence, offered.gating) == ("sam", "manual")
    assert offered.files["checkpoint.pt"] == len(WEIGHTS)


def test_what_is_read_is_fetched_once_and_found_again(server: Hub, tmp_path: Path) -> None:
    assert pull(server, tmp_path) == [
        "1/3 config.json 2", f"2/3 checkpoint.pt {len(WEIGHTS)}", "3/3 README.md 41"
    ]  # fmt: skip
    found = local.look(NEED, tmp_path)
    assert found.is_complete and found.licence == "sam"
    assert found.size_bytes == 2 + len(WEIGHTS) + 41
    assert found.folder is not None and (found.folder / "checkpoint.pt").read_bytes() == WEIGHTS
    server.asked.clear()
    pull(server, tmp_path)
    assert [
        path for command, path, _ in server.asked if "resolve" in path and command == "GET"
    ] == []


def test_files_in_folders_keep_their_places(server: Hub, tmp_path: Path) -> None:
    server.repositories["p"] = {"config.yaml": b"a: 1", "plda/plda.npz": b"12", "x.txt": b""}
    need = Need(EngineName.TRANSCRIPTION, "diarizer", "hub:p", needs.DIARIZER, ("*/*",))
    pull(server, tmp_path, need)
    folder = local.look(need, tmp_path).folder
    assert folder is not None
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.relative_to(folder).as_posix() for path in files} == {
        "config.yaml", "plda/plda.npz"
    }  # fmt: skip


def test_a_broken_download_goes_on_where_it_ended(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 64 * 1024)
    server.breaking.add("checkpoint.pt")
    assert fault(server, tmp_path).reason == "HUB_UNREACHABLE"
    pull(server, tmp_path)
    assert server.ranges == [f"bytes={len(WEIGHTS) // 2}-"]
    found = local.look(NEED, tmp_path)
    assert found.folder is not None and (found.folder / "checkpoint.pt").read_bytes() == WEIGHTS


def test_a_wrong_checksum_is_found(server: Hub, tmp_path: Path) -> None:
    server.wrong_etags = True
    assert fault(server, tmp_path).reason == "MODEL_CORRUPT"
    assert not local.look(NEED, tmp_path).is_complete


def test_a_gated_repository_says_what_to_do_and_takes_a_token(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.gated.add("someone/sam")
    refused = fault(server, tmp_path)
    assert refused.reason == "MODEL_GATED" and "HF_TOKEN" in refused.message
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    pull(server, tmp_path)
    assert local.look(NEED, tmp_path).is_complete


def test_a_repository_of_another_kind_is_refused_before_anything_is_fetched(
    server: Hub, tmp_path: Path
) -> None:
    del server.repositories["someone/sam"]["checkpoint.pt"]
    refused = fault(server, tmp_path)
    assert refused.reason == "MODEL_MISSING" and "no checkpoint.pt" in refused.message
    assert not any("resolve" in path for _, path, _ in server.asked)


def test_a_full_disk_is_known_before_anything_is_fetched(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(100, 0, 1000))
    full = fault(server, tmp_path)
    assert full.reason == "DISK_FULL"
    assert int(full.numbers["required_bytes"]) == len(WEIGHTS) + 2 + 41
    assert full.numbers["available_bytes"] == "1000"


def test_who_is_not_there_or_not_asked(server: Hub, tmp_path: Path) -> None:
    nobody = Need(EngineName.SEPARATION, "model", "hub:no/body", needs.SAM_AUDIO)
    assert fault(server, tmp_path, nobody).reason == "MODEL_MISSING"
    plain = Need(EngineName.SEPARATION, "model", "/models/sam", needs.SAM_AUDIO)
    assert "put the files there" in fault(server, tmp_path, plain).message
    server.endpoint = "http://127.0.0.1:9"
    assert fault(server, tmp_path).reason == "HUB_UNREACHABLE"
