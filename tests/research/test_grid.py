import dataclasses

import pytest

from cmb_jax.config import Config, DataConfig
from cmb_jax.detector.prototype_losses import SupervisedContrastive
from cmb_jax.errors import UserError
from cmb_jax.research.runs import Grid, Variant, four_configurations, grid_from_file, runs_of


def test_the_four_configurations_differ_in_fusion_and_prototypes_alone():
    base = Config()
    four = {variant.name: variant.config for variant in four_configurations(base)}
    switches = {name: (config.model.use_fusion, config.model.use_prototypes) for name, config in four.items()}
    assert switches == {
        "rpn": (False, False),
        "rpn_ffm": (True, False),
        "rpn_hspl": (False, True),
        "rpn_ffm_hspl": (True, True),
    }
    for config in four.values():
        model = dataclasses.replace(config.model, use_fusion=True, use_prototypes=True)
        assert dataclasses.replace(config, model=model) == base


def test_runs_take_the_variants_of_one_seed_after_each_other(tmp_path):
    plain, *_, full = four_configurations(Config())
    grid = Grid(variants=(plain, full.but("supcon", prototype=SupervisedContrastive())), seeds=(3, 5))
    runs = runs_of(grid, tmp_path)
    assert [run.name for run in runs] == [
        "rpn-seed3",
        "rpn_ffm_hspl-supcon-seed3",
        "rpn-seed5",
        "rpn_ffm_hspl-supcon-seed5",
    ]
    assert [run.config.train.seed for run in runs] == [3, 3, 5, 5]
    assert runs[3].config.loss.prototype == SupervisedContrastive()


def test_grids_that_make_no_sense_are_refused():
    plain, other, *_ = four_configurations(Config())
    for arguments, message in (
        ({"variants": (plain, plain)}, "two variants have the same name"),
        ({"variants": (other,)}, "reference"),
        ({"variants": (plain,), "seeds": (1, 1)}, "differ"),
        ({"variants": (plain,), "matched_sensitivity": 1.5}, "at most 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Grid(**arguments)
    with pytest.raises(ValueError, match="name"):
        Variant(name="../up", config=Config())
    coarse = Variant(name="coarse", config=Config(data=DataConfig(spacing_mm=(1.0, 1.0, 1.0))))
    with pytest.raises(ValueError, match="working grid"):
        Grid(variants=(plain, coarse))


def test_a_file_without_a_grid_is_refused_in_one_line(tmp_path):
    path = tmp_path / "grid.py"
    path.write_text("def get_grid(): return 3")
    with pytest.raises(UserError, match=r"get_grid\(\) must return"):
        grid_from_file(path)
    path.write_text("from cmb_jax.research.runs import Grid\ndef get_grid(): return Grid(variants=())")
    with pytest.raises(UserError, match="cannot be used"):
        grid_from_file(path)


@pytest.mark.parametrize("name", ["ablation", "ablation_losses", "prototype_study"])
def test_the_grids_that_come_along_build(name, pytestconfig):
    grid = grid_from_file(pytestconfig.rootpath / "configs" / f"{name}.py")
    assert len(grid.variants) >= 4
