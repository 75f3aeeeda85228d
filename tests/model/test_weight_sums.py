"""The sha256 of weight files, and the tensor at which two models part."""
import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file

from model.files import sha256_of
from model.weight_sums import HEADER, ends_of, weight_sums

TENSORS = {"a": torch.arange(6.0), "b": torch.ones(2, 2).half(), "empty": torch.ones(0), "c": torch.ones(3).bfloat16()}


def bit_flipped(path, place: int):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    other = path.parent / "other" / path.name
    other.parent.mkdir(exist_ok=True)
    other.write_bytes(content)
    return other


@pytest.fixture
def file(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors", {"format": "pt"})
    return tmp_path / "x.safetensors"


def test_the_whole_is_the_sha256_and_a_mark_that_of_all_bytes_so_far(file, tmp_path):
    second = tmp_path / "y.safetensors"
    save_file({"d": torch.ones(2)}, second)
    sums = weight_sums(file, second)
    assert sums.whole == sha256_of(file, second)
    assert [[*marks] for marks in sums.marks.values()] == [[HEADER, "a", "c", "b"], [HEADER, "d"]]
    content = file.read_bytes()
    for name, end in ends_of(file):
        assert sums.marks[file.name][name] == hashlib.sha256(content[:end]).hexdigest()[:16]
    assert sums.marks[second.name]["d"] == sums.whole[:16]


def test_a_flipped_bit_is_found_in_its_tensor_and_in_the_header(file):
    then, begin = weight_sums(file).marks, 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert weight_sums(file).first_difference(then) == ""
    header = json.loads(file.read_bytes()[8:begin])
    for name in ("a", "b", "c"):
        start, end = header[name]["data_offsets"]
        for place in (begin + start, begin + end - 1):
            assert weight_sums(bit_flipped(file, place)).first_difference(then) == f"tensor {name} of x.safetensors"
    for place in (0, 6, 8, 30, begin - 1):  # of the length, of JSON
        assert weight_sums(bit_flipped(file, place)).first_difference(then) == "the header of x.safetensors"


def test_a_file_that_was_cut_off_or_that_is_missing_differs(file, tmp_path):
    sums = weight_sums(file)
    assert weight_sums().first_difference(sums.marks) == "the header of x.safetensors"
    (tmp_path / "other").mkdir()
    cut = tmp_path / "other" / file.name
    cut.write_bytes(file.read_bytes()[:-7])
    assert weight_sums(cut).first_difference(sums.marks) == "tensor b of x.safetensors"
    cut.write_bytes(b"")
    assert weight_sums(cut).whole == hashlib.sha256().hexdigest()


def test_the_tensor_of_a_gguf_file_is_named_too(tmp_path):
    pytest.importorskip("gguf", reason="pip install -r requirements-extra.txt")
    from tests.gguf_files import strong_model, write_gguf
    path = tmp_path / "x.gguf"
    write_gguf(path, strong_model())
    then, places = weight_sums(path).marks, ends_of(path)
    assert weight_sums(path).whole == sha256_of(path) and places[0][0] == HEADER and len(places) > 3
    for name, end in places[1:]:
        found = weight_sums(bit_flipped(path, end - 1)).first_difference(then)
        assert found == f"tensor {name} of x.gguf"
    assert weight_sums(bit_flipped(path, 1)).first_difference(then) == "the header of x.gguf"
