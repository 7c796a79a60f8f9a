"""One vLLM engine in a process of its own: requests come in as lines of JSON, answers go out as lines of JSON.

The first line is the engine's settings. A request has ``key``, ``ids``, ``sampling``, ``features`` (files) and
``live``: whether it is told token by token. A line of the answer has ``key``, ``ids`` (since the last line), ``done``.
Its own process, because engines of several models do not share one, and what a library prints must not get in between.
"""

import json
import os
import queue
import sys
import threading
from collections.abc import Mapping
from typing import IO, Any

PARALLEL_PROCESSOR = "wavalign_ext.parallel.sampler:AudioSettings"
SCHEDULE_PROCESSOR = "wavalign_ext.rollout.schedule_logits_processor:ConstrainedDecoding"


class Engine:
    """vLLM on one model; requests are batched as they come."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        from vllm import LLM

        more: dict[str, Any] = {}
        self.pairs = None
        if settings["parallel"]:
            from transformers import AutoConfig

            from wavalign_ext.parallel import register
            from wavalign_ext.parallel.pairs import Pairs

            register()
            self.pairs = Pairs(AutoConfig.from_pretrained(settings["folder"]))
            more = {"logits_processors": [PARALLEL_PROCESSOR]}
        elif settings["constrained"]:
            more = {"logits_processors": [SCHEDULE_PROCESSOR]}
            more["additional_config"] = {"wavalign_layout": settings["layout"]}
        self.llm = LLM(
            settings["folder"],
            dtype=settings["dtype"],
            max_model_len=settings["longest"],
            max_num_seqs=settings["at_once"],
            skip_tokenizer_init=not settings["hears"],
            enforce_eager=settings["cpu"],
            disable_log_stats=True,
            seed=0,
            **more,
        )
        self.engine, self.stop, self.told, self.live = self.llm.llm_engine, list(settings["eos"]), {}, {}

    def add(self, request: Mapping[str, Any]) -> None:
        """Begin to answer. Raises ValueError: the prompt is too long."""
        from vllm import SamplingParams

        ids, settings = list(request["ids"]), dict(request["sampling"])
        if self.pairs is not None:
            ids = self.pairs.from_flat(ids)
            settings["max_tokens"] = max(settings["max_tokens"] // 2, 1)
            settings |= {"stop_token_ids": self.pairs.stop_ids, "ignore_eos": True}
        else:
            settings |= {"stop_token_ids": self.stop}
        prompt: Any = {"prompt_token_ids": ids}
        if request.get("features"):
            from wavalign_ext.speech.heard import load_features

            prompt["multi_modal_data"] = {"audio": load_features(request["features"], None)}
        sampling = SamplingParams(detokenize=False, **settings)
        self.engine.add_request(request["key"], prompt, sampling)
        self.told[request["key"]], self.live[request["key"]] = 0, bool(request.get("live"))

    def step(self) -> list[dict[str, Any]]:
        """What is new after one step."""
        lines = []
        output: Any  # no model here pools
        for output in self.engine.step():
            key, said = output.request_id, list(output.outputs[0].token_ids)
            if not (output.finished or self.live[key]):
                continue
            new, self.told[key] = said[self.told[key] :], len(said)
            if self.pairs is not None:
                new = self.pairs.to_flat(new)[0]
            lines.append({"key": key, "ids": new, "done": output.finished})
            if output.finished:
                del self.told[key], self.live[key]
        return lines

    @property
    def busy(self) -> bool:
        return self.engine.has_unfinished_requests()


def serve(lines: IO[str], out: IO[str]) -> None:
    """Answer until the input ends and nothing is unanswered."""
    engine = Engine(json.loads(lines.readline()))
    inbox: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in lines:
            inbox.put(line)
        inbox.put(None)

    def tell(line: Mapping[str, Any]) -> None:
        out.write(json.dumps(line) + "\n")
        out.flush()

    threading.Thread(target=read, daemon=True).start()
    tell({"ready": True})
    open_ = True
    while open_ or engine.busy:
        while open_ and not (inbox.empty() and engine.busy):
            line = inbox.get()
            if line is None:
                open_ = False
                break
            request = json.loads(line)
            try:
                engine.add(request)
            except Exception as error:  # this request's, and the others go on
                tell({"key": request["key"], "ids": [], "done": True, "error": " ".join(str(error).split())})
        if engine.busy:
            for told in engine.step():
                tell(told)


def main() -> None:
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints goes to the log
    serve(sys.stdin, out)


if __name__ == "__main__":
    main()
