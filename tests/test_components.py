"""What is absent skips its test with a reason on a user's machine, and fails it where it was required."""

from __future__ import annotations

import pytest

from tests.components import missing, need


@pytest.mark.parametrize("required", ["", "other", "goldenx"])
def test_an_absent_component_skips_with_its_reason(monkeypatch: pytest.MonkeyPatch, required: str) -> None:
    monkeypatch.setenv("BODY_BROKER_REQUIRE", required)
    with pytest.raises(pytest.skip.Exception, match="golden: it is not here"):
        missing("golden", "it is not here")


@pytest.mark.parametrize("required", ["golden", "other, golden", "all"])
def test_a_required_component_that_is_absent_fails(monkeypatch: pytest.MonkeyPatch, required: str) -> None:
    monkeypatch.setenv("BODY_BROKER_REQUIRE", required)
    with pytest.raises(pytest.fail.Exception, match="golden is required here: it is not here"):
        missing("golden", "it is not here")


def test_a_component_that_nobody_knows_fails_instead_of_skipping() -> None:
    with pytest.raises(pytest.fail.Exception, match="dta is no component"):
        need("dta")


def test_absent_test_data_is_found_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BODY_BROKER_TEST_DATA", "/nowhere/at/all")
    monkeypatch.setenv("BODY_BROKER_REQUIRE", "data")
    with pytest.raises(pytest.fail.Exception, match="data is required here"):
        need("data")
