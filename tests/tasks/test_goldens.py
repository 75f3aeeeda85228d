"""Numbers in tables that a slip would change by a little: MMLU's categories and shots, ROUGE without stemming."""
import json

import pytest

from tasks.free_text import rouge
from tasks.mmlu import CATEGORY_OF, SHOTS, Mmlu

# Of each discipline of Hendrycks et al. at least one subject, and those whose name misleads.
KNOWN = {
    "STEM": "abstract_algebra anatomy astronomy college_biology college_chemistry college_computer_science "
            "computer_security conceptual_physics electrical_engineering high_school_statistics machine_learning",
    "humanities": "formal_logic high_school_european_history international_law jurisprudence logical_fallacies "
                  "moral_scenarios philosophy prehistory professional_law world_religions",
    "social": "econometrics high_school_geography high_school_psychology human_sexuality professional_psychology "
              "public_relations security_studies sociology us_foreign_policy",
    "other": "business_ethics clinical_knowledge global_facts management marketing miscellaneous nutrition "
             "professional_accounting professional_medicine virology"}


@pytest.mark.parametrize("category", KNOWN)
def test_subjects_are_in_their_category(category):
    assert {CATEGORY_OF[subject] for subject in KNOWN[category].split()} == {category}


def test_a_category_is_scored_by_its_own_subjects():
    """One right answer in law alone: humanities 1, STEM 0."""
    task = Mmlu()
    questions = [task.question({"question": "q", "choices": list("wxyz"), "answer": 0, "subject": subject})
                 for subject in ("professional_law", "anatomy")]
    lines = [{"log_likelihoods": values} for values in ([0.0, -1.0, -1.0, -1.0], [-1.0, 0.0, -1.0, -1.0])]
    scores, _ = task.scores(questions, lines)
    assert (scores["humanities"], scores["STEM"], scores["acc"]) == (1.0, 0.0, 0.5)


def test_shots_are_the_first_five_of_the_subject_in_the_files_order(tmp_path):
    rows = [{"question": f"question {i}", "choices": list("wxyz"), "answer": i % 4, "subject": subject}
            for i in range(7) for subject in ("virology", "anatomy")]
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "test.jsonl").write_text(json.dumps({**rows[0], "question": "asked"}) + "\n")
    question, = Mmlu().splits(tmp_path / "dev.jsonl", tmp_path / "test.jsonl", None, 0).test
    introduction, *shots = question.shots
    assert "about virology" in introduction and len(shots) == SHOTS == 5
    assert [shot.partition("\n")[0] for shot in shots] == [f"question {i}" for i in range(5)]
    assert [shot.rstrip()[-1] for shot in shots] == list("ABCDA")


def test_rouge_does_not_stem():
    pytest.importorskip("rouge_score")
    assert rouge("the cards were running", "the card was run")["rouge1"] == pytest.approx(0.25)
