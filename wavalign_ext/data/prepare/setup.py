"""What a preparation works with: the layout in a tokenizer's ids and the two codecs, checked against each other."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from wavalign_ext.data.prepare.hear import encoder_spec
from wavalign_ext.data.prepare.messages import HEARD, SPOKEN
from wavalign_ext.speech.codecs import load_codec
from wavalign_ext.speech.layout import Layout, ResolvedLayout, load_layout


@dataclass(frozen=True)
class Setup:
    """``specs`` are codec arguments by role: HEARD for the user's speech, SPOKEN for the assistant's."""

    layout: ResolvedLayout
    tokenizer: Any
    specs: Mapping[str, Mapping[str, Any]]


def set_up(
    layout: str,
    tokenizer: str | None = None,
    codec: str | Mapping[str, Any] | None = None,
    input_codec: str | Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
    encoder: str | Mapping[str, Any] | None = None,
) -> Setup:
    """Load everything, so that what does not fit is said before any audio is read.

    The layout ``pocket`` has defaults for all; elsewhere the user's speech takes the same codec as the answer's unless
    ``input_codec`` says otherwise, or the layout hears through ``encoder``.

    Raises:
        ValueError: an argument is missing or wrong; layout, tokenizer and codecs do not belong together.
        ImportError: a codec's package is missing.
    """
    from transformers import AutoTokenizer

    found = load_layout(layout)
    if found.name == "pocket" and None in (tokenizer, codec, input_codec):
        from wavalign_ext.pocket import pocket_dir

        assets = pocket_dir()
        if not (assets / "report.json").is_file():
            raise ValueError(f"the pocket assets are not in {str(assets)!r}: build them with `wavalign pocket`")
        tokenizer = tokenizer or str(assets / "model")
        codec = codec or {"type": "mel_vq", "path": str(assets / "codec")}
        input_codec = input_codec or {"type": "units", "path": str(assets / "units")}
    if tokenizer is None or codec is None:
        wants = f"--codec for its {found.codec.get('type', 'codec')!r} codec" if codec is None else "--tokenizer"
        raise ValueError(f"layout {found.name!r} has no default for it: give {wants}")
    try:
        loaded = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(f"--tokenizer={tokenizer!r} does not load: give the folder of the model") from error
    heard = None if input_codec is None else codec_spec(input_codec, "--input-codec")
    ears = None if encoder is None else codec_spec(encoder, "--encoder")
    return assemble(found, loaded, codec_spec(codec, "--codec"), heard, ears)


def assemble(
    layout: Layout,
    tokenizer: Any,
    codec: Mapping[str, Any],
    input_codec: Mapping[str, Any] | None = None,
    encoder: Mapping[str, Any] | None = None,
) -> Setup:
    """Check that a layout, a loaded tokenizer and codecs belong together. Raises as :func:`set_up`."""
    resolved = layout.resolve(tokenizer)
    ears = encoder_spec(layout, encoder, input_codec or codec)
    if ears is not None and "codec" not in ears and input_codec is not None:
        raise ValueError(f"layout {layout.name!r} hears through an encoder: take the input codec out")
    specs = {HEARD: ears or input_codec or codec, SPOKEN: codec}
    sizes = {
        HEARD: resolved.user_speech_end - resolved.user_speech_start,
        SPOKEN: resolved.speech_end - resolved.speech_start,
    }
    for role, spec in specs.items():
        if "encoder" in spec and "codec" not in spec:
            continue
        spec = spec.get("codec", spec)
        size = load_codec(spec, device="cpu").codebook_size  # only asked for its size
        if size != sizes[role]:
            raise ValueError(
                f"the {role} codec {spec['type']!r} has {size} codes and layout {layout.name!r} {sizes[role]} tokens: "
                "choose a codec and a layout that belong together"
            )
    return Setup(resolved, tokenizer, specs)


def codec_spec(value: str | Mapping[str, Any], option: str) -> dict[str, Any]:
    """A codec's arguments from a mapping, from YAML or JSON on the command line, or from a file of it."""
    node: Any = value
    if isinstance(value, str):
        path = Path(value)
        text = path.read_text(encoding="utf-8") if path.suffix in (".yaml", ".yml", ".json") else value
        try:
            node = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"{option}={value!r} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(node, Mapping) or "type" not in node:
        raise ValueError(f"{option}={value!r} is no codec: give {{type: transformers, path: FOLDER}} or a file of that")
    return dict(node)
