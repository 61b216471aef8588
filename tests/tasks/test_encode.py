"""Encode: what it holds on a device at once. Its files are looked at in tests/storage and by the pipeline's tests."""

import threading

import pytest
import torch

from tasks import encode


class Counted:
    """A frozen encoder that counts how many batches are with it at once."""

    def __init__(self, num_waited_for: int, seconds: float):
        self.lock, self.all_there = threading.Lock(), threading.Event()
        self.num_now = self.num_at_once = 0
        self.num_waited_for, self.seconds = num_waited_for, seconds

    def to(self, device):
        return self

    def encode(self, images):
        with self.lock:
            self.num_now += 1
            self.num_at_once = max(self.num_at_once, self.num_now)
            if self.num_now >= self.num_waited_for:
                self.all_there.set()
        self.all_there.wait(self.seconds)  # another thread can come in, if there is one
        with self.lock:
            self.num_now -= 1
        return {"tokens": torch.zeros(len(images), 2, 2)}


class Images:
    def __len__(self):
        return 12

    def images(self, rows):
        return torch.zeros(len(rows), 3, 8, 8)


@pytest.mark.parametrize(("device", "num_at_once", "seconds"), [("cpu", 6, 30), ("meta", 2, 0.3)])
def test_a_gpu_holds_two_batches_at_most_and_each_core_one(device, num_at_once, seconds, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    frozen = Counted(num_waited_for=6, seconds=seconds)
    latents = encode._encode_images(frozen, Images(), 1, 1, torch.device(device))
    assert frozen.num_at_once == num_at_once
    assert latents["tokens"].shape == (12, 2, 2)
