"""What a training run writes about its progress names no folder and no file."""

from cmb_jax.training.monitor import TrainLog
from tests.privacy.planted import FOLDER, NAME, leaks


def test_tensorboard_and_the_table_of_a_run_in_a_folder_with_a_name(tmp_path):
    folder = tmp_path / f"{FOLDER}_{NAME}"
    folder.mkdir()
    with TrainLog(folder, 10, 0) as log:
        log.scalars(1, {"loss": 0.5})
        log.scalars(2, {"validation/quality": 0.25})
        log.message("step 2")
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 2
    assert leaks(folder) == []
