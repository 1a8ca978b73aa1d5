"""The protos keep their promises to readers, and the generated code is theirs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet, SourceCodeInfo

ROOT = Path(__file__).resolve().parent.parent.parent
PROTOS = sorted((ROOT / "protos" / "coscheduler" / "v1").glob("*.proto"))
SCRIPT = ROOT / "scripts" / "protos"


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> FileDescriptorSet:
    """Every proto file with its comments."""
    target = tmp_path_factory.mktemp("protos") / "set"
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={ROOT / 'protos'}",
         "--include_source_info", f"--descriptor_set_out={target}", *map(str, PROTOS)],
        check=True,
    )  # fmt: skip
    return FileDescriptorSet.FromString(target.read_bytes())


def is_declaration(location: SourceCodeInfo.Location) -> bool:
    """Whether it is a message, field, enum, value, service or rpc; paths are (kind, index)..."""
    kinds = tuple(location.path[::2])
    return len(location.path) % 2 == 0 and kinds in {
        (4,), (4, 2), (4, 4), (4, 4, 2), (5,), (5, 2), (6,), (6, 2),
    }  # fmt: skip


def test_every_declaration_has_a_comment(described: FileDescriptorSet) -> None:
    bare = [
        f"{file.name}:{location.span[0] + 1}"
        for file in described.file
        for location in file.source_code_info.location
        if is_declaration(location) and not location.leading_comments.strip()
    ]
    assert not bare
    assert sum(is_declaration(one) for one in described.file[0].source_code_info.location) > 20


def test_integers_end_in_their_unit(described: FileDescriptorSet) -> None:
    units = ("_bytes", "_ms", "_hz", "_count")
    plain = {
        "seed",
        "page_size",
        "pid",
        "stage_index",
        "quality_tier",
        "quality_min",
        "suppress_tokens",
    }  # no unit, by their nature
    odd = [
        f"{message.name}.{field.name}"
        for file in described.file
        for message in file.message_type
        for field in message.field
        if field.type in (field.TYPE_INT32, field.TYPE_INT64)
        and field.name not in plain
        and not field.name.endswith(units)
    ]
    assert not odd


def test_generated_code_is_up_to_date() -> None:
    done = subprocess.run([SCRIPT, "--check"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_check_finds_stale_missing_and_left_over_code_and_changes_nothing(tmp_path: Path) -> None:
    for folder in ("protos", "coscheduler/v1", "scripts"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignore)
    generated = tmp_path / "coscheduler" / "v1"
    (generated / "gpu_pb2.py").unlink()
    (generated / "old_pb2.py").write_text("")
    (generated / "job_pb2.pyi").write_text("changed")
    command = [sys.executable, str(tmp_path / "scripts" / "protos")]
    checked = subprocess.run([*command, "--check"], capture_output=True, text=True)
    assert checked.returncode == 1
    names = ("gpu_pb2.py", "job_pb2.pyi", "old_pb2.py")
    assert checked.stdout.splitlines() == [f"stale: coscheduler/v1/{name}" for name in names]
    assert (generated / "job_pb2.pyi").read_text() == "changed"

    subprocess.run(command, check=True, capture_output=True)
    assert subprocess.run([*command, "--check"], check=False).returncode == 0
