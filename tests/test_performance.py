"""Speed beside the hardware's limit: formulas by hand, and stages that record it."""

import json

import pytest

from db.throughput import Computing, computing
from tests.training import RESOURCES, training_settings, write_jsonl
from train import performance
from train.performance import (
    DATA_SHEETS,
    Limits,
    ModelShape,
    causal,
    combined_speed,
    forward_flops,
    generation_work,
    measured_limits,
    model_shape,
    speed,
    training_flops,
)

# Llama-3-8B: 32 layers of (2 x 4096^2 + 2 x 4096 x 1024 + 3 x 4096 x 14336) and a head of 128256 x 4096.
LLAMA_8B = ModelShape(32 * 218_103_808, 525_336_576, 32, 4096, 1024)
SMALL = ModelShape(body=1000, head=100, layers=2, attention_width=8, key_value_width=4)


def test_a_shape_is_read_from_headers_and_configuration(tiny_llama, tmp_path):
    # Two layers: q and o 128 x 128, k and v 64 x 128, three of the MLP 256 x 128; the embeddings, 1024 x 128, are the head too.
    layer = 2 * 128 * 128 + 2 * 64 * 128 + 3 * 256 * 128
    assert model_shape(tiny_llama) == ModelShape(2 * layer, 1024 * 128, 2, 128, 64)
    for changes, head in (({"architectures": ["LlamaForSequenceClassification"]}, 0), ({"num_local_experts": 8}, None)):
        (tmp_path / "model.safetensors").write_bytes((tiny_llama / "model.safetensors").read_bytes())
        config = json.loads((tiny_llama / "config.json").read_text()) | changes
        (tmp_path / "config.json").write_text(json.dumps(config))
        shape = model_shape(tmp_path)
        assert (shape and shape.head) == head


def test_operations_by_hand():
    assert causal([1, 2, 3]) == 1 + 3 + 6
    # 2 x 1000 x 3 of the body, 2 x 100 x 3 of the head; 6 pairs x 4 x 2 layers x 8.
    assert forward_flops(SMALL, 3, causal([3])) == 6000 + 600 + 384
    assert forward_flops(SMALL, 3, causal([3]), head_tokens=1) == 6000 + 200 + 384
    assert training_flops(SMALL, 3, causal([3]), learned=1) == 3 * (6000 + 200 + 384)
    assert training_flops(SMALL, 3, causal([3]), learned=1, adapter=True) == 2 * (6000 + 200 + 384)
    # 6 N a token and, at 2048 tokens, half of PaLM's 12 L H Q T.
    parameters = LLAMA_8B.body + LLAMA_8B.head
    assert training_flops(LLAMA_8B, 2048, causal([2048]), 2048) / 2048 == 6 * parameters + 6 * 32 * 4096 * 2049


def test_what_sampling_needs_by_hand():
    """A prompt of 3 tokens with answers of 1 and 2: 6 tokens pass the model, 3 the head; two steps read the weights."""
    flops, moved = generation_work(SMALL, [(3, [1, 2])], itemsize=2)
    attended = (1 + 2 + 3) + 4 + (4 + 5)
    assert flops == 2 * 1000 * 6 + 2 * 100 * 3 + 4 * 2 * 8 * attended
    assert moved == 2 * (1100 * 2) + (4 + 4 + 5) * (2 * 2 * 4 * 2)
    assert generation_work(SMALL, [(3, [])], 2)[1] == 0


def test_the_share_is_of_the_tighter_limit(monkeypatch):
    limits = Limits({"bfloat16": 1e6}, 1e3)
    monkeypatch.setattr(performance, "device_name", lambda: "NVIDIA H200")
    bound_by_arithmetic = speed(100, 4.0, 2e6, 1e3, "bfloat16", 1, limits)
    assert bound_by_arithmetic == {
        "tokens_per_second": 25.0,
        "limit_share": 0.5,
        "limit": "NVIDIA H200, bfloat16 (data sheet)",
    }
    assert speed(100, 4.0, 2e6, 3e3, "bfloat16", 1, limits)["limit_share"] == 0.75
    assert speed(100, 4.0, 2e6, 3e3, "bfloat16", 2, limits)["limit_share"] == 0.375
    assert speed(100, 4.0, 2e6, 0, "bfloat16", 8, limits)["limit"].startswith("8 x NVIDIA H200")


def test_an_8b_training_on_eight_h100_by_its_data_sheet(monkeypatch):
    """989.4 TFLOPS each: 6 x 7.5e9 operations a token and attention leave 170 thousand tokens a second at most."""
    monkeypatch.setattr(performance, "device_name", lambda: "NVIDIA H100 80GB HBM3")
    flops = training_flops(LLAMA_8B, 2048, causal([2048]), 2048)
    found = speed(2048, 2048 / 85_000, flops, 0, "bfloat16", 8, DATA_SHEETS["NVIDIA H100 80GB HBM3"])
    assert found["limit_share"] == pytest.approx(85_000 * (6 * 7_504_658_432 + 6 * 32 * 4096 * 2049) / (8 * 989.4e12), abs=1e-4)
    assert 0.45 < found["limit_share"] < 0.55


def test_nothing_is_guessed_of_an_unknown_device_model_or_dtype(monkeypatch):
    monkeypatch.setattr(performance, "device_limits", lambda dtype: None)
    unknown = {"tokens_per_second": 25.0, "limit_share": None, "limit": None}
    assert speed(100, 4.0, 2e6, 0, "bfloat16", 1) == unknown
    assert speed(100, 4.0, None, 0, "bfloat16", 1, Limits({"bfloat16": 1e6}, 1e3)) == unknown
    assert speed(100, 4.0, 2e6, 0, "float8", 1, Limits({"bfloat16": 1e6}, 1e3)) == unknown
    assert set(speed(100, 0.0, 2e6, 0, "bfloat16", 1).values()) == {None}
    part = {"tokens": 10, "seconds": 1.0, "limit_share": None, "limit": None}
    assert combined_speed([part, part | {"limit_share": 0.5}], 2) == {
        "tokens_per_second": 20.0,
        "limit_share": None,
        "limit": None,
    }


def test_scorers_side_by_side_add_up():
    parts = [
        {"tokens": 100, "seconds": 2.0, "limit_share": 0.5, "limit": "X"},
        {"tokens": 300, "seconds": 6.0, "limit_share": 0.1, "limit": "X"},
    ]
    assert combined_speed(parts, 2) == {"tokens_per_second": 100.0, "limit_share": 0.2, "limit": "2 x X"}
    assert combined_speed([], 1) == {}


def test_a_cpu_is_measured():
    found = measured_limits("float32", 1)
    assert found.flops["float32"] > 1e9 and found.bytes_per_second > 1e8
    assert measured_limits("float32", 1) is found


def test_stages_record_their_speed(tiny_llama, run_stage, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    message = [{"role": "user", "content": "Two?"}, {"role": "assistant", "content": "Three."}]
    write_jsonl(data / "sft.jsonl", [{"id": str(k), "messages": message} for k in range(8)])
    settings = training_settings(loss_on="assistant", packing=False, epochs=2)
    trained = run_stage("train.sft", "sft", settings, {"policy": tiny_llama, "data": data}, resources=RESOURCES).metrics
    assert trained["tokens_per_second"] > 0 and 0 < trained["limit_share"] < 1
    assert trained["limit"].startswith("CPU, ") and trained["limit"].endswith("float32 (measured matrix product and copy)")
    assert computing(trained) == Computing(trained["tokens_per_second"], trained["limit_share"], trained["limit"])
    assert computing({"train_loss": 1.0}) is None
