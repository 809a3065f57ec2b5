"""No module of one operating system alone is needed."""

import subprocess
import sys
from pathlib import Path

from tests.workflows.small import write_recipe

ROOT = Path(__file__).parent.parent.parent
CODE = """
import sys
sys.modules["fcntl"] = sys.modules["resource"] = None
import zoo
from zoo.cli import main
zoo.load("quickstart")
sys.exit(main(["train", sys.argv[1], "--set", "train.num_epochs=1", "--out", sys.argv[2], "--device", "cpu", "-q"]))
"""


def test_loading_and_training_need_neither_fcntl_nor_resource(tmp_path: Path) -> None:
    arguments = [str(write_recipe(tmp_path)), str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "results.json").is_file()
