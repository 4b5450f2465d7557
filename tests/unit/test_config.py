"""Every entry point has the same manners: keys, recipes, the summary and the exit code."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from infra import config


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A part."""

    depth: int = 3
    """How deep it goes."""
    in_the_dark: bool = False
    """Whether anybody sees it."""
    names: tuple[str, ...] = ()
    """What it is called."""

    def __post_init__(self) -> None:
        if self.depth < 0:
            raise ValueError(f"depth is {self.depth}: use 0 or more")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job."""

    uri: str
    """Where it goes."""
    rate: float = 0.5
    """How fast."""
    inner: Inner = field(default_factory=Inner)
    """The part."""
    dry_run: bool = False
    """Whether it only says what it would do."""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("uri: from-recipe\nrate: 0.25\ninner:\n  depth: 7\n  names: [a, b]\n")
    return path


def end(argv: list[str], job: Any, capsys: Any, recipe: Path | None = None) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        config.main(job, Job, recipe=recipe, argv=argv)
    out, err = capsys.readouterr()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code, out, err


def test_switches_may_stand_alone_and_be_written_with_dashes() -> None:
    plain = Job(uri="-x")
    for argv, expected in (
        (["--dry-run", "--uri=-x"], replace(plain, dry_run=True)),
        (["--uri=-x", "--dry_run"], replace(plain, dry_run=True)),
        (["--uri=-x", "--dry-run", "false"], plain),
        (["--uri=-x", "--inner.in-the-dark"], replace(plain, inner=Inner(in_the_dark=True))),
    ):
        assert config.parse(Job, argv) == expected


def test_flags_override_the_recipe_and_the_rest_stays(recipe: Path) -> None:
    job = config.parse(Job, ["--inner.depth", "9", "--uri", "x"], recipe=recipe)
    assert job == Job(uri="x", rate=0.25, inner=Inner(depth=9, names=("a", "b")))
    assert isinstance(job.inner, Inner)


def test_a_named_recipe_replaces_the_default_one(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("uri: other\n")
    for argv in (["--config", str(tmp_path / "other.yaml")], [f"--config={tmp_path}/other.yaml"]):
        assert config.parse(Job, argv, recipe=recipe) == Job(uri="other")


@pytest.mark.parametrize("key", ["--nonsense", "--inner.dept", "--conf"])
def test_an_unknown_flag_ends_with_code_2_and_is_named(
    key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        config.parse(Job, ["--uri", "x", key, "1"])
    assert stopped.value.code == 2
    assert key in capsys.readouterr().err.split("error:")[-1]


def test_an_unknown_key_of_a_recipe_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("uri: x\ninner:\n  dept: 1\n")
    with pytest.raises(SystemExit) as stopped:
        config.parse(Job, ["--config", str(path)])
    assert stopped.value.code == 2
    assert "inner.dept" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "says"),
    [([], "uri"), (["--uri", "x", "--rate", "fast"], "rate"), (["--config", "no.yaml"], "no.yaml")],
)
def test_missing_and_wrong_values_are_named(
    argv: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        config.parse(Job, argv)
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err.split("error:")[-1]


def test_help_explains_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        config.parse(Job, ["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for text in ("Where it goes.", "How fast.", "How deep it goes.", "What it is called."):
        assert text in shown


def test_the_summary_is_the_last_line_of_standard_output(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def job(settings: Job) -> dict[str, Any]:
        print("something on the way")
        return {"uri": settings.uri, "b": 1}

    code, out, err = end(["--uri", "x"], job, capsys)
    assert (code, err) == (0, "")
    assert json.loads(out.splitlines()[-1]) == {"uri": "x", "b": 1}


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError, PermissionError, ConnectionError])
def test_what_a_person_can_mend_is_one_sentence_and_code_1(
    error: type[Exception], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SAVE_TRACEBACK", raising=False)

    def job(settings: Job) -> dict[str, Any]:
        raise error(f"{settings.uri} is wrong:\n   mend it")

    code, out, err = end(["--uri", "x"], job, capsys)
    assert (code, out, err) == (1, "", "error: x is wrong: mend it\n")
    monkeypatch.setenv("SAVE_TRACEBACK", "1")
    with pytest.raises(error):
        config.main(job, Job, argv=["--uri", "x"])


def test_who_is_interrupted_is_told_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    def job(settings: Job) -> dict[str, Any]:
        raise KeyboardInterrupt

    code, out, err = end(["--uri", "x"], job, capsys)
    assert (code, out) == (130, "")
    assert err == "error: interrupted: run the same command again to go on\n"


def test_a_bug_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def job(settings: Job) -> dict[str, Any]:
        return {"x": {}["missing"]}

    with pytest.raises(KeyError):
        config.main(job, Job, argv=["--uri", "x"])


def test_a_value_that_the_configuration_refuses_is_one_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = end(["--uri", "x", "--inner.depth", "-1"], lambda settings: {}, capsys)
    assert code != 0 and out == ""
    assert "depth is -1: use 0 or more" in err.splitlines()[-1]


def test_equal_content_has_equal_digests() -> None:
    assert config.digest({"a": 1, "b": [1.5, "é"]}) == config.digest({"b": [1.5, "é"], "a": 1})
    assert config.digest({"a": 1}) != config.digest({"a": 2})
    assert config.to_dict(Job(uri="x", inner=Inner(names=("a",)))) == {
        "uri": "x",
        "rate": 0.5,
        "inner": {"depth": 3, "in_the_dark": False, "names": ["a"]},
        "dry_run": False,
    }


def test_a_value_for_a_group_of_fields_is_one_sentence_with_those_it_has(capsys: Any) -> None:
    code, _, err = end(["--uri=x", "--inner=deep"], lambda job: {}, capsys)
    assert code == 2 and err.count("\n") == 1
    assert "--inner takes no value of its own: give its fields (--inner.depth," in err
