"""Held-out patients follow from their names, and none stands in two splits."""

import pytest

from core.errors import UserError
from core.splits import position, refuse_shared_patients


def test_held_out_patients_are_a_fixed_share_whatever_else_is_there():
    names = [f"train_{i}" for i in range(4000)]
    held_out = {name for name in names if position(name) < 0.15}
    assert 0.13 < len(held_out) / len(names) < 0.17
    assert all(0 <= position(name) < 1 for name in names)
    assert position("train_1") == position("train_1") != position("train_2")


def test_a_shared_patient_is_an_error_that_names_the_cases():
    refuse_shared_patients({"train": {"one": "anna", "two": "anna"}, "valid": {"three": "bea"}})
    with pytest.raises(UserError, match=r"1 patients.*anna.*one in train.*three in valid"):
        refuse_shared_patients({"train": {"one": "anna", "two": "bea"}, "valid": {"three": "anna"}})
