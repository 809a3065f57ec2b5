import json
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from zoo.errors import BundleError, RunError
from zoo.tensor_file import digest_of, read_saved, read_tensors, write_saved, write_tensors

TENSORS = {
    "weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "half": torch.tensor([1.5, -2.5], dtype=torch.bfloat16),
    "scalar": torch.tensor(7, dtype=torch.int64),
    "empty": torch.empty(0, 5),
    "flags": torch.tensor([True, False, True]),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "double": torch.tensor([[0.1]], dtype=torch.float64),
}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and a[name].shape == b[name].shape and torch.equal(a[name], b[name])
        for name in a
    )


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    sha256 = write_tensors(path, TENSORS, {"zoo": "text: ä\n"}, RunError)
    file = read_tensors(path, BundleError)
    assert equal(file.tensors, TENSORS)
    assert file.metadata == {"zoo": "text: ä\n"}
    assert file.sha256 == sha256


def test_the_public_library_reads_our_files(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, TENSORS, {"zoo": "text"}, RunError)
    assert equal(safetensors.torch.load_file(path), TENSORS)
    with safetensors.safe_open(path, framework="pt") as file:
        assert file.metadata() == {"zoo": "text"}


def test_we_read_files_of_the_public_library(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(TENSORS, path, metadata={"format": "pt"})
    assert equal(read_tensors(path, BundleError).tensors, TENSORS)


def test_equal_tensors_give_equal_bytes_in_any_order(tmp_path: Path) -> None:
    one, other = tmp_path / "1", tmp_path / "2"
    write_tensors(one, TENSORS, {"zoo": "x"}, RunError)
    write_tensors(other, dict(reversed(TENSORS.items())), {"zoo": "x"}, RunError)
    assert one.read_bytes() == other.read_bytes()


def test_strided_and_shared_tensors_are_written_as_they_look(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    views = {"same": base, "again": base, "transposed": base.t(), "column": base[:, 1]}
    views["expanded"] = torch.tensor([1.0]).expand(4)
    write_tensors(tmp_path / "a", views, {}, RunError)
    assert equal(
        read_tensors(tmp_path / "a", BundleError).tensors, {name: view.contiguous() for name, view in views.items()}
    )


def test_the_digest_sees_every_change() -> None:
    base = digest_of({"a": torch.zeros(4)}, "text")
    for tensors, text in [
        ({"b": torch.zeros(4)}, "text"),
        ({"a": torch.zeros(2, 2)}, "text"),
        ({"a": torch.zeros(4, dtype=torch.int32)}, "text"),
        ({"a": torch.tensor([0, 0, 0, -0.0])}, "text"),
        ({"a": torch.zeros(4)}, "text "),
    ]:
        assert digest_of(tensors, text) != base


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, TENSORS, {}, RunError)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"a\.safetensors: cannot be written: No space left"):
        write_tensors(path, {"other": torch.zeros(3)}, {}, RunError)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def raw(header: object, data: bytes = b"\0" * 8, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


def test_the_last_of_many_names_standing_twice_is_found_at_once(tmp_path: Path) -> None:
    names = ",".join(f'"{number}": 1' for number in [*range(200_000), 199_999])
    path = tmp_path / "a.safetensors"
    path.write_bytes(raw(f"{{{names}}}".encode()))
    started = time.process_time()
    with pytest.raises(BundleError, match="the key '199999' stands twice"):
        read_tensors(path, BundleError)
    assert time.process_time() - started < 5


HOSTILE = {
    "empty": (b"", "it ends within"),
    "seven_bytes": (b"\0" * 7, "it ends within"),
    "header_length_beyond_the_file": (raw({}, b"", length=1 << 62), "header claims"),
    "pickle": (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00" + b"x" * 40, "header claims"),
    "zip": (b"PK\x03\x04" + b"\0" * 60, "header claims"),
    "header_not_json": (raw(b"not json"), "not JSON"),
    "header_not_utf_8": (raw(b'{"\xff": 1}'), "not UTF-8"),
    "header_a_list": (raw([1]), "expected an object"),
    "header_nested": (raw(b"[" * 50_000), "nested too deeply"),
    "duplicate_name": (raw(b'{"a": %s, "a": %s}' % ((json.dumps(entry()).encode(),) * 2)), "stands twice"),
    "metadata_not_text": (raw({"__metadata__": {"a": 1}, "a": entry()}), "expected a string"),
    "unknown_dtype": (raw({"a": entry(dtype="F8_E4M3")}), "'a' is malformed"),
    "negative_shape": (raw({"a": entry(shape=[-2])}), "'a' is malformed"),
    "shape_with_true": (raw({"a": entry(shape=[True, 2])}), "'a' is malformed"),
    "shape_of_floats": (raw({"a": entry(shape=[2.0])}), "'a' is malformed"),
    "overflowing_shape": (raw({"a": entry(shape=[1 << 33, 1 << 33, 1 << 33])}), "'a' is malformed"),
    "many_dimensions": (raw({"a": entry(shape=[1] * 17 + [2])}), "'a' is malformed"),
    "wrong_size": (raw({"a": entry(shape=[3])}), "'a' is malformed"),
    "offset_past_the_end": (raw({"a": entry(data_offsets=[8, 16])}), "invalid offset for tensor 'a'"),
    "negative_offset": (raw({"a": entry(data_offsets=[-8, 0])}), "'a' is malformed"),
    "overlap": (raw({"a": entry(), "b": entry()}), "invalid offset for tensor 'b'"),
    "gap": (raw({"a": entry(), "b": entry(data_offsets=[12, 20])}, b"\0" * 20), "invalid offset for tensor 'b'"),
    "trailing_byte": (raw({"a": entry()}, b"\0" * 9), "the file has"),
    "one_byte_short": (raw({"a": entry()}, b"\0" * 7), "the file has"),
    "extra_key": (raw({"a": entry(extra=1)}), "'a' is malformed"),
    "missing_key": (raw({"a": {"dtype": "F32", "shape": [2]}}), "'a' is malformed"),
    "entry_a_number": (raw({"a": 1}), "'a' is malformed"),
    "name_with_escapes": (raw({"../../x\0\x1b[31m": entry(shape=[-9])}), r"../../x\x00\x1b[31m"),
    "gap_before_escapes": (raw({"x\x1b[31m": entry(data_offsets=[8, 16])}), r"x\x1b[31m"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused(case: str, tmp_path: Path) -> None:
    content, expected = HOSTILE[case]
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(BundleError) as error:
        read_tensors(path, BundleError)
    assert expected in str(error.value)


def make_folder(path: Path) -> None:
    path.mkdir()


def make_link_to_nothing(path: Path) -> None:
    path.symlink_to("nothing")


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [os.mkfifo, make_folder, make_link_to_nothing, make_loop, make_device])
def test_what_is_no_regular_file_is_refused_at_once(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    make(path)
    with pytest.raises(BundleError, match=r"regular|directory|No such|levels of symbolic"):
        read_tensors(path, BundleError)


def test_a_long_header_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    names = {f"tensor{index}": entry(shape=[0], data_offsets=[0, 0]) for index in range(10_000)}
    path.write_bytes(raw(names, b""))
    with pytest.raises(BundleError, match="at most 1,000 are expected"):
        read_tensors(path, BundleError, max_header_bytes=1000)


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.arange(3.0), "b": torch.zeros(2)}, {"zoo": "x"}, RunError)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(BundleError):
            read_tensors(path, BundleError)


def test_packed_tensors_read_back_and_the_public_library_opens_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    sha256 = write_saved(path, TENSORS, {"b": 0.1, "a": [1]})
    saved = read_saved(path)
    assert equal(saved.tensors, TENSORS)
    assert list(saved.tree.items()) == [("b", 0.1), ("a", [1])]
    assert sha256 == saved.sha256 == path.read_bytes()[-32:].hex()
    assert safetensors.torch.load_file(path)["F32"].tolist() == list(range(12))


def test_every_changed_bit_of_a_packed_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_saved(path, {"a": torch.arange(3.0), "b": torch.ones(2, dtype=torch.int64)}, {"x": 1})
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(RunError):
            read_saved(path)


def test_headers_above_what_the_public_library_reads_are_read_back(tmp_path: Path) -> None:
    # Names as long as this make with few tensors the header of a model of 50,000 layers, of more than 100 MB.
    path = tmp_path / "a.safetensors"
    tensors = {f"{'layers.function' * 1000}.{index}": torch.empty(0) for index in range(7_000)}
    tensors["model/head"] = torch.arange(3.0)
    write_tensors(path, tensors, {}, RunError)
    with pytest.raises(safetensors.SafetensorError):
        safetensors.torch.load_file(path)
    assert equal(read_tensors(path, RunError, max_header_bytes=1 << 28).tensors, tensors)
    write_saved(path, tensors, {})
    assert equal(read_saved(path).tensors, tensors)
