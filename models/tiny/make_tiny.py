#!/usr/bin/env python3
"""Write tiny random GGUFs, one for each kind of memory that llama.cpp keeps. The bytes are the same on every machine.

    python make_tiny.py [OUT_DIR]      (needs: pip install -r requirements.txt)

The weights mean nothing; the shapes, the vocabulary and the chat template are what tests need. The vocabulary is cut
from ../hearth-demo.gguf: all 256 bytes, the first merges of its byte-level BPE, and the ChatML specials.
"""
import hashlib
import os
import sys

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Q
from gguf import TokenType

HERE = os.path.dirname(os.path.abspath(__file__))
N_MERGES = 120
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>"]
# Fill in the middle; llama.cpp knows these tokens by their text.
FIM = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|repo_name|>", "<|file_sep|>"]
SHOWN = {"<think>", "</think>", "<tool_call>", "</tool_call>"}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def vocabulary(more=()):
    """Tokens, their types and the merges; `more` are further specials."""
    special = [*SPECIAL, *more]
    demo = gguf.GGUFReader(os.path.join(HERE, "..", "hearth-demo.gguf"))
    merges = demo.fields["tokenizer.ggml.merges"].contents()[:N_MERGES]
    # The printable alphabet of byte-level BPE: 188 bytes stand for themselves, the other 68 are moved past U+0100.
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = [chr(b) for b in plain] + [chr(0x100 + i) for i in range(256 - len(plain))]
    tokens = alphabet + [m.replace(" ", "", 1) for m in merges] + special
    assert len(set(tokens)) == len(tokens)
    kinds = [TokenType.NORMAL] * (len(tokens) - len(special))
    kinds += [TokenType.USER_DEFINED if t in SHOWN else TokenType.CONTROL for t in special]
    return tokens, kinds, merges


class Model:
    """One GGUF in the making."""

    def __init__(self, out, name, arch, seed, layers, width, context, kind=Q.F32, more=()):
        self.path = os.path.join(out, name + ".gguf")
        self.arch, self.layers, self.width, self.kind = arch, layers, width, kind
        # The raw stream of PCG64 is the part of numpy's generators that is promised never to change.
        self.bits = np.random.PCG64(seed)
        w = self.w = gguf.GGUFWriter(self.path, arch)
        tokens, kinds, merges = vocabulary(more)
        self.n_vocab = len(tokens)
        w.add_name(name)
        w.add_author("The hearth project")
        w.add_license("apache-2.0")
        w.add_description("Random weights for tests of hearth; says nothing sensible.")
        w.add_context_length(context)
        w.add_embedding_length(width)
        w.add_block_count(layers)
        w.add_vocab_size(self.n_vocab)
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre("qwen2")
        w.add_token_list(tokens)
        w.add_token_types(kinds)
        w.add_token_merges(merges)
        at = {t: i for i, t in enumerate(tokens)}
        w.add_bos_token_id(at["<|endoftext|>"])
        w.add_eos_token_id(at["<|im_end|>"])
        w.add_pad_token_id(at["<|endoftext|>"])
        w.add_add_bos_token(False)
        if arch != "bert":
            w.add_chat_template(TEMPLATE)

    def attention(self, heads, heads_kv, head):
        self.heads, self.heads_kv, self.head = heads, heads_kv, head
        self.w.add_head_count(heads)
        self.w.add_head_count_kv(heads_kv)
        self.w.add_key_length(head)
        self.w.add_value_length(head)

    def ssm(self, inner, state, conv, rank):
        self.inner, self.state, self.conv, self.rank = inner, state, conv, rank
        self.w.add_ssm_inner_size(inner)
        self.w.add_ssm_state_size(state)
        self.w.add_ssm_conv_kernel(conv)
        self.w.add_ssm_time_step_rank(rank)

    def uniform(self, shape, scale):
        n = int(np.prod(shape))
        bits = self.bits.random_raw(n) >> np.uint64(40)
        return ((bits.astype(np.float32) / np.float32(1 << 23) - 1) * np.float32(scale)).reshape(shape)

    def put(self, name, values, exact=False):
        """`exact`: llama.cpp computes with this tensor element by element, so it stays F32."""
        values = np.ascontiguousarray(values, np.float32)
        if exact or values.ndim == 1 or self.kind == Q.F32 or values.shape[-1] % 32:
            self.w.add_tensor(name, values)
        elif self.kind == Q.F16:
            self.w.add_tensor(name, values.astype(np.float16))
        else:
            self.w.add_tensor(name, gguf.quants.quantize(values, self.kind), raw_dtype=self.kind)

    def matrix(self, name, rows, columns, *, batch=None, gain=1.7):
        shape = (rows, columns) if batch is None else (batch, rows, columns)
        self.put(name, self.uniform(shape, gain / np.sqrt(columns)))

    def ones(self, name, n):
        self.put(name, np.ones(n))

    def blocks(self):
        """Each layer's number and what its tensors' names begin with, behind its first norm."""
        for i in range(self.layers):
            b = f"blk.{i}."
            self.ones(b + "attn_norm.weight", self.width)
            yield i, b

    def embeddings(self, output=True, gain=None):
        gain = 1.7 * np.sqrt(self.width) if gain is None else gain
        self.matrix("token_embd.weight", self.n_vocab, self.width, gain=gain)
        if self.arch != "bert":
            # What llama.cpp calls it in this one.
            self.ones("token_embd_norm.weight" if self.arch == "lfm2" else "output_norm.weight", self.width)
        if output:
            self.said = self.uniform((self.n_vocab, self.width), 4 / np.sqrt(self.width))
            self.put("output.weight", self.said)

    def qkvo(self, b, heads_kv):
        self.matrix(b + "attn_q.weight", self.heads * self.head, self.width)
        self.matrix(b + "attn_k.weight", heads_kv * self.head, self.width)
        self.matrix(b + "attn_v.weight", heads_kv * self.head, self.width)
        self.matrix(b + "attn_output.weight", self.width, self.heads * self.head)

    def ffn(self, b, size, gain=1.7):
        for name, rows, columns in (("gate", size, self.width), ("up", size, self.width)):
            self.matrix(f"{b}ffn_{name}.weight", rows, columns)
        self.matrix(f"{b}ffn_down.weight", self.width, size, gain=gain)

    def mamba(self, b, norms):
        inner, state, rank = self.inner, self.state, self.rank
        self.matrix(b + "ssm_in.weight", 2 * inner, self.width)
        self.put(b + "ssm_conv1d.weight", self.uniform((inner, self.conv), 0.5), exact=True)
        self.put(b + "ssm_conv1d.bias", self.uniform((inner,), 0.1))
        self.matrix(b + "ssm_x.weight", rank + 2 * state, inner)
        self.matrix(b + "ssm_dt.weight", inner, rank)
        self.put(b + "ssm_dt.bias", self.uniform((inner,), 0.5) - 2)
        self.put(b + "ssm_a", -np.tile(np.arange(1, state + 1), (inner, 1)), exact=True)
        self.ones(b + "ssm_d", inner)
        self.matrix(b + "ssm_out.weight", self.width, inner)
        if norms:
            self.ones(b + "ssm_dt_norm.weight", rank)
            self.ones(b + "ssm_b_norm.weight", state)
            self.ones(b + "ssm_c_norm.weight", state)

    def delta_net(self, b, keys, gain=1.7):
        inner, size, values = self.inner, self.state, self.rank
        mixed = 2 * keys * size + inner
        self.matrix(b + "attn_qkv.weight", mixed, self.width)
        self.matrix(b + "attn_gate.weight", inner, self.width)
        self.put(b + "ssm_conv1d.weight", self.uniform((mixed, self.conv), 0.5), exact=True)
        self.put(b + "ssm_dt.bias", self.uniform((values,), 0.5) - 2)
        self.put(b + "ssm_a", -np.arange(1, values + 1))
        self.matrix(b + "ssm_beta.weight", values, self.width)
        self.matrix(b + "ssm_alpha.weight", values, self.width)
        self.ones(b + "ssm_norm.weight", size)
        self.matrix(b + "ssm_out.weight", self.width, inner, gain=gain)

    def close(self):
        w = self.w
        w.add_quantization_version(gguf.GGML_QUANT_VERSION)
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.write_tensors_to_file()
        w.close()
        digest = hashlib.sha256(open(self.path, "rb").read()).hexdigest()
        print(f"{digest}  {os.path.basename(self.path)}  {os.path.getsize(self.path)} bytes")


def llama(out):
    """Dense attention, grouped queries (4 heads on 2), Q8_0 matrices; heads of 32 so that the cache can be quantised."""
    m = Model(out, "tiny-llama", "llama", 1, layers=2, width=128, context=2048, kind=Q.Q8_0)
    m.attention(4, 2, 32)
    m.w.add_feed_forward_length(256)
    m.w.add_rope_dimension_count(32)
    m.w.add_layer_norm_rms_eps(1e-5)
    m.w.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    m.embeddings()
    for _, b in m.blocks():
        m.qkvo(b, 2)
        m.ones(b + "ffn_norm.weight", m.width)
        m.ffn(b, 256)
    m.close()


def lora(out, name, seed):
    """An adapter of rank 4 for tiny-llama's attention, strong enough to change what it says."""
    rank, width = 4, 128
    path = os.path.join(out, name + ".gguf")
    w = gguf.GGUFWriter(path, "llama")
    w.add_type(gguf.GGUFType.ADAPTER)
    w.add_name(name)
    w.add_author("The hearth project")
    w.add_license("apache-2.0")
    w.add_string(gguf.Keys.Adapter.TYPE, "lora")
    w.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
    bits = np.random.PCG64(seed)

    def uniform(rows, columns):
        raw = bits.random_raw(rows * columns) >> np.uint64(40)
        return (raw.astype(np.float32) / np.float32(1 << 23) - 1).reshape((rows, columns))

    for i in range(2):
        for tensor, rows in (("attn_q", 128), ("attn_v", 64), ("attn_output", 128)):
            base = f"blk.{i}.{tensor}.weight"
            w.add_tensor(base + ".lora_a", uniform(rank, width) * np.float32(0.5))
            w.add_tensor(base + ".lora_b", uniform(rows, rank) * np.float32(0.5))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    digest = hashlib.sha256(open(path, "rb").read()).hexdigest()
    print(f"{digest}  {os.path.basename(path)}  {os.path.getsize(path)} bytes")


def qwen2moe(out):
    """Mixture of 4 experts, 2 used, with a shared one; F16 matrices."""
    m = Model(out, "tiny-qwen2moe", "qwen2moe", 2, layers=2, width=64, context=2048, kind=Q.F16, more=FIM)
    m.attention(4, 2, 16)
    experts, size = 4, 64
    m.w.add_feed_forward_length(128)
    m.w.add_expert_count(experts)
    m.w.add_expert_used_count(2)
    m.w.add_expert_feed_forward_length(size)
    m.w.add_expert_shared_feed_forward_length(128)
    m.w.add_rope_dimension_count(16)
    m.w.add_layer_norm_rms_eps(1e-6)
    m.w.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    m.embeddings()
    for _, b in m.blocks():
        m.qkvo(b, 2)
        m.ones(b + "ffn_norm.weight", m.width)
        m.put(b + "ffn_gate_inp.weight", m.uniform((experts, m.width), 0.2), exact=True)
        m.matrix(b + "ffn_gate_exps.weight", size, m.width, batch=experts)
        m.matrix(b + "ffn_up_exps.weight", size, m.width, batch=experts)
        m.matrix(b + "ffn_down_exps.weight", m.width, size, batch=experts)
        m.put(b + "ffn_gate_inp_shexp.weight", m.uniform((m.width,), 0.2))
        for name, rows, columns in (("gate", 128, m.width), ("up", 128, m.width), ("down", m.width, 128)):
            m.matrix(f"{b}ffn_{name}_shexp.weight", rows, columns)
    m.close()


def same(rows, columns, at=0):
    """A matrix that takes `rows` of its inputs, from `at` on, as they are."""
    return np.eye(rows, columns, at, dtype=np.float32)


def glm4moe(out):
    """Two layers and a head that drafts the token after the next (MTP); its layers say little beside the embeddings, and
    the head takes the last token's as it is, so it is right more often than not."""
    m = Model(out, "tiny-glm4moe", "glm4moe", 12, layers=3, width=32, context=2048, kind=Q.F16)
    m.attention(2, 1, 16)
    experts, size = 2, 32
    m.w.add_feed_forward_length(64)
    m.w.add_expert_count(experts)
    m.w.add_expert_used_count(1)
    m.w.add_expert_feed_forward_length(size)
    m.w.add_expert_shared_count(1)
    m.w.add_leading_dense_block_count(1)
    m.w.add_nextn_predict_layers(1)
    m.w.add_rope_dimension_count(8)
    m.w.add_layer_norm_rms_eps(1e-5)
    m.w.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    m.embeddings()
    for i, b in m.blocks():
        m.matrix(b + "attn_q.weight", 32, m.width)
        m.matrix(b + "attn_k.weight", 16, m.width)
        m.matrix(b + "attn_v.weight", 16, m.width)
        m.matrix(b + "attn_output.weight", m.width, 32, gain=0.4)
        m.ones(b + "post_attention_norm.weight", m.width)
        if i == 0:
            m.matrix(b + "ffn_gate.weight", 64, m.width)
            m.matrix(b + "ffn_up.weight", 64, m.width)
            m.matrix(b + "ffn_down.weight", m.width, 64, gain=0.4)
            continue
        m.put(b + "ffn_gate_inp.weight", m.uniform((experts, m.width), 0.2), exact=True)
        m.put(b + "exp_probs_b.bias", m.uniform((experts,), 0.1))
        for kind, batch in (("exps", experts), ("shexp", None)):
            m.matrix(f"{b}ffn_gate_{kind}.weight", size, m.width, batch=batch)
            m.matrix(f"{b}ffn_up_{kind}.weight", size, m.width, batch=batch)
            m.matrix(f"{b}ffn_down_{kind}.weight", m.width, size, batch=batch, gain=0.2)
    m.put("blk.2.nextn.eh_proj.weight", same(m.width, 2 * m.width))
    for name in ("enorm", "hnorm", "shared_head_norm"):
        m.ones(f"blk.2.nextn.{name}.weight", m.width)
    m.close()


# Fills the vocabulary up to that of ../stories260K.gguf; nobody reads it.
FILL = [f"<{i}>" for i in range(512 - N_MERGES - 256 - len(SPECIAL))]


def eagle3(out, name, seed, reads, more=()):
    """A head of EAGLE-3 for a model of width 64: it reads what goes into three of its layers, and takes embeddings
    and output from it. Its own vocabulary has as many tokens."""
    m = Model(out, name, "eagle3", seed, layers=1, width=64, context=2048, kind=Q.F16, more=more)
    m.attention(2, 1, 32)
    m.w.add_feed_forward_length(64)
    m.w.add_rope_dimension_count(32)
    m.w.add_layer_norm_rms_eps(1e-5)
    m.w.add_array("eagle3.target_layers", reads)
    m.w.add_uint32("eagle3.target_hidden_size", m.width)
    m.w.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    m.ones("output_norm.weight", m.width)
    # What it reads last, as it is.
    m.put("fc.weight", same(m.width, 3 * m.width, 2 * m.width))
    b = "blk.0."
    for name in ("attn_norm", "attn_norm_2", "ffn_norm"):
        m.ones(f"{b}{name}.weight", m.width)
    m.matrix(b + "attn_q.weight", 64, 2 * m.width)
    m.matrix(b + "attn_k.weight", 32, 2 * m.width)
    m.matrix(b + "attn_v.weight", 32, 2 * m.width)
    m.matrix(b + "attn_output.weight", m.width, 64, gain=0.2)
    m.ffn(b, 64)
    m.close()


# What ../stories260K.gguf says most often after a token.
NEXT = {
    268: 388, 337: 335, 267: 337, 388: 426, 266: 267, 391: 266, 265: 268, 426: 346, 286: 399, 399: 393, 261: 370, 370: 268,
    393: 269, 432: 313, 328: 432, 312: 426, 335: 312, 336: 432, 394: 261, 291: 268, 262: 423, 423: 388, 346: 391, 411: 426,
    282: 323, 269: 391, 263: 415, 415: 294, 294: 286, 322: 419, 419: 292, 292: 411, 368: 302, 302: 416, 416: 422, 385: 328,
    323: 312, 439: 419, 338: 391, 345: 268, 13: 436, 303: 359, 359: 337, 441: 416, 447: 416, 445: 302, 377: 267, 414: 444,
    397: 355, 355: 267, 281: 394, 326: 286, 280: 303, 364: 420, 420: 268, 450: 436, 412: 276, 417: 340, 340: 266, 350: 265,
    401: 396, 396: 267, 311: 267, 422: 419,
}


def dflash(out, name, seed, reads=(1, 3), more=("<mask>", *FILL[:-1]), markov=False, selector=False):
    """A head of DFlash for a model of width 64, which fills a block of eight tokens in one pass: its weights are random, and it
    takes embeddings and output from its model. `markov`: DSpark's, whose head for a token's successor knows the model's habits,
    so that it is often right. `selector`: DFlash2's, which looks for the best way through the best of each place."""
    m = Model(out, name, "dflash", seed, layers=1, width=64, context=2048, kind=Q.F16, more=more)
    m.attention(2, 1, 32)
    m.w.add_feed_forward_length(64)
    m.w.add_rope_dimension_count(32)
    m.w.add_layer_norm_rms_eps(1e-5)
    m.w.add_array("dflash.target_layers", list(reads))
    m.w.add_uint32("dflash.block_size", 8)
    m.w.add_mask_token_id(256 + N_MERGES + (len(SPECIAL) if more else 0))
    m.w.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    m.matrix("fc.weight", m.width, 2 * m.width)
    m.ones("enc.output_norm.weight", m.width)
    m.ones("output_norm.weight", m.width)
    b = "blk.0."
    for part in ("attn_norm", "ffn_norm"):
        m.ones(f"{b}{part}.weight", m.width)
    m.qkvo(b, 1)
    for part in ("attn_q_norm", "attn_k_norm"):
        m.ones(f"{b}{part}.weight", m.head)
    m.ffn(b, 64)
    if markov:
        rank = len(NEXT)
        before, after = (np.zeros((m.n_vocab, rank), np.float32) for _ in range(2))
        for i, (token, follower) in enumerate(NEXT.items()):
            before[token, i], after[follower, i] = 1, 60
        m.put("markov_w1.weight", before)
        m.put("markov_w2.weight", after)
        # How sure it is: by the token before alone.
        sure = np.zeros((1, m.width + rank), np.float32)
        sure[0, m.width :] = 4
        m.put("conf_proj.weight", sure)
        m.put("conf_proj.bias", np.full(1, -2))
    if selector:
        rank, kernel, group = 32, 3, 16
        m.w.add_uint32("dflash.selector_rank", rank)
        m.w.add_uint32("dflash.selector_top_k", 4)
        m.w.add_uint32("dflash.conv_kernel_size", kernel)
        m.w.add_uint32("dflash.conv_group_size", group)
        m.matrix("selector_predecessor.weight", m.n_vocab, rank)
        m.matrix("selector_successor.weight", m.n_vocab, rank)
        m.matrix("selector_hidden.weight", rank, m.width)
        for part in ("attn", "ffn"):
            m.put(f"{b}{part}_conv_base", m.uniform((2, kernel, m.width), 0.5), exact=True)
            m.matrix(f"{b}{part}_conv_proj.weight", 2 * kernel * m.width // group, m.width)
    m.close()


def mamba(out):
    """Recurrent: a state of fixed size for each sequence, no KV cache."""
    m = Model(out, "tiny-mamba", "mamba", 3, layers=2, width=64, context=2048)
    m.w.add_feed_forward_length(0)
    m.w.add_head_count(0)
    m.ssm(inner=128, state=16, conv=4, rank=4)
    m.w.add_layer_norm_rms_eps(1e-5)
    m.w.add_file_type(gguf.LlamaFileType.ALL_F32)
    m.embeddings()
    for _, b in m.blocks():
        m.mamba(b, norms=False)
    m.close()


def jamba(out):
    """Hybrid: one attention layer among recurrent ones (heads_kv 0 marks those)."""
    m = Model(out, "tiny-jamba", "jamba", 4, layers=3, width=64, context=2048)
    heads_kv = [0, 2, 0]
    m.attention(4, heads_kv, 16)
    m.ssm(inner=128, state=16, conv=4, rank=4)
    m.w.add_feed_forward_length(128)
    m.w.add_layer_norm_rms_eps(1e-6)
    m.w.add_file_type(gguf.LlamaFileType.ALL_F32)
    m.embeddings()
    for i, b in m.blocks():
        if heads_kv[i]:
            m.qkvo(b, heads_kv[i])
        else:
            m.mamba(b, norms=True)
        m.ones(b + "ffn_norm.weight", m.width)
        m.ffn(b, 128)
    m.close()


def lfm2(out):
    """Hybrid: short convolutions around an attention layer, whose states llama.cpp can take back by some rows."""
    m = Model(out, "tiny-lfm2", "lfm2", 17, layers=3, width=64, context=2048)
    heads_kv = [0, 2, 0]
    m.attention(4, heads_kv, 16)
    kernel = 3
    m.w.add_shortconv_l_cache(kernel)
    m.w.add_feed_forward_length(128)
    m.w.add_layer_norm_rms_eps(1e-5)
    m.w.add_file_type(gguf.LlamaFileType.ALL_F32)
    m.embeddings()
    for i, b in m.blocks():
        if heads_kv[i]:
            m.qkvo(b, heads_kv[i])
            m.ones(b + "attn_q_norm.weight", m.head)
            m.ones(b + "attn_k_norm.weight", m.head)
        else:
            m.put(b + "shortconv.conv.weight", m.uniform((m.width, kernel), 0.8), exact=True)
            m.matrix(b + "shortconv.in_proj.weight", 3 * m.width, m.width)
            m.matrix(b + "shortconv.out_proj.weight", m.width, m.width)
        m.ones(b + "ffn_norm.weight", m.width)
        m.ffn(b, 128)
    m.close()


def qwen35(out, name, seed, heads=False):
    """Hybrid: gated delta nets and an attention layer, whose states llama.cpp can take back by some rows. `heads`: one drafts
    the token after the next (MTP), and is right more often than not, made as tiny-glm4moe's is."""
    m = Model(out, name, "qwen35", seed, layers=4 if heads else 3, width=64, context=2048)
    m.attention(4, 2, 16)
    keys, values, size = 2, 4, 16
    m.ssm(inner=values * size, state=size, conv=4, rank=values)
    m.w.add_ssm_group_count(keys)
    m.w.add_full_attention_interval(2)
    if heads:
        m.w.add_nextn_predict_layers(1)
    m.w.add_rope_dimension_count(16)
    m.w.add_rope_dimension_sections([4, 2, 2, 0])
    m.w.add_feed_forward_length(128)
    m.w.add_layer_norm_rms_eps(1e-6)
    m.w.add_file_type(gguf.LlamaFileType.ALL_F32)
    m.embeddings()
    gain = 0.2 if heads else 1.7
    for i, b in m.blocks():
        if (i + 1) % 2 == 0:
            m.matrix(b + "attn_q.weight", 2 * m.heads * m.head, m.width)
            m.matrix(b + "attn_k.weight", 2 * m.head, m.width)
            m.matrix(b + "attn_v.weight", 2 * m.head, m.width)
            m.matrix(b + "attn_output.weight", m.width, m.heads * m.head, gain=gain)
            m.ones(b + "attn_q_norm.weight", m.head)
            m.ones(b + "attn_k_norm.weight", m.head)
        else:
            m.delta_net(b, keys, gain)
        m.ones(b + "post_attention_norm.weight", m.width)
        m.ffn(b, 128, gain)
    if heads:
        m.put("blk.3.nextn.eh_proj.weight", same(m.width, 2 * m.width))
        for norm in ("enorm", "hnorm", "shared_head_norm"):
            m.ones(f"blk.3.nextn.{norm}.weight", m.width)
    m.close()


def gemma2(out):
    """Sliding window of 64 on every other layer, tied output."""
    m = Model(out, "tiny-gemma2", "gemma2", 5, layers=4, width=64, context=2048)
    m.attention(4, 2, 16)
    m.w.add_feed_forward_length(128)
    m.w.add_layer_norm_rms_eps(1e-6)
    m.w.add_attn_logit_softcapping(50.0)
    m.w.add_final_logit_softcapping(30.0)
    m.w.add_sliding_window(64)
    m.w.add_file_type(gguf.LlamaFileType.ALL_F32)
    # Small, or the tied output only ever repeats the last token.
    m.embeddings(output=False, gain=0.5)
    for _, b in m.blocks():
        m.qkvo(b, 2)
        m.ones(b + "post_attention_norm.weight", m.width)
        m.ones(b + "ffn_norm.weight", m.width)
        m.ffn(b, 128)
        m.ones(b + "post_ffw_norm.weight", m.width)
    m.close()


# Of the pair below: of each two layers the first sees a window of 64; heads of the two kinds differ in size.
GEMMA4 = dict(heads=4, full=(1, 32), windowed=(2, 16))


def gemma4_attention(m, layers):
    """Its keys; `blocks` then asks for each layer's heads."""
    (n_full, full), (n_windowed, windowed) = GEMMA4["full"], GEMMA4["windowed"]
    m.attention(GEMMA4["heads"], [n_full if i % 2 else n_windowed for i in range(layers)], full)
    m.w.add_key_length_swa(windowed)
    m.w.add_value_length_swa(windowed)
    m.w.add_rope_dimension_count(full)
    m.w.add_rope_dimension_count_swa(windowed)
    m.w.add_sliding_window(64)
    m.w.add_sliding_window_pattern([i % 2 == 0 for i in range(layers)])
    m.w.add_layer_norm_rms_eps(1e-6)
    m.w.add_feed_forward_length(128)
    m.w.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    m.ones("rope_freqs.weight", full // 2)


def gemma4(out):
    """Sliding window of 64 on every other layer, whose heads are smaller and more. Its layers say little beside the embeddings,
    so that heads that read the last token can be right."""
    m = Model(out, "tiny-gemma4", "gemma4", 22, layers=4, width=64, context=2048, kind=Q.F16)
    gemma4_attention(m, 4)
    m.w.add_embedding_length_per_layer_input(0)
    m.w.add_final_logit_softcapping(30.0)
    m.embeddings(gain=1.7)
    for i, b in m.blocks():
        n_kv, head = GEMMA4["full" if i % 2 else "windowed"]
        m.matrix(b + "attn_q.weight", m.heads * head, m.width)
        m.matrix(b + "attn_k.weight", n_kv * head, m.width)
        m.matrix(b + "attn_v.weight", n_kv * head, m.width)
        m.matrix(b + "attn_output.weight", m.width, m.heads * head)
        m.ones(b + "attn_q_norm.weight", head)
        m.ones(b + "attn_k_norm.weight", head)
        m.put(b + "post_attention_norm.weight", np.full(m.width, SAYS))
        m.ones(b + "ffn_norm.weight", m.width)
        m.ffn(b, 128)
        m.put(b + "post_ffw_norm.weight", np.full(m.width, SAYS))
    m.close()
    return m.said


# How much a layer of the pair says beside the embeddings, which say 1.
SAYS = 0.03


def gemma4_assistant(out, output):
    """Heads for tiny-gemma4 (MTP) that attend over its cells and write none. They look at the last token as it is, a little of
    what those cells say, and know the model's output matrix; so they are right more often than not."""
    m = Model(out, "tiny-gemma4-assistant", "gemma4-assistant", 23, layers=2, width=96, context=2048, kind=Q.F16)
    gemma4_attention(m, 2)
    own, wide = 64, m.width
    m.w.add_embedding_length_out(own)
    m.w.add_nextn_predict_layers(2)
    m.put("token_embd.weight", np.concatenate([output, np.zeros((m.n_vocab, wide - own), np.float32)], axis=1))
    m.ones("output_norm.weight", wide)
    # The token's embedding in the first places, and in the others half of the state behind the position before.
    pre = np.zeros((wide, 2 * own), np.float32)
    pre[:own, :own] = np.eye(own)
    pre[own:, own : own + wide - own] = np.eye(wide - own) / 2
    m.put("nextn.pre_projection.weight", pre)
    m.put("nextn.post_projection.weight", same(own, wide))
    for i, b in m.blocks():
        head = GEMMA4["full" if i % 2 else "windowed"][1]
        m.matrix(b + "attn_q.weight", m.heads * head, wide)
        m.matrix(b + "attn_output.weight", wide, m.heads * head)
        m.ones(b + "attn_q_norm.weight", head)
        m.put(b + "post_attention_norm.weight", np.full(wide, SAYS))
        m.ones(b + "ffn_norm.weight", wide)
        m.ffn(b, 128)
        m.put(b + "post_ffw_norm.weight", np.full(wide, SAYS))
        m.ones(b + "layer_output_scale.weight", 1)
    m.close()


def bert(out):
    """Encoder with mean pooling: embeddings only, no memory at all."""
    m = Model(out, "tiny-bert", "bert", 6, layers=2, width=64, context=512)
    encoder(m, gguf.PoolingType.MEAN)
    m.close()


def rank(out):
    """The same with a classification head of two outputs: it ranks documents."""
    m = Model(out, "tiny-rank", "bert", 7, layers=2, width=64, context=512)
    m.w.add_add_eos_token(True)
    m.w.add_add_sep_token(True)
    m.w.add_sep_token_id(m.n_vocab - len(SPECIAL))
    m.w.add_classifier_output_labels(["relevant", "beside the point"])
    encoder(m, gguf.PoolingType.RANK)
    m.matrix("cls.weight", m.width, m.width)
    m.put("cls.bias", m.uniform((m.width,), 0.1))
    m.matrix("cls.output.weight", 2, m.width)
    m.put("cls.output.bias", m.uniform((2,), 0.1))
    m.close()


def encoder(m, pooling):
    m.attention(4, 4, 16)
    m.w.add_feed_forward_length(128)
    m.w.add_layer_norm_eps(1e-12)
    m.w.add_causal_attention(False)
    m.w.add_pooling_type(pooling)
    m.w.add_token_type_count(2)
    m.w.add_file_type(gguf.LlamaFileType.ALL_F32)
    m.embeddings(output=False)
    m.matrix("position_embd.weight", 512, m.width)
    m.matrix("token_types.weight", 2, m.width)
    m.ones("token_embd_norm.weight", m.width)
    m.put("token_embd_norm.bias", np.zeros(m.width))
    for i in range(m.layers):
        b = f"blk.{i}."
        m.qkvo(b, 4)
        for name, n in (("attn_q", m.width), ("attn_k", m.width), ("attn_v", m.width), ("attn_output", m.width)):
            m.put(f"{b}{name}.bias", m.uniform((n,), 0.1))
        m.ones(b + "attn_output_norm.weight", m.width)
        m.put(b + "attn_output_norm.bias", np.zeros(m.width))
        m.matrix(b + "ffn_up.weight", 128, m.width)
        m.put(b + "ffn_up.bias", m.uniform((128,), 0.1))
        m.matrix(b + "ffn_down.weight", m.width, 128)
        m.put(b + "ffn_down.bias", m.uniform((m.width,), 0.1))
        m.ones(b + "layer_output_norm.weight", m.width)
        m.put(b + "layer_output_norm.bias", np.zeros(m.width))


class Projector:
    """One mmproj GGUF in the making."""

    def __init__(self, out, name, seed):
        self.path = os.path.join(out, name + ".gguf")
        self.bits = np.random.PCG64(seed)
        w = self.w = gguf.GGUFWriter(self.path, "clip")
        w.add_type("mmproj")
        w.add_name(name)
        w.add_author("The hearth project")
        w.add_license("apache-2.0")
        w.add_description("Random weights for tests of hearth; sees and hears nothing sensible.")
        w.add_file_type(gguf.LlamaFileType.ALL_F32)

    uniform = Model.uniform

    def put(self, name, values, kind=np.float32):
        self.w.add_tensor(name, np.ascontiguousarray(values, kind))

    def matrix(self, name, rows, columns, gain=1.7):
        self.put(name, self.uniform((rows, columns), gain / np.sqrt(columns)))

    def sizes(self, part, width, size, layers, heads, out):
        for key, value in (("embedding_length", width), ("feed_forward_length", size), ("block_count", layers),
                           ("attention.head_count", heads), ("projection_dim", out)):
            self.w.add_uint32(f"clip.{part}.{key}", value)
        self.w.add_float32(f"clip.{part}.attention.layer_norm_epsilon", 1e-5)

    def layer(self, b, width, size, key_bias=False):
        """One block; in Whisper keys have no bias."""
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            self.matrix(f"{b}{name}.weight", width, width)
            if name != "attn_k" or key_bias:
                self.put(f"{b}{name}.bias", self.uniform((width,), 0.1))
        for name in ("ln1", "ln2"):
            self.put(f"{b}{name}.weight", np.ones(width))
            self.put(f"{b}{name}.bias", np.zeros(width))
        self.matrix(b + "ffn_up.weight", size, width)
        self.put(b + "ffn_up.bias", self.uniform((size,), 0.1))
        self.matrix(b + "ffn_down.weight", width, size)
        self.put(b + "ffn_down.bias", self.uniform((width,), 0.1))

    def eyes(self, image, patch, width):
        """Patches of an image, without the projector behind them."""
        w = self.w
        w.add_bool("clip.has_vision_encoder", True)
        w.add_bool("clip.use_gelu", True)
        w.add_uint32("clip.vision.image_size", image)
        w.add_uint32("clip.vision.patch_size", patch)
        w.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
        w.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
        self.put("v.patch_embd.weight", self.uniform((width, 3, patch, patch), 0.3))
        self.put("v.post_ln.weight", np.ones(width))
        self.put("v.post_ln.bias", np.zeros(width))

    close = Model.close


def mmproj(out):
    """Eyes as Gemma 3 has them (one square, all its tokens at once) and ears as Ultravox has them, for tiny-llama."""
    m = Projector(out, "tiny-mmproj", 7)
    w, text = m.w, 128
    width, size = 16, 32
    w.add_string("clip.vision.projector_type", "gemma3")
    m.sizes("vision", width, size, layers=1, heads=2, out=text)
    m.eyes(image=32, patch=4, width=width)
    m.put("v.patch_embd.bias", m.uniform((width,), 0.1))
    w.add_uint32("clip.vision.projector.scale_factor", 2)  # 64 patches become 16 tokens
    m.put("v.position_embd.weight", m.uniform((64, width), 0.3))
    m.layer("v.blk.0.", width, size)
    m.put("mm.soft_emb_norm.weight", np.ones(width))
    m.put("mm.input_projection.weight", m.uniform((width, text), 3.0))
    width, size, stack, hidden = 8, 16, 30, 16
    w.add_bool("clip.has_audio_encoder", True)
    w.add_string("clip.audio.projector_type", "ultravox")
    m.sizes("audio", width, size, layers=1, heads=1, out=text)
    w.add_uint32("clip.audio.num_mel_bins", 16)
    w.add_uint32("clip.audio.projector.stack_factor", stack)  # half a minute, 1500 places, becomes 50 tokens
    m.put("a.conv1d.1.weight", m.uniform((width, 16, 3), 0.4), np.float16)
    m.put("a.conv1d.1.bias", m.uniform((width, 1), 0.1))
    m.put("a.conv1d.2.weight", m.uniform((width, width, 3), 0.4), np.float16)
    m.put("a.conv1d.2.bias", m.uniform((width, 1), 0.1))
    m.put("a.position_embd.weight", m.uniform((1500, width), 0.1))
    m.put("a.post_ln.weight", np.ones(width))
    m.put("a.post_ln.bias", np.zeros(width))
    m.layer("a.blk.0.", width, size)
    m.put("mm.a.norm_pre.weight", np.ones(width * stack))
    m.matrix("mm.a.mlp.1.weight", 2 * hidden, width * stack)
    m.put("mm.a.norm_mid.weight", np.ones(hidden))
    m.matrix("mm.a.mlp.2.weight", text, hidden, gain=12)
    m.close()


def qwen2vl(out):
    """Positions in three dimensions (M-RoPE), and a projector whose tokens follow the image's shape."""
    text, width, size = 32, 16, 32
    m = Model(out, "tiny-qwen2vl", "qwen2vl", 8, layers=2, width=text, context=2048, kind=Q.F16)
    m.attention(2, 1, 16)
    m.w.add_feed_forward_length(64)
    m.w.add_rope_dimension_count(16)
    m.w.add_rope_dimension_sections([2, 3, 3, 0])
    m.w.add_layer_norm_rms_eps(1e-6)
    m.w.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    m.embeddings()
    for _, b in m.blocks():
        m.qkvo(b, 1)
        for name, n in (("attn_q", 32), ("attn_k", 16), ("attn_v", 16)):
            m.put(f"{b}{name}.bias", m.uniform((n,), 0.1))
        m.ones(b + "ffn_norm.weight", m.width)
        m.ffn(b, 64)
    m.close()
    m = Projector(out, "tiny-qwen2vl-mmproj", 9)
    m.w.add_string("clip.projector_type", "qwen2vl_merger")
    m.sizes("vision", width, size, layers=1, heads=1, out=text)
    m.eyes(image=64, patch=4, width=width)
    m.put("v.patch_embd.weight.1", m.uniform((width, 3, 4, 4), 0.3))
    m.layer("v.blk.0.", width, size, key_bias=True)
    m.matrix("mm.0.weight", 4 * width, 4 * width)
    m.put("mm.0.bias", m.uniform((4 * width,), 0.1))
    m.matrix("mm.2.weight", text, 4 * width, gain=6)
    m.put("mm.2.bias", m.uniform((text,), 0.1))
    m.close()


def main():
    out = sys.argv[1] if len(sys.argv) > 1 else HERE
    os.makedirs(out, exist_ok=True)
    for make in (llama, qwen2moe, mamba, jamba, lfm2, gemma2, bert, rank, mmproj, qwen2vl, glm4moe):
        make(out)
    qwen35(out, "tiny-qwen35", 18)
    qwen35(out, "tiny-qwen35-mtp", 19, heads=True)
    # For ../stories260K.gguf, and for two of these, whose states are taken back.
    eagle3(out, "tiny-eagle3", 13, [1, 3, 4], more=FILL)
    eagle3(out, "tiny-eagle3-lfm2", 20, [0, 1, 2])
    dflash(out, "tiny-dflash-qwen35", 21, [1, 2], more=())
    dflash(out, "tiny-dflash", 14)
    dflash(out, "tiny-dflash2", 15, selector=True)
    dflash(out, "tiny-dspark", 16, markov=True)
    gemma4_assistant(out, gemma4(out))
    lora(out, "tiny-llama-lora-a", 7)
    lora(out, "tiny-llama-lora-b", 8)


if __name__ == "__main__":
    main()
