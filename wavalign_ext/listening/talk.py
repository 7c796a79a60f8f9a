"""``wavalign talk MODEL``: a page to ask models by microphone or with a file, and to hear their answers."""

import argparse
import asyncio
import base64
import io
import json
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from wavalign_ext.evaluate.generate import Engine, Prompter
from wavalign_ext.evaluate.models import SpokenModel, load_models
from wavalign_ext.evaluate.questions import Question
from wavalign_ext.listening.app import ASSETS, POLICY, asset, serve
from wavalign_ext.schema import one_line
from wavalign_ext.speech.codecs import load_codec

ABOUT = """Ask models by microphone or with a file, in a browser on this machine; their text and sound appear as they
come, side by side. Runs or exported folders; --base adds what the first run began with. See docs/evaluate.md."""
MOST_BYTES = 20_000_000  # of a question
NEW_S = 0.4  # of new sound, before what has come so far is decoded again
FILES = {**ASSETS, "talk.js": "text/javascript"}
TALK_POLICY = POLICY.replace("media-src 'self'", "media-src data: blob:")


class Voice:
    """One model that answers, with its engine; one question at a time."""

    def __init__(self, model: SpokenModel, out: Path, engines: ExitStack) -> None:
        self.name, self.prompter = model.name, Prompter(model, out)
        self.codec = load_codec(model.voice.codec)
        self.engine = engines.enter_context(Engine(model, self.prompter, out / "logs" / f"{model.key}.log"))
        self._turn, self._asked = threading.Lock(), 0

    def answer(self, audio: bytes, tell: Any) -> None:
        """Call ``tell`` with the text and, as base64 of a WAV, the sound so far; last with ``done`` or ``error``."""
        try:
            with self._turn:
                self._answer(audio, tell)
        except Exception as error:  # of this question: the page says it, and the next one is asked
            tell({"error": one_line(str(error)), "done": True})

    def _answer(self, audio: bytes, tell: Any) -> None:
        ids, files = self.prompter(Question("talk", "talk", "open", audio=audio), Path("."))
        self._asked += 1
        self.engine.ask(str(self._asked), ids, files, self._asked, live=True)
        said: list[int] = []
        decoded = 0
        for line in self.engine.told():
            said += line["ids"]
            split = self.prompter.layout.split(said)
            text = self.prompter.tokenizer.decode(split.text_ids, skip_special_tokens=True)
            codes = [code for code in split.codes if 0 <= code < self.codec.codebook_size]
            told: dict[str, Any] = {"text": text, "done": line["done"]}
            if codes and (line["done"] or len(codes) - decoded >= NEW_S * self.codec.frame_rate):
                decoded = len(codes)
                told["wav"] = _wav(self.codec.decode(codes), self.codec.sample_rate)
            if line.get("error"):
                told["error"] = line["error"]
            tell(told)
            if line["done"]:
                return


def application(voices: Sequence[Any]) -> Starlette:
    """The application; a voice has ``name`` and ``answer(audio, tell)``."""

    async def page(_: Request) -> Response:
        return HTMLResponse(asset("talk.html"), headers={"Content-Security-Policy": TALK_POLICY})

    async def file(request: Request) -> Response:
        name = request.path_params["name"]
        return Response(asset(name), media_type=FILES[name]) if name in FILES else Response(status_code=404)

    async def names(_: Request) -> Response:
        return JSONResponse([voice.name for voice in voices])

    async def ask(request: Request) -> Response:
        audio = bytearray()
        async for part in request.stream():
            audio += part
            if len(audio) > MOST_BYTES:
                return JSONResponse({"error": f"the question is longer than {MOST_BYTES} bytes"}, 413)
        return StreamingResponse(_lines(voices, bytes(audio)), media_type="application/x-ndjson")

    routes = [Route("/", page), Route("/assets/{name}", file), Route("/models", names)]
    return Starlette(routes=[*routes, Route("/ask", ask, methods=["POST"])])


async def _lines(voices: Sequence[Any], audio: bytes) -> AsyncIterator[str]:
    """What the voices tell, as it comes, a JSON line each with the number of the model."""
    loop, told = asyncio.get_running_loop(), asyncio.Queue()

    def start(number: int, voice: Any) -> None:
        def tell(line: dict[str, Any]) -> None:
            loop.call_soon_threadsafe(told.put_nowait, {"model": number, **line})

        threading.Thread(target=voice.answer, args=(audio, tell), daemon=True).start()

    for number, voice in enumerate(voices):
        start(number, voice)
    left = len(voices)
    while left:
        line = await told.get()
        left -= bool(line["done"])
        yield json.dumps(line) + "\n"


def _wav(wave: np.ndarray, rate: int) -> str:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.clip(wave, -1, 1), rate, format="WAV", subtype="PCM_16")
    return base64.b64encode(file.getvalue()).decode()


def main(argv: Sequence[str] | None = None) -> int:
    """0 when it was interrupted; 2: wrong arguments, or a model that does not load."""
    made = argparse.ArgumentParser(prog="wavalign talk", description=ABOUT)
    made.add_argument("models", type=Path, nargs="+", metavar="MODEL", help="runs/NAME, or a folder of wavalign export")
    made.add_argument("--base", nargs="?", const="", metavar="FOLDER", help="beside it; alone: what the run began with")
    made.add_argument("--out", type=Path, default=Path("talk"), metavar="DIR", help="exports and logs; default: talk")
    made.add_argument("--codec", metavar="YAML", help="of folders, where no run says it; as wavalign prepare has it")
    made.add_argument("--input-codec", metavar="YAML", help="of the user's speech, where it is another")
    made.add_argument("--port", type=int, default=8011, help="default: %(default)s, on this machine alone")
    args = made.parse_args(argv)
    try:
        from wavalign_ext.evaluate.command import codecs_of

        models = load_models(args.models, args.base, args.out, *codecs_of(args))
        with ExitStack() as engines:
            voices = []
            for model in models:
                print(f"wavalign: loading {model.name}", flush=True)
                voices.append(Voice(model, args.out, engines))
            print(f"wavalign: http://127.0.0.1:{args.port}/   (end with Ctrl-C)", flush=True)
            serve(application(voices), "127.0.0.1", args.port)
        return 0
    except (ValueError, OSError, ImportError) as error:
        print(f"wavalign talk: {one_line(str(error))}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
