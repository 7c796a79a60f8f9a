"""The web application of a listening test: a page, its JSON, and recordings whose addresses do not say whose they are.

Starlette and uvicorn, which vLLM serves with: well kept, and in every environment that this package runs in.
"""

import hashlib
import html
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from wavalign_ext.evaluate.intervals import Estimate
from wavalign_ext.listening import results
from wavalign_ext.listening.plan import ASPECTS, Trial, trials
from wavalign_ext.listening.store import Store, VoteError

POLICY = "default-src 'none'; style-src 'self'; script-src 'self'; media-src 'self'; connect-src 'self'; img-src data:"
ASSETS = {"style.css": "text/css", "test.js": "text/javascript"}


def application(store: Store, seed: str = "") -> Starlette:
    """The application of one test. ``seed`` makes the recordings' addresses, and the results', hard to guess."""
    test = _Test(store, seed)
    routes = [
        Route("/", test.page),
        Route("/assets/{name}", test.asset),
        Route("/join", test.join, methods=["POST"]),
        Route("/state", test.state),
        Route("/headphones", test.headphones, methods=["POST"]),
        Route("/vote", test.vote, methods=["POST"]),
        Route("/sound/{name}", test.sound),
        Route(f"/results{seed and '-'}{seed}", test.results),
    ]
    return Starlette(routes=routes)


class _Test:
    def __init__(self, store: Store, seed: str) -> None:
        self.store, self.seed = store, seed
        paths = {pair.question_audio for pair in store.pairs} - {None}
        paths |= {path for pair in store.pairs for path in (pair.audio_a, pair.audio_b)}
        self.sounds = {self._address(path): store.folder / path for path in paths if path}

    def _address(self, path: str) -> str:
        return hashlib.sha256(f"{self.seed}{path}".encode()).hexdigest()[:20]

    async def page(self, _: Request) -> Response:
        return HTMLResponse(asset("test.html"), headers={"Content-Security-Policy": POLICY})

    async def asset(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in ASSETS:
            return Response(status_code=404)
        return Response(asset(name), media_type=ASSETS[name])

    async def join(self, request: Request) -> Response:
        given = await _json(request)
        return JSONResponse({"token": self.store.join(str(given.get("name") or ""))})

    async def state(self, request: Request) -> Response:
        return await self._of(request.query_params.get("token", ""), self._told)

    async def headphones(self, request: Request) -> Response:
        given = await _json(request)

        async def note(listener: int) -> dict[str, Any]:
            self.store.note_headphones(listener, "passed" if given.get("passed") is True else "skipped")
            return await self._told(listener)

        return await self._of(str(given.get("token")), note)

    async def vote(self, request: Request) -> Response:
        given = await _json(request)

        async def keep(listener: int) -> dict[str, Any]:
            trial: Any = given.get("trial")  # the store says what is wrong with it
            self.store.vote(listener, trial, given.get("answers"), given.get("played", ""), given.get("seconds"))
            return await self._told(listener)

        return await self._of(str(given.get("token")), keep)

    async def _of(self, token: str, work: Callable[[int], Awaitable[dict[str, Any]]]) -> Response:
        listener = self.store.listener(token)
        if listener is None:
            return JSONResponse({"error": "this link is not of this test: begin again"}, 403)
        try:
            return JSONResponse(await work(listener))
        except VoteError as error:
            return JSONResponse({"error": str(error)}, 409)

    async def _told(self, listener: int) -> dict[str, Any]:
        """What the page shows next; nothing in it says which model is which."""
        own, trial = trials(self.store.pairs, listener), self.store.next_trial(listener)
        told: dict[str, Any] = {"trials": len(own), "headphones": self.store.headphones(listener)}
        return told | ({"done": True} if trial is None else {"done": False, **self._trial(trial)})

    def _trial(self, trial: Trial) -> dict[str, Any]:
        pair = self.store.by_id[trial.pair]
        sides = (pair.audio_a, pair.audio_b) if trial.a_left else (pair.audio_b, pair.audio_a)
        left, right = (f"/sound/{self._address(path)}" for path in sides)
        question = f"/sound/{self._address(pair.question_audio)}" if pair.question_audio else None
        sounds = {"left": left, "right": right, "question": question}
        return {"trial": trial.number, "text": pair.question, "sounds": sounds, "aspects": ASPECTS}

    async def sound(self, request: Request) -> Response:
        path = self.sounds.get(request.path_params["name"])
        return FileResponse(path) if path is not None and path.is_file() else Response(status_code=404)

    async def results(self, _: Request) -> Response:
        results.export(self.store)
        return HTMLResponse(results_page(self.store), headers={"Content-Security-Policy": POLICY})


def results_page(store: Store) -> str:
    """Win rates of B, with intervals and agreement, as HTML."""
    found = results.summary(store)
    a, b = map(html.escape, found["names"])
    rows = "".join(f"<tr><th>{name}</th>{_cells(told)}</tr>" for name, told in found["aspects"].items())
    sides = f"{a} was on the left in {found['a_left']}, on the right in {found['a_right']}"
    out = f"; left out after failed checks: {len(found['left_out'])}" if found["left_out"] else ""
    return asset("results.html").format(
        a=a,
        b=b,
        rows=rows,
        said=f"{found['votes']} votes of {found['listeners']} listeners{out}; {sides}.",
    )


def _cells(told: dict[str, Any]) -> str:
    rate: Estimate = told["win_rate"]
    decided = "–"
    if told["decided"] is not None:
        low, high = told["decided_interval"]
        decided = f"{told['decided']:.1%} [{low:.1%}, {high:.1%}], p {told['p']:.3f}"
    share = f"{rate.value:.1%} [{rate.low:.1%}, {rate.high:.1%}]" if rate.answers else "–"
    alpha = "–" if told["agreement"] is None else f"{told['agreement']:.2f}"
    cells = (told["b"], told["a"], told["ties"], share, decided, alpha)
    return "".join(f"<td>{cell}</td>" for cell in cells)


def plain(store: Store) -> dict[str, Any]:
    """The summary as JSON has it."""
    found = results.summary(store)
    for told in found["aspects"].values():
        told["win_rate"] = asdict(told["win_rate"])
    return found


def asset(name: str) -> str:
    """A file of the page."""
    return (resources.files("wavalign_ext.listening") / "assets" / name).read_text(encoding="utf-8")


async def _json(request: Request) -> dict[str, Any]:
    try:
        found = await request.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def serve(app: Starlette, host: str, port: int) -> None:
    """Until it is interrupted."""
    import uvicorn

    uvicorn.run(app, host=host, port=port, log_level="warning")


def save_page(store: Store) -> Path:
    """Write the results page beside the votes."""
    path = store.folder / "results.html"
    path.write_text(results_page(store), encoding="utf-8")
    return path
