"""Draws are timed in turns, after the first calls, and part by part."""

import torch

from dpar.benchmarks import timing
from dpar.benchmarks.pairs import request_of, untrained
from dpar.sampling.guidance import DrawSettings
from dpar.sampling.sampler import sample
from tests.benchmarks.tiny import TINY


def test_both_take_turns_and_the_last_to_go_goes_first(monkeypatch):
    order = []
    monkeypatch.setattr(timing, "timed", lambda work, device: (work(), None))
    works = [lambda: order.append("a") or 1.0, lambda: order.append("b") or 2.0]
    assert timing.in_turns(works, 3, torch.device("cpu")) == [[1.0] * 3, [2.0] * 3]
    assert "".join(order) == "abbaab"


def test_a_warm_up_is_the_beginning_of_a_draw():
    networks, rule = untrained(TINY, torch.device("cpu"))
    how = {"rule": rule, "settings": DrawSettings(2.0)}
    request, calls = request_of(2, TINY, torch.device("cpu")), []
    handle = networks.model.decoder.output.register_forward_hook(lambda *_: calls.append(1))
    timing.warm_up(lambda observe: sample(networks.model, networks.entropy_model, **request, **how, observe=observe))
    handle.remove()
    assert len(calls) == timing.WARM_UP < 16


def test_watching_counts_what_the_sampler_computes():
    device = torch.device("cpu")
    networks, rule = untrained(TINY, device)
    request = request_of(5, TINY, device)
    with timing.watched(networks) as found:
        found.total, result = timing.timed(
            lambda: sample(networks.model, networks.entropy_model, **request, rule=rule, settings=DrawSettings(2.0)),
            device,
        )
    assert found.calls["patch_transformer"] == result.starts.any(0).sum()
    assert found.calls["decoder"] == 16
    assert found.calls["encoder"] == found.calls["entropy_model"] == 15
    assert min(found.seconds.values()) > 0
    assert sum(found.seconds.values()) < found.total
    assert not networks.model.decoder.output._forward_hooks
