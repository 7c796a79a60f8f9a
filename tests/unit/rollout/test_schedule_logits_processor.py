"""The logits processor, moved about as vLLM moves its batch; a run with it is in tests/e2e/test_twins.py."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

NAMES = ["a", "b", "<end>", "<begin>", "<close>", "<s0>", "<s1>"]
A, B, END, BEGIN, CLOSE, S0, S1 = range(7)
LAYOUT = {
    "name": "test",
    "speech": {"pattern": "<s{}>", "count": 2},
    "begin": "<begin>",
    "end": "<close>",
    "schedule": [[1, 2]],
    "counts_boundaries": False,
    "eos": ["<end>"],
}


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Any:
    import transformers

    from wavalign_ext.rollout.schedule_logits_processor import ConstrainedDecoding

    tokenizer = SimpleNamespace(get_vocab=lambda: {name: n for n, name in enumerate(NAMES)})
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: tokenizer)
    model = SimpleNamespace(tokenizer="none", trust_remote_code=False)
    config = SimpleNamespace(model_config=model, additional_config={"wavalign_layout": LAYOUT})
    return ConstrainedDecoding(config, torch.device("cpu"), False)


def update(removed: Any = (), added: Any = (), moved: Any = ()) -> Any:
    from vllm.v1.sample.logits_processor import BatchUpdate

    return BatchUpdate(batch_size=4, removed=removed, added=[(row, None, [], ids) for row, ids in added], moved=moved)


def possible(processor: Any, rows: int) -> list[set[int]]:
    logits = processor.apply(torch.zeros(rows, len(NAMES)))
    return [{i for i, value in enumerate(row) if value == 0} for row in logits.tolist()]


def test_requests_keep_their_place(processor: Any) -> None:
    from vllm.v1.sample.logits_processor import MoveDirectionality

    first, second, third = [], [A], [A, BEGIN, S0]
    processor.update_state(update(added=[(0, first), (1, second), (2, third)]))
    start, said, inside = {A, B}, {A, B, BEGIN}, {S0, S1, CLOSE}
    assert possible(processor, 3) == [start, said, inside]
    first.append(B)  # vLLM appends to the list it gave
    third.append(S1)
    processor.update_state(None)
    assert possible(processor, 3) == [said, said, {S0, S1, CLOSE}]
    third.append(CLOSE)
    assert possible(processor, 3)[2] == {A, B, END}
    processor.update_state(update(moved=[(0, 2, MoveDirectionality.SWAP)]))
    assert possible(processor, 3) == [{A, B, END}, said, said]
    processor.update_state(update(removed=[1], moved=[(2, 1, MoveDirectionality.UNIDIRECTIONAL)]))
    assert possible(processor, 3) == [{A, B, END}, said, set(range(len(NAMES)))]  # row 2 has no request
    processor.update_state(update(added=[(0, [])]))  # takes the place of another
    assert possible(processor, 2)[0] == start


def test_it_needs_its_layout() -> None:
    from wavalign_ext.rollout.schedule_logits_processor import ConstrainedDecoding

    config = SimpleNamespace(model_config=None, additional_config={})
    with pytest.raises(ValueError, match="set wavalign.constrained_decoding=true"):
        ConstrainedDecoding(config, torch.device("cpu"), False)
