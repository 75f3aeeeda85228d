"""States: a key for files and commands, a title for people."""
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scoring.predictions import split_spec
from scoring.state import BASE, QUANTIZED, TRAINED, State, merged_state, older_key

HALF = torch.float16


@pytest.mark.parametrize("state,key,title", [
    (BASE, "base", "base"), (QUANTIZED, "quantized", "quantized base"), (TRAINED, "trained", "as trained"),
    (merged_state([4], HALF), "merged-4bit", "merged, 4 bits"),
    (merged_state([], HALF), "merged-16bit", "merged, 16 bits (float16)"),
    (merged_state([], torch.bfloat16), "merged-16bit", "merged, 16 bits (bfloat16)"),
    (merged_state([4, 8], HALF), "merged-8bit", "merged, 8 bits (layers of 4 and 8 bits)"),
    (State("requantized", 4, "gptq:minmax@32x1", "lossy"), "requantized-4bit-gptq-minmax-32x1",
     "requantized, 4 bits (gptq:minmax@32x1, lossy)"),
    (State("restored", 8), "restored-8bit", "restored, 8 bits"),
    (State("restored", 8, merged=True), "restored-8bit-merged", "restored, 8 bits (merged)"),
    (State("restored", 16, note="float16", merged=True), "restored-16bit-merged",
     "restored, 16 bits (merged, float16)"),
    (State("restored", 3, "icq@16x1+double-quant", "below the 4 it was trained on"),
     "restored-3bit-icq-16x1-double-quant",
     "restored, 3 bits (icq@16x1+double-quant, below the 4 it was trained on)"),
    (State("quantized", 4, "nf@64x1, attention only"), "quantized-4bit-nf-64x1-attention-only",
     "quantized base, 4 bits (nf@64x1, attention only)")])
def test_a_state_has_a_key_for_files_and_a_title_for_people(state, key, title):
    assert (state.key, state.title) == (key, title)


@given(st.sampled_from(["base", "merged", "restored"]), st.sampled_from([None, 2, 16]), st.text(max_size=12), st.text())
def test_a_key_is_one_word_of_a_command_line_and_of_a_file_name_and_no_note_changes_it(kind, bits, how, note):
    state = State(kind, bits, how, note)
    assert re.fullmatch(r"[\w.-]+", state.key) and not state.key.endswith("-")
    assert state.key == State(kind, bits, how).key
    assert split_spec(f"runs/x:{state.key}")[1] == state.key


@pytest.mark.parametrize("title,key", [
    ("base", "base"), ("quantized base", "quantized"), ("as trained", "trained"),
    ("merged, 4 bits", "merged-4bit"), ("merged, 4/8 bits", "merged-8bit"),
    ("merged, 16 bits (float16)", "merged-16bit"),
    ("requantized, 4 bits, gptq on minmax (lossy)", "requantized-4bit-gptq-minmax"),
    ("restored, 8 bits", "restored-8bit"), ("restored, 8 bits, merged, 8 bits", "restored-8bit-merged"),
    ("restored, 4 bits (the width it was trained on)", "restored-4bit"),
    ("restored, 3 bits (gptq on minmax 32x1, below the 4 it was trained on)", "restored-3bit-gptq-minmax-32x1"),
    ("nf 64x1, 3 bits", "quantized-3bit-nf-64x1"),
    ("gptq on minmax 32x1, 4 bits, act-order", "quantized-4bit-gptq-minmax-32x1-act-order"),
    ("merged-4bit", "merged-4bit"), ("something else", "something else")])
def test_titles_that_older_files_kept_are_read_as_keys(title, key):
    assert older_key(title) == key
