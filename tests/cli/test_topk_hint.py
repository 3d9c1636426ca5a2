"""The line that `har-edge train --on-devices` prints where compression and optimizer do not fit each other."""

from __future__ import annotations

import pytest

from har_edge.cli.device_training import topk_hint


@pytest.mark.parametrize("mode", ["auto", "sync"])
@pytest.mark.parametrize("optimizer", ["momentum:lr=0.05,schedule=cosine", "adam:lr=0.001"])
def test_momentum_at_the_server_with_top_k(mode: str, optimizer: str) -> None:
    assert "take --optimizer sgd:lr=0.3,warmup=50" in topk_hint("topk:0.01", optimizer, mode)
    assert topk_hint("int8", optimizer, mode) == ""


@pytest.mark.parametrize(
    ("optimizer", "mode"),
    [("sgd:lr=0.3,warmup=50", "sync"), ("auto", "sync"), ("momentum:lr=0.05", "local:20"), ("adam:lr=0.001", "local")],
)
def test_nothing_speaks_against(optimizer: str, mode: str) -> None:
    assert topk_hint("topk:0.01", optimizer, mode) == ""
