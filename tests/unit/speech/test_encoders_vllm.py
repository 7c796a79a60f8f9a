"""SenseVoice's network against vLLM's SenseVoiceEncoderSmall, run live in a process of its own."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest


@pytest.mark.slow
def test_vllms_encoder_hears_the_same_once_its_epsilon_is_vitas() -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "support"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    same, other_epsilon, spread = map(float, done.stdout.splitlines()[-1].split())
    assert same < 1e-5 and other_epsilon > 1e-3 and spread > 0.5, (same, other_epsilon, spread)


def main() -> None:
    import torch
    from formula_weights import noise, tensors_of
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import parallel_state
    from vllm.model_executor.models import funasr

    from wavalign_ext.speech.encoders import sanm

    shape = sanm.Shape(input=560, size=64, feed_forward=128, kernel=11, blocks=4, last_blocks=3)
    ours = sanm.Encoder(shape).eval()
    weights = tensors_of(ours)
    for name, value in weights.items():
        if name.startswith("encoders0") and "norm" not in name:
            value *= 0.01  # so that the next norms see a variance that epsilon matters to
    ours.load_state_dict(weights)
    with tempfile.TemporaryDirectory() as folder, set_current_vllm_config(VllmConfig()), torch.no_grad():
        parallel_state.init_distributed_environment(1, 0, f"file://{folder}/meeting", 0, "gloo")
        parallel_state.ensure_model_parallel_initialized(1, 1)
        theirs = funasr.SenseVoiceEncoderSmall(shape.input, shape.size, 4, shape.feed_forward, shape.blocks, 3).eval()
        theirs.load_state_dict({name.replace("linear_out", "out_proj"): value for name, value in weights.items()})
        for part in theirs.modules():
            if hasattr(part, "quant_method"):
                part.quant_method.process_weights_after_loading(part)
        heard = torch.from_numpy(noise("heard", 40 * shape.input)).reshape(1, 40, shape.input)
        expected = ours(heard)

        def off(epsilon: float) -> float:
            for part in theirs.modules():
                if isinstance(part, funasr.LayerNorm):
                    part.eps = epsilon
            found, _ = theirs(heard.clone(), torch.tensor([40]))  # it scales its argument in place
            return (found - expected).abs().max().item()

        print(off(1e-5), off(1e-12), expected.std().item())
        parallel_state.destroy_model_parallel()
        parallel_state.destroy_distributed_environment()


if __name__ == "__main__":
    main()
