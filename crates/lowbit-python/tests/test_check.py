"""`python -m lowbit.check`, the one command for machines that nobody here has."""

import json

import pytest
import torch

from lowbit import check, formats, ops, rules


def test_everything_agrees_and_is_written(tmp_path, capsys):
    file = tmp_path / "report.json"
    assert check.main(["--out", str(file)]) == 0
    report = json.loads(file.read_text())
    printed = capsys.readouterr().out
    assert "everything agrees" in printed and "median milliseconds" in printed
    assert torch.__version__.startswith(report["machine"]["torch"])
    compared = report["compared"]["cpu, torch"]
    assert compared["cases"] > 10 * len(formats.ALL) and not compared["failures"]
    for name in formats.ALL:
        assert any(f" {name} " in result["name"] for result in compared["results"]), name
    compared_operations = {result["name"].split()[0] for result in compared["results"]}
    assert compared_operations == set(ops._SCHEMAS) | {"optimizer"}
    for name in rules.ALL:
        assert any(f"optimizer {name}," in result["name"] for result in compared["results"]), name
    assert "cpu, portable, scalar reference" in report["compared"]
    assert report["milliseconds"]["cpu"]["linear, 1 rows"] > 0


def test_a_report_that_cannot_be_written_is_refused_before_the_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(check, "run", None)
    with pytest.raises(SystemExit):
        check.main(["--out", str(tmp_path / "nowhere" / "report.json")])
    assert "--out: expected" in capsys.readouterr().err


def test_what_is_wrong_is_found(tmp_path, capsys, monkeypatch):
    right = ops.linear
    monkeypatch.setattr(ops, "linear", lambda *args: right(*args) * 1.02)

    def broken(*_):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(ops, "dequantize", broken)
    monkeypatch.setattr(check, "bench", lambda device: {})
    assert check.main(["--out", str(tmp_path / "report.json"), "--device", "cpu"]) == 1
    failures = json.loads((tmp_path / "report.json").read_text())["compared"]["cpu, torch"][
        "failures"
    ]
    assert any(line.startswith("linear ") for line in failures)
    assert any("no such kernel" in line for line in failures)
    assert "FAILED" in capsys.readouterr().out
