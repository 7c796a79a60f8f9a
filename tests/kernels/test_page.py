"""The snippets of docs/kernel.md, run as they stand there: the plain lines and those that replace them."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "kernel.md"


def snippets() -> list[str]:
    section = PAGE.read_text().split("## Replace these lines by those", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def run(code: str) -> dict:
    """What the lines compute, and the gradients of their loss, on a batch of fixed numbers."""
    torch.manual_seed(0)
    hidden = torch.randn(2, 7, 16, dtype=torch.float64, requires_grad=True)
    head = torch.nn.Linear(16, 40, bias=False, dtype=torch.float64)
    place = {
        "torch": torch,
        "hidden": hidden,
        "model": SimpleNamespace(lm_head=head),
        "input_ids": torch.randint(0, 40, (2, 7)),
        "advantages": torch.randn(2, 7, dtype=torch.float64),
        "mask": torch.tensor([[0, 0, 1, 1, 1, 0, 0], [0, 1, 1, 0, 1, 1, 1]]),
        "temperature": 0.7,
    }
    exec(code.replace(".float()", ".double()"), place)
    place["loss"].backward()
    return place | {"grads": (hidden.grad, head.weight.grad)}


@pytest.mark.parametrize("number", [1, 2], ids=["log-probs", "one pass"])
def test_the_lines_that_replace_have_the_gradient_of_the_plain_ones(number: int) -> None:
    codes = snippets()
    assert len(codes) == 3
    plain, ours = run(codes[0]), run(codes[number])
    for expected, found in zip(plain["grads"], ours["grads"], strict=True):
        assert expected.norm() > 0
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    if number == 1:
        wanted = plain["mask"][:, 1:].bool()
        assert plain["loss"].item() == pytest.approx(ours["loss"].item(), rel=1e-9)
        torch.testing.assert_close(ours["logp"][wanted], plain["logp"][wanted], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(ours["entropy"][wanted], plain["entropy"][wanted], rtol=1e-9, atol=1e-12)
