"""The log-probability of given words: against the softmax written out, value and gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from s2s import likelihood
from s2s.likelihood import log_likelihood, log_probabilities


def drawn(rows: int, kind: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Features, output matrix, bias, words, and a gradient of their log-probabilities."""
    random = torch.Generator().manual_seed(5)
    features, weight, bias, upstream = (
        torch.randn(shape, generator=random, dtype=kind) for shape in ((rows, 6), (11, 6), (11,), (rows,))
    )
    words = torch.randint(11, (rows,), generator=random)
    return features.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), words, upstream


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 7])
def test_is_the_log_of_the_softmax(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts of two rows: whole parts, and a last one that is not."""
    monkeypatch.setattr(likelihood, "_SCORES", 2 * 11)
    features, weight, bias, words, upstream = drawn(rows)
    found = log_likelihood(features, weight, bias, words)
    learned = torch.autograd.grad((found * upstream).sum(), (features, weight, bias))
    chances = (features @ weight.t() + bias).exp()
    right = (chances / chances.sum(1, keepdim=True))[range(rows), words].log()
    expected = torch.autograd.grad((right * upstream).sum(), (features, weight, bias))
    torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)
    for mine, plain in zip(learned, expected, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-11, atol=1e-12)


def test_scores_that_would_overflow() -> None:
    features, weight, bias, words, _ = drawn(4, torch.float32)
    found = log_likelihood(features * 1e4, weight, bias, words)
    expected = ((features * 1e4).double() @ weight.double().t() + bias).log_softmax(1)[range(4), words]
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)


def test_bf16_products_and_float32_sums() -> None:
    features, weight, bias, words, upstream = drawn(64, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = log_likelihood(features, weight, bias, words)
    assert found.dtype == torch.float32
    learned = torch.autograd.grad((found * upstream).sum(), (features, weight, bias))
    assert {each.dtype for each in learned} == {torch.float32}
    plain = log_likelihood(features, weight, bias, words)
    expected = torch.autograd.grad((plain * upstream).sum(), (features, weight, bias))
    torch.testing.assert_close(found, plain, rtol=0.02, atol=0.05)
    for mine, wide in zip(learned, expected, strict=True):
        assert (mine - wide).norm() < 0.02 * wide.norm()


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 7])
def test_all_words_at_once(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "_SCORES", 2 * 11)
    features, weight, bias, _, _ = drawn(rows)
    chances = (features @ weight.t() + bias).exp()
    expected = (chances / chances.sum(1, keepdim=True)).log().detach()
    torch.testing.assert_close(log_probabilities(features, weight, bias), expected, rtol=1e-12, atol=1e-12)


def test_a_cast_that_is_kept_follows_its_parameter() -> None:
    features, _, bias, _, _ = drawn(3, torch.float32)
    weight = torch.nn.Parameter(torch.eye(11, 6))
    with torch.autocast("cpu", torch.bfloat16):
        before = log_probabilities(features, weight, bias)
        with torch.no_grad():
            weight.mul_(2)
        after = log_probabilities(features, weight, bias)
        weight.data = torch.zeros(11, 6)
        last = log_probabilities(features, weight, bias)
    torch.testing.assert_close(after, (features @ torch.eye(11, 6).t() * 2 + bias).log_softmax(1), rtol=0.02, atol=0.05)
    torch.testing.assert_close(last, bias.log_softmax(0).expand(3, 11), rtol=1e-6, atol=1e-6)
    assert not torch.equal(before, after)
