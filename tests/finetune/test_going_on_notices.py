"""What a run was trained on has changed when it goes on: rows to score, the config of its base."""
from dataclasses import replace
from types import SimpleNamespace

import pytest

from finetune.data import check_data
from finetune.source import Source, check_fingerprint
from model.config_json import config_to_json
from model.files import write_json
from tests.model.test_model import TINY

RECORDED = {"train": "a", "validation": "b", "test": "c"}
OWN = SimpleNamespace(task="t", data="rows.csv", test_data="test.csv")
RUN = SimpleNamespace(config=SimpleNamespace(data=OWN), fingerprints={"data": RECORDED})


def data(named=("rows.csv", "test.csv"), **changed):
    return SimpleNamespace(fingerprints={**RECORDED, **changed}, named=named, task=SimpleNamespace(name="t"))


def test_changed_test_rows_are_said_unless_other_files_are_named(capsys):
    check_data(data(), RUN)
    check_data(data(("rows.csv", "other.csv"), test="d"), RUN)
    assert "test rows" not in "".join(capsys.readouterr())
    check_data(data(test="d"), RUN)
    assert "test rows (test.csv) are no longer those of the run" in "".join(capsys.readouterr())
    with pytest.raises(ValueError, match="train rows are no longer"):
        check_data(data(train="d"), RUN)


def test_another_config_of_the_base_is_another_base(tmp_path, monkeypatch):
    monkeypatch.setattr(Source, "fingerprint", "same")
    then = config_to_json(TINY)
    run = SimpleNamespace(fingerprints={"base": "same"}, saved={"model_config": then}, base_sums_file=tmp_path / "no")
    write_json(tmp_path / "config.json", then)
    check_fingerprint(Source(tmp_path), run)
    write_json(tmp_path / "config.json", config_to_json(replace(TINY, rms_norm_eps=0.05)))
    with pytest.raises(ValueError, match="in its config, rms_norm_eps is 0.05, the run has"):
        check_fingerprint(Source(tmp_path), run)


@pytest.mark.parametrize("base,refused", [((2,), False), ((2, 7), False), ((), False), ((9,), True), ((2, 9), True)])
def test_a_run_may_have_one_more_end_token_than_its_base_but_no_other(tmp_path, monkeypatch, base, refused):
    """The token that ends a turn of a chat template is added to those of the base."""
    monkeypatch.setattr(Source, "fingerprint", "same")
    then = config_to_json(replace(TINY, eos_token_ids=(2, 7)))
    run = SimpleNamespace(fingerprints={"base": "same"}, saved={"model_config": then}, base_sums_file=tmp_path / "no")
    write_json(tmp_path / "config.json", config_to_json(replace(TINY, eos_token_ids=base)))
    if not refused:
        return check_fingerprint(Source(tmp_path), run)
    with pytest.raises(ValueError, match="in its config, eos_token_id is"):
        check_fingerprint(Source(tmp_path), run)
