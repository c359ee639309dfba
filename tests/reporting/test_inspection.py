from __future__ import annotations

import pytest

from onnxcp.reporting.inspection import chain_owner

FAMILIES = ("cp4", "channel-svd")


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("conv2/cp4/0", "conv2"),
        ("/block/conv/channel-svd/12", "/block/conv"),
        ("conv2", "conv2"),
        ("/block/conv/0", "/block/conv/0"),
        ("conv2/cp4/x", "conv2/cp4/x"),
        ("conv2/cp5/0", "conv2/cp5/0"),
        ("cp4/0", "cp4/0"),
    ],
)
def test_nodes_of_chains_belong_to_their_site(name: str, owner: str) -> None:
    assert chain_owner(FAMILIES)(name) == owner


def test_without_families_every_node_is_its_own() -> None:
    assert chain_owner(())("conv2/cp4/0") == "conv2/cp4/0"
