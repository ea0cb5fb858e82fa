"""The Python in README.md runs, top to bottom."""

import re
from pathlib import Path

import pytest


@pytest.mark.filterwarnings("ignore:merging an adapter")
def test_the_examples_of_the_readme_run():
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    names = {}
    for block in blocks:
        exec(block, names)
    assert names["y"].shape == (3, 128)
    assert names["layer"].quant_type == "nf4"
    assert type(names["model"][0]).__name__ == "Linear4bit"
