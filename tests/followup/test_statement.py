import pytest

from cmb_jax.followup.compare import count_class, statement
from cmb_jax.report.comparison_content import Change
from tests.followup.conftest import row_at


def changes(**counts):
    found = []
    for status, count in counts.items():
        for _ in range(count):
            row = row_at(len(found) + 1, (0, 0, 0), category="possible" if len(found) % 2 else "definite")
            found.append(
                Change(
                    id=row.id,
                    status=status,
                    reason="",
                    baseline=None if status == "new" else row,
                    followup=None if status == "resolved" else row,
                    baseline_mm=None,
                    followup_mm=None,
                    distance_mm=None,
                )
            )
    return found


@pytest.mark.parametrize(
    ("new", "name"),
    [
        (0, "none"),
        (1, "mild"),
        (4, "mild"),
        (5, "moderate"),
        (9, "moderate"),
        (10, "severe"),
        (300, "severe"),
    ],
)
def test_classes(new, name):
    assert count_class(new).startswith(name)


def test_stable_and_resolved_lesions_do_not_count():
    text = " ".join(statement(changes(new=4, resolved=3, stable=20), True))
    assert "4 new, 3 no longer seen, 20 stable, 0 uncertain" in text
    assert "mild (1-4), from 4 new microbleeds (2 definite, 2 possible)" in text
    assert "siderosis is not assessed" in text
    assert "Not a diagnosis" in text


def test_uncertain_ones_give_a_second_class():
    text = " ".join(statement(changes(new=4, uncertain=6), True))
    assert "mild" in text
    assert "6 more at follow-up are uncertain; were all new, the class would be severe" in text


def test_no_class_without_registration_and_a_sentence_without_lesions():
    text = " ".join(statement(changes(uncertain=12), False))
    assert "no class is given" in text
    assert "class:" not in text
    text = " ".join(statement((), True))
    assert "Neither scan has a reported microbleed" in text
    assert "ARIA-H count class: none" in text
