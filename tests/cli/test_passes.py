from __future__ import annotations

import json

from tests.cli.conftest import Run


def test_lists_every_pass_with_its_options(onnxcp: Run) -> None:
    done = onnxcp("passes")
    assert (done.code, done.out) == (0, "")
    for words in ("fold-batchnorm  (from onnxcp)", "tucker2", "rank=none", 'nodes="*"'):
        assert words in done.err


def test_json(onnxcp: Run) -> None:
    listed = {each["name"]: each for each in json.loads(onnxcp("passes", "--json").out)["passes"]}
    assert listed["cp3"]["distribution"] == "onnxcp"
    assert listed["cp3"]["options"]["rank"] is None
    assert listed["cp3"]["summary"]
    assert listed["fold-batchnorm"]["options"] == {}
