"""The training recipes that come with the project: read by the real parser, true to their words."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml

from infra.config import parse, to_dict
from pipelines.evaluate import EvaluateConfig
from pipelines.synthesize import SynthesizeConfig
from tests.made_corpus import write_made_corpus
from training import chain
from training.chain import RECIPES, ChainConfig, Link, read_stage, read_stages
from training.recipe import TrainConfig

ROOT = Path(__file__).parents[2]
CHAINS = sorted(RECIPES.glob("chain_*.yaml"))
STAGES = sorted(set(RECIPES.glob("*.yaml")) - set(CHAINS))
STEPS_OF_S4 = 216


def stem(path: Path) -> str:
    return path.stem


def field_names(config_class: type[Any]) -> set[str]:
    """The dotted names of all fields."""
    found: set[str] = set()
    hints = get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        found.add(field.name)
        for kind in (hints[field.name], *get_args(hints[field.name])):
            if dataclasses.is_dataclass(kind) and isinstance(kind, type):
                found |= {f"{field.name}.{name}" for name in field_names(kind)}
    return found


def comments(path: Path) -> str:
    return "\n".join(line for line in path.read_text().splitlines() if "#" in line)


def test_there_is_a_recipe_of_every_stage_for_256_and_for_1024_pixels() -> None:
    names = {path.stem for path in STAGES}
    for stage in ("pretrain_synthetic", "finetune_s4", "finetune_ms3", "finetune_v2"):
        for name, side in ((stage, 256), (f"{stage}_1024", 1024)):
            assert name in names
            read = read_stage(f"{name}.yaml", {"corpus": "c"})
            assert (read.model.name, read.model.image_size) == ("save_vit_b", side)
    assert {"finetune_s4_few_shot", "pretrain_zero_shot"} <= names


@pytest.mark.parametrize("path", STAGES, ids=stem)
def test_a_recipe_is_read_as_it_is_written(path: Path) -> None:
    written = yaml.safe_load(path.read_text())
    read = parse(TrainConfig, ["--config", str(path), "--corpus", "c"])

    def compare(told: dict[str, Any], found: dict[str, Any]) -> None:
        for name, value in told.items():
            if isinstance(value, dict):
                compare(value, found[name])
            else:
                assert found[name] == value, name

    compare(written, to_dict(read))
    assert read.total_steps(3452) > 0
    # Every worker has a sample in every part of a step.
    assert read.batch % (read.workers.count * read.accumulate) == 0


@pytest.mark.parametrize("path", STAGES, ids=stem)
@pytest.mark.parametrize("entry", ["pretrain", "finetune"])
def test_every_recipe_is_read_by_both_entry_points(path: Path, entry: str) -> None:
    default = {"pretrain": "pretrain_tiny", "finetune": "finetune_s4_tiny"}[entry]
    flags = ["--config", str(path), "--corpus", "c", "--optimizer.learning_rate", "0.5"]
    read = parse(TrainConfig, flags, recipe=RECIPES / f"{default}.yaml")
    assert read.optimizer.learning_rate == 0.5
    assert read == dataclasses.replace(
        read_stage(path.name, {"corpus": "c"}),
        optimizer=dataclasses.replace(read.optimizer, learning_rate=0.5),
    )


@pytest.mark.parametrize("path", [*STAGES, *CHAINS], ids=stem)
def test_what_the_comments_of_a_recipe_name_is_there(path: Path) -> None:
    said = comments(path)
    for name in re.findall(r"(?:\w+/)+\w+\.(?:py|yaml)", said):
        assert (ROOT / name).is_file(), name
    known: set[str] = {"config"}
    for config_class in (TrainConfig, ChainConfig, SynthesizeConfig, EvaluateConfig):
        known |= field_names(config_class)
    known |= {"subset", "corpora.synthetic", "corpora.s4", "corpora.ms3"}
    for flag in re.findall(r"--([a-z_0-9.]*[a-z_0-9])", said):
        assert flag in known, flag
    for name in re.findall(r"\b(?:workers|model|optimizer|augmentation)\.\w+", said):
        assert name in known, name


def test_stages_of_different_recipes_do_not_share_a_folder() -> None:
    published = [path for path in STAGES if not path.stem.endswith("_tiny")]
    names = [read_stage(path.name, {"corpus": "c"}).stage for path in published]
    assert len(set(names)) == len(names)


def test_the_recipes_are_those_of_the_papers() -> None:
    """SAMA-AVS: AdamW 2e-4 to 1e-7, 80 epochs, two pictures of 1024 pixels on a GPU at once."""
    for name in ("pretrain_synthetic", "finetune_s4", "finetune_ms3"):
        small, large = (read_stage(f"{name}{end}.yaml", {"corpus": "c"}) for end in ("", "_1024"))
        for read in (small, large):
            assert read.epochs == 80
            rates = (read.optimizer.learning_rate, read.optimizer.final_learning_rate)
            assert rates == (2e-4, 1e-7)
        assert large.batch // large.workers.count // large.accumulate == 2
        assert large.workers.activation_checkpointing
        assert large.batch == small.batch
    assert read_stage("finetune_s4.yaml", {"corpus": "c"}).steps_per_epoch(3452) == STEPS_OF_S4


@pytest.mark.parametrize("path", CHAINS, ids=stem)
def test_a_chain_names_recipes_of_one_model_and_only_corpora_that_it_is_given(path: Path) -> None:
    given = [f"--corpora.{name}=runs/{name}" for name in ("synthetic", "s4", "ms3")]
    flags = ["--sam_checkpoint=sam.pth", "--output=out", "--workers=2", "--seed=7"]
    stages = read_stages(parse(ChainConfig, [f"--config={path}", *given, *flags]))
    assert [stage.corpus for stage in stages] == ["runs/synthetic", "runs/s4", "runs/ms3"]
    for stage in stages:
        assert stage.model == stages[0].model and stage.model.sam_checkpoint == "sam.pth"
        assert (stage.output, stage.workers.count, stage.seed) == ("out", 2, 7)
        assert stage.model.vggish_checkpoint is None and stage.tracking is None


@pytest.fixture
def told(tmp_path: Path) -> ChainConfig:
    write_made_corpus(str(tmp_path / "a"), samples={"train": 4, "val": 2}, size=32)
    return ChainConfig(
        stages=(
            Link(recipe="pretrain_tiny.yaml", corpus="a", changes={"optimizer.betas": [0.5, 0.6]}),
            Link(recipe="finetune_s4_tiny.yaml", corpus="a"),
        ),
        corpora={"a": str(tmp_path / "a")},
        output=str(tmp_path / "out"),
    )


def test_each_stage_starts_from_the_best_checkpoint_of_the_one_before(
    told: ChainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[TrainConfig] = []

    def train(config: TrainConfig) -> dict[str, Any]:
        trained.append(config)
        return {"stage": config.stage, "checkpoint": f"best of {config.stage}"}

    monkeypatch.setattr(chain, "train", train)
    summary = chain.chain(dataclasses.replace(told, parent="models:/save@champion"))
    assert [stage.parent for stage in trained] == ["models:/save@champion", "best of pretrain"]
    assert trained[0].optimizer.betas == (0.5, 0.6)
    assert [stage["stage"] for stage in summary["stages"]] == ["pretrain", "finetune_s4"]
    assert summary["checkpoint"] == "best of finetune_s4"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"corpora": {}}, "give --corpora.a"),
        ({"corpora": {"a": "x", "s4": "y"}}, "no stage uses corpora.s4"),
        ({"corpora": {"a": "/nowhere"}}, "no corpus stands"),
        ({"stages": ()}, "no stages"),
        ({"twice": {}}, "two stages are called finetune_s4"),
        ({"twice": {"stage": "b", "model.image_size": 64}}, "another model"),
        ({"twice": {"stage": "b", "val_split": "x"}}, "no split 'x'"),
    ],
)
def test_what_would_end_a_chain_later_is_told_before_its_first_stage(
    told: ChainConfig, changes: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(chain, "train")
    if "twice" in changes:
        again = dataclasses.replace(told.stages[1], changes=changes["twice"])
        changes = {"stages": (*told.stages, again)}
    if changes.get("stages") == ():
        changes = {"stages": (), "corpora": {}}
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        chain.chain(dataclasses.replace(told, **changes))
