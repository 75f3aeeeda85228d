"""safetensors files written here are the library's, and carry checksums that name what is damaged."""
import hashlib
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from model import durable
from model.files import Damaged
from model.tensor_files import TYPES, open_safetensors, write_safetensors

TENSORS = {"b": torch.randn(3, 5), "a": torch.arange(7, dtype=torch.uint8), "c.weight": torch.randn(2, 2).bfloat16(),
           "empty": torch.empty(0, 4), "number": torch.tensor(3.0, dtype=torch.float64), "Ä": torch.ones(1).half()}


@pytest.fixture
def file(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", TENSORS, {"quantized": '{"b": {"bits": 4}}'})
    return tmp_path / "x.safetensors"


def without_checksums(content: bytes) -> bytes:
    """The same file with no `sha256` in its metadata."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8:8 + length])
    header["__metadata__"].pop("sha256")
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length:]


@settings(max_examples=25)
@given(tensors=st.dictionaries(st.text("abc.é_9", min_size=1, max_size=6), st.tuples(
    st.sampled_from(list(TYPES)), st.lists(st.integers(0, 3), max_size=3)), min_size=1, max_size=8))
def test_the_bytes_are_those_of_the_library(tmp_path_factory, tensors):
    """Of every type, in the library's order; beside the checksums in the metadata."""
    tensors = {name: torch.randint(0, 2, shape).to(dtype) for name, (dtype, shape) in tensors.items()}
    path = tmp_path_factory.mktemp("bytes") / "x.safetensors"
    write_safetensors(path, tensors)
    assert without_checksums(path.read_bytes()) == save(tensors, {"format": "pt"})
    again = load_file(path)
    assert all(torch.equal(again[name], tensor) and again[name].dtype == tensor.dtype for name, tensor in
               tensors.items())


def test_equal_tensors_give_equal_bytes_with_several_keys_of_metadata(tmp_path):
    """The library shuffles the keys."""
    for name in "abc":
        write_safetensors(tmp_path / name, dict(reversed(TENSORS.items())) if name == "b" else TENSORS,
                          {"x": "1", "y": "2", "z": "3"})
    assert len({(tmp_path / name).read_bytes() for name in "abc"}) == 1


def test_views_and_parameters_are_written_as_they_look(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    tensors = {"t": whole.T, "part": whole[:, 1], "p": torch.nn.Parameter(whole[1:])}
    write_safetensors(tmp_path / "x", tensors)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file(tmp_path / "x").items())


def test_checksums_are_those_of_the_tensors_bytes(file):
    with open_safetensors(file) as opened:
        sums = json.loads(opened.metadata()["sha256"])["tensors"]
    assert set(sums) == set(TENSORS)
    assert sums["b"] == hashlib.sha256(TENSORS["b"].numpy().tobytes()).hexdigest()


def test_every_flipped_bit_is_found_and_one_in_a_tensor_names_it(file):
    """One bit of every third byte of the file."""
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    places = {name: stated["data_offsets"] for name, stated in json.loads(whole[8:8 + length]).items()
              if name != "__metadata__"}
    silent = []
    for i in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[i] ^= 1 << i % 8
        file.write_bytes(damaged)
        try:
            with open_safetensors(file) as opened:
                metadata = opened.metadata()
                opened.check()
                read = {name: opened.get_tensor(name) for name in opened.keys()}
            # what is not found changes nothing: the spaces behind the header, the name of the checksums' own key
            assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())
            assert metadata["quantized"] == '{"b": {"bits": 4}}'
            silent.append(i)
        except Damaged as error:
            assert str(file) in str(error)
            if i >= 8 + length:
                name = next(n for n, (start, end) in places.items() if start <= i - 8 - length < end)
                assert f"tensor {name} is damaged: its sha256 is" in str(error)
    assert len(silent) < 15


def test_every_truncation_is_found(file):
    whole = file.read_bytes()
    for end in (0, 7, 8, 100, len(whole) - 1):
        file.write_bytes(whole[:end])
        with pytest.raises(Damaged, match="x.safetensors: damaged"):
            open_safetensors(file)


def test_a_file_without_checksums_is_read_as_it_is(file):
    file.write_bytes(without_checksums(file.read_bytes()))
    with open_safetensors(file) as opened:
        opened.check()
        assert torch.equal(opened.get_tensor("b"), TENSORS["b"])
        with pytest.raises(Damaged, match="x.safetensors: tensor missing cannot be read"):
            opened.get_tensor("missing")


def test_the_header_is_in_place_before_the_file_gets_its_name(tmp_path, monkeypatch):
    """It is written twice. Whoever is killed in between leaves no file."""
    seen, original = [], durable.rename
    monkeypatch.setattr(durable, "rename", lambda a, b: (seen.append(a.read_bytes()), original(a, b)))
    write_safetensors(tmp_path / "x", TENSORS)
    assert seen == [(tmp_path / "x").read_bytes()] and b'"0000000000' not in seen[0]
