"""The Python in README.md runs, top to bottom."""

import re
from pathlib import Path

import pytest


@pytest.mark.filterwarnings("ignore:merging an adapter")
def test_the_examples_of_the_readme_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(Path(__file__).parents[3] / "models")
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 7
    names = {}
    for block in blocks:
        exec(block, names)
    assert names["y"].shape == (3, 128)
    assert names["layer"].quant_type == "nf4"
    assert type(names["optimizer"]).__name__ == "AdamW8bit"
    assert type(names["words"]).__name__ == "Tensor"
    assert type(names["again"].model.layers[0].mlp.up_proj).__name__ == "QuantizedLinear"
    assert names["output"].shape == (2, 64)
