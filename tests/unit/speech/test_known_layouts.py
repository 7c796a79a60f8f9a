"""The layouts that come with WavAlign, and sources that are none."""

from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf
from small_layout import BASE, TOKENIZER

from wavalign_ext.speech.layout import LayoutError, known_layouts, load_layout


@pytest.mark.parametrize("name", ["pocket", "vita_audio_balance", "vita_audio_boost", "glm4_voice"])
def test_layouts_resolve_by_name(name: str) -> None:
    node = yaml.safe_load((resources.files("wavalign_recipes") / "layout" / f"{name}.yaml").read_text())
    assert node["name"] == name
    node["speech"]["count"] = 64  # counts can be overridden, as Hydra does it
    if node.get("user_speech"):
        node["user_speech"]["count"] = 16
    config: Any = OmegaConf.create(node)
    layout = load_layout(config).resolve(TOKENIZER)
    split = layout.split(layout.target(range(1, 31), range(64)))
    assert split.errors == [] and split.codes == list(range(64))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lfm2_audio", "'multi_codebook' is not supported yet"),
        ("mimo_audio", "'multi_codebook' is not supported yet"),
    ],
)
def test_layouts_of_models_to_come_are_refused(name: str, message: str) -> None:
    with pytest.raises(LayoutError, match=f"'{name}'.*{message}"):
        load_layout(name).resolve(TOKENIZER)


def test_sources_that_are_no_layout(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="no layout 'no_such'.*glm4_voice.*pocket"):
        load_layout("no_such")
    for text, message in (("name: [", "is not YAML"), ("- name", "is a list"), ("eos: a", "name is missing")):
        (tmp_path / "mine.yaml").write_text(text)
        with pytest.raises(LayoutError, match=message):
            load_layout(tmp_path / "mine.yaml")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(BASE))
    assert load_layout(str(tmp_path / "mine.yaml")) == load_layout(BASE)


def test_every_known_layout_is_read() -> None:
    names = known_layouts()
    assert {"pocket", "glm4_voice"} <= set(names)
    assert [load_layout(name).name for name in names] == names
