"""--data org/name, without a network: a hub made of local folders."""
import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import errors
from huggingface_hub.utils import filter_repo_objects

import eval as eval_script
import train as train_script
from finetune.run import open_run
from finetune.values import data_place
from tasks import hub_data
from tasks.hub_data import HubData, data_file, pinned_data
from tests.cli import call, few
from tests.model.test_hub import FIRST, SECOND, http

pytestmark = pytest.mark.usefixtures("elsewhere")
ROWS = [{"text": f"where is card {i}?", "category": "card_arrival"} for i in range(40)]


class FakeHub:
    """What list_repo_files and snapshot_download do of data sets, from folders."""

    def __init__(self, folder: Path, cache: Path):
        self.folder, self.cache, self.main, self.asked, self.fails = folder, cache, FIRST, [], None

    def put(self, commit, name, rows):
        path = self.folder / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def names(self, commit):
        return [str(path.relative_to(self.folder / commit)) for path in (self.folder / commit).rglob("*")
                if path.is_file()]

    def list_repo_files(self, repo, repo_type, revision):
        assert repo_type == "dataset"
        self.asked.append(("list", revision))
        if self.fails:
            raise self.fails
        return self.names(revision or self.main)

    def snapshot_download(self, repo, repo_type, revision, allow_patterns):
        assert repo_type == "dataset"
        self.asked.append(("fetch", revision))
        if self.fails:
            raise self.fails
        commit = revision or self.main
        for name in filter_repo_objects(self.names(commit), allow_patterns=allow_patterns):
            (self.cache / commit / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.folder / commit / name, self.cache / commit / name)
        (self.cache / commit).mkdir(parents=True, exist_ok=True)
        return str(self.cache / commit)


@pytest.fixture
def fake(tmp_path_factory, monkeypatch) -> FakeHub:
    fake = FakeHub(tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("cache"))
    fake.put(FIRST, "data/train-0[1].jsonl", ROWS)
    fake.put(FIRST, "data/test.jsonl", ROWS[:6])
    fake.put(FIRST, "README.md", [])
    monkeypatch.setattr("huggingface_hub.list_repo_files", fake.list_repo_files)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fake.snapshot_download)
    hub_data.fetch.cache_clear()
    yield fake
    hub_data.fetch.cache_clear()


@pytest.mark.parametrize("text,place", [
    ("org/name", HubData("org/name")), ("org/name@v1.0", HubData("org/name", "v1.0")),
    ("org/name:a/b.csv", HubData("org/name", None, "a/b.csv")),
    ("org/name@dev/x:a.parquet", HubData("org/name", "dev/x", "a.parquet"))])
def test_a_place_on_the_hub_is_read_and_written_alike(text, place):
    assert data_place(text) == place and str(place) == text


@pytest.mark.parametrize("text", ["a/b/c", "org/name@", "org/name:", "org/name:a.txt", "org/name:../a.csv",
                                  "org/name:/a.csv", "org/na me"])
def test_what_is_neither_a_file_nor_a_place_on_the_hub_is_refused(fake, text):
    said = call(train_script, "--data", text)
    assert f"{text}: no such data file, and no data set of the hub" in said and "\n" not in said and not fake.asked


def test_a_file_here_goes_before_the_hub_and_a_data_files_name_is_never_one_there(fake, tmp_path):
    assert data_place("org/name") == HubData("org/name")
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name").write_text("here")
    assert data_place("org/name") == Path("org/name")
    assert data_place("data/train.jsonl") == Path("data/train.jsonl")
    for text in ("data/train.jsonl", "nowhere"):
        said = call(train_script, "--data", text)
        assert f"{text}: no such data file" in said and "hub" not in said and not fake.asked


def test_the_one_file_called_after_the_split_is_fetched_and_no_other(fake):
    file = data_file(HubData("org/name"), "train")
    assert file == fake.cache / FIRST / "data" / "train-0[1].jsonl" and file.is_file()
    assert [path.name for path in fake.cache.rglob("*") if path.is_file()] == [file.name]
    assert pinned_data(HubData("org/name"), "train") == HubData("org/name", FIRST, "data/train-0[1].jsonl")
    assert data_file(Path("x"), "train") == pinned_data(Path("x"), "train") == Path("x")
    assert data_file(None, "test") is None
    assert fake.asked == [("list", None), ("fetch", None)]  # once in a process


def test_a_path_is_fetched_without_a_look_at_the_list(fake):
    file = data_file(HubData("org/name", FIRST, "data/test.jsonl"), "train")
    assert file.read_text() == (fake.folder / FIRST / "data/test.jsonl").read_text()
    assert fake.asked == [("fetch", FIRST)]
    with pytest.raises(FileNotFoundError, match="org/name:data/no.csv: the data set has no such file at commit"):
        data_file(HubData("org/name", None, "data/no.csv"), "train")


def test_several_or_no_files_of_a_split_are_listed_as_they_would_be_named(fake):
    fake.put(FIRST, "socratic/train.jsonl", ROWS)
    with pytest.raises(ValueError,
                       match=r"org/name@v1: 2 of its 3 readable files are named after the train split; give one of: "
                                         r"org/name@v1:data/train-0\[1\].jsonl, org/name@v1:socratic/train.jsonl$"):
        fake.names = lambda commit: [str(p.relative_to(fake.folder / FIRST)) for p in (fake.folder / FIRST).rglob("*")
                                     if p.is_file()]
        data_file(HubData("org/name", "v1"), "train")
    with pytest.raises(ValueError, match="none of its 3 readable files is named after the validation split; "
                                         "give one of: org/name:data/test.jsonl, "):
        data_file(HubData("org/name"), "validation")


@pytest.mark.parametrize("split,names,found", [
    ("train", ["Bitext_Training_v11.csv", "constrained.csv", "latest.csv"], "Bitext_Training_v11.csv"),
    ("test", ["latest.csv", "x/TEST.parquet"], "x/TEST.parquet"),
    ("validation", ["dev.json", "train.json"], "dev.json"),
    ("validation", ["validation-0.parquet", "device.txt"], "validation-0.parquet")])
def test_a_splits_name_begins_a_word(fake, split, names, found):
    fake.names = lambda commit: names
    assert hub_data.file_of_split(HubData("org/name"), split) == found


def test_a_data_set_without_readable_files_is_named(fake):
    fake.names = lambda commit: ["data.zip", "script.py"]
    with pytest.raises(ValueError, match=r"org/name: the data set has no file that can be read here "
                                         r"\(.jsonl, .json, .csv, .tsv, .parquet\)"):
        data_file(HubData("org/name"), "train")


@pytest.mark.parametrize("error,message", [
    (http(errors.GatedRepoError),
     "org/name is gated: accept its licence at https://huggingface.co/datasets/org/name, then log in"),
    (http(errors.RepositoryNotFoundError), "org/name: neither a file here nor a dataset at https://huggingface.co"),
    (errors.LocalEntryNotFoundError("Got: ConnectError"),
     "org/name is not a file here, .* without network, give a local file"),
    (OSError(28, "No space left"), "No space left")])
def test_what_the_hub_refuses_is_one_line(fake, tmp_path, small_base, error, message):
    fake.fails = error
    said = call(train_script, "--model", small_base, "--data", "org/name", *few("lora"), "--method", "lora")
    assert said and "\n" not in said
    pytest.raises(FileNotFoundError, data_file, HubData("org/name"), "train").match(message)
    assert not list(tmp_path.iterdir())


def test_a_run_remembers_commit_and_file_and_is_scored_on_them(fake, tmp_path, small_base):
    assert call(train_script, "--method", "lora", "--model", small_base, "--data", "org/name",
                "--test-data", "org/name", *few("lora"), "--out", "x") is None
    saved = json.loads((tmp_path / "x" / "config.json").read_text())["config"]["data"]
    assert saved["data"] == f"org/name@{FIRST}:data/train-0[1].jsonl"
    assert saved["test_data"] == f"org/name@{FIRST}:data/test.jsonl"
    assert open_run(tmp_path / "x").config.data.data == HubData("org/name", FIRST, "data/train-0[1].jsonl")
    fake.put(SECOND, "data/train-0[1].jsonl", ROWS[::-1])  # main moves
    fake.main, fake.asked = SECOND, []
    shutil.rmtree(fake.cache)
    hub_data.fetch.cache_clear()
    assert call(eval_script, "x") is None
    assert fake.asked == [("fetch", FIRST), ("fetch", FIRST)]


def test_a_run_on_local_files_reads_them_back_as_paths(tmp_path, small_base, fake):
    fake.put("here", "rows.jsonl", ROWS)
    (tmp_path / "rows.jsonl").write_text((fake.folder / "here" / "rows.jsonl").read_text())
    assert call(train_script, "--method", "lora", "--model", small_base, "--data", "rows.jsonl", *few("lora"),
                "--out", "x") is None
    assert open_run(tmp_path / "x").config.data.data == tmp_path / "rows.jsonl" and not fake.asked
