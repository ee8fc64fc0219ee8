from __future__ import annotations

import math

import numpy as np

from tersor.coding.models import CHOSEN, LOGIT_END, SQUASH, STRETCH, code_bit, new_model, stream_end


def test_tables_are_the_logistic_function_and_its_inverse():
    logits = np.arange(1 - LOGIT_END, LOGIT_END)
    exact = 65536 / (1 + np.exp(-logits / 256))
    assert np.abs(SQUASH[1:] - exact).max() <= 1.01
    assert (np.diff(SQUASH) >= 0).all()
    assert STRETCH[2048] == 0 or abs(STRETCH[2048]) <= 1
    assert np.abs(SQUASH[STRETCH + LOGIT_END] - (np.arange(4096) * 16 + 8)).max() <= 65


def coded(bits: list[int], stream: np.ndarray, decoding: bool):
    model = new_model(4, stream, decoding=decoding, rate=5)
    model.memory[CHOSEN : CHOSEN + 2] = 0, 1
    got = [code_bit(*model, bit, 2, 0, 1, 0) for bit in bits]
    return got, model


def test_bits_round_trip_near_their_entropy():
    bits = [int(one) for one in np.random.default_rng(0).random(8000) < 0.06]
    room = np.zeros(8000, np.uint8)
    _, model = coded(bits, room, decoding=False)
    stream = room[: model.memory[3]].tobytes() + stream_end(model)
    back, _ = coded([0] * len(bits), np.frombuffer(stream, np.uint8).copy(), decoding=True)
    assert back == bits
    share = sum(bits) / len(bits)
    entropy = -len(bits) * (share * math.log2(share) + (1 - share) * math.log2(1 - share)) / 8
    assert len(stream) <= 1.03 * entropy + 8
