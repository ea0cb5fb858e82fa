"""Writes golden/models: tiny random checkpoints with the logits that transformers computes for them,
what its sampling filters do to fixed logits, what it renders for chat templates, and figures of
models/tinybard over a few windows.

    pip install torch transformers safetensors bitsandbytes
    python golden/make_models.py

The checkpoints are bf16 and the logits are f32 from those bf16 weights, so a runner that computes in
f32 has to agree to rounding. Each is loaded again from the directory as a user's would be, config.json
in its old or new style included, before the logits are taken.
"""

import json
import math
from pathlib import Path

import torch
import transformers
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation import logits_process
from transformers.utils.chat_template_utils import render_jinja_template

HERE = Path(__file__).parent
OUT = HERE / "models"
TINYBARD = HERE.parent / "models" / "tinybard"
TOKENS = 40
PROMPT = 8

COMMON = dict(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=56,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=128,
    rms_norm_eps=1e-5,
    bos_token_id=None,
    eos_token_id=1,
    pad_token_id=None,
)
DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 1000.0}

# name: (config class, its arguments, changes to the written config.json; None removes a key)
MODELS = {
    # Four query heads to one of keys; rope settings as files before transformers 5 have them.
    "llama-llama3-rope": (
        transformers.LlamaConfig,
        dict(
            num_key_value_heads=1,
            head_dim=16,
            eos_token_id=[1, 2],
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        ),
        {
            "rope_parameters": None,
            "rope_theta": 500.0,
            "rope_scaling": {
                "factor": 4.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 64,
                "rope_type": "llama3",
            },
            "dtype": None,
            "torch_dtype": "bfloat16",
        },
    ),
    # As many heads of keys as of queries, and all the biases; no head_dim or num_key_value_heads.
    "llama-linear-rope-biases": (
        transformers.LlamaConfig,
        dict(
            attention_bias=True,
            mlp_bias=True,
            rope_parameters={"rope_type": "linear", "rope_theta": 1000.0, "factor": 2.5},
        ),
        {
            "rope_parameters": None,
            "rope_theta": 1000.0,
            "rope_scaling": {"type": "linear", "factor": 2.5},
            "head_dim": None,
            "num_key_value_heads": None,
        },
    ),
    "mistral-window": (
        transformers.MistralConfig,
        dict(num_key_value_heads=2, sliding_window=7, rope_parameters=DEFAULT_ROPE),
        {},
    ),
    "qwen2-tied": (
        transformers.Qwen2Config,
        dict(
            num_key_value_heads=2,
            tie_word_embeddings=True,
            use_sliding_window=False,
            sliding_window=5,
            max_window_layers=0,
            rope_parameters=DEFAULT_ROPE,
        ),
        {"rope_parameters": None, "rope_theta": 1000.0, "layer_types": None, "sliding_window": 5},
    ),
    "qwen2-window": (
        transformers.Qwen2Config,
        dict(
            num_hidden_layers=3,
            num_key_value_heads=2,
            use_sliding_window=True,
            sliding_window=9,
            max_window_layers=1,
            rope_parameters=DEFAULT_ROPE,
        ),
        {"layer_types": None},
    ),
    # head_dim is not hidden_size / num_attention_heads.
    "qwen3": (
        transformers.Qwen3Config,
        dict(num_key_value_heads=2, head_dim=12, rope_parameters=DEFAULT_ROPE),
        {},
    ),
    "qwen3-window-biases": (
        transformers.Qwen3Config,
        dict(
            num_hidden_layers=3,
            num_key_value_heads=2,
            head_dim=16,
            attention_bias=True,
            tie_word_embeddings=True,
            use_sliding_window=True,
            sliding_window=6,
            layer_types=["full_attention", "sliding_attention", "full_attention"],
            rope_parameters=DEFAULT_ROPE,
        ),
        {},
    ),
    # Fields as files of before transformers 5 have them.
    "mixtral": (
        transformers.MixtralConfig,
        dict(
            num_key_value_heads=2,
            num_local_experts=5,
            num_experts_per_tok=2,
            sliding_window=11,
            rope_parameters=DEFAULT_ROPE,
        ),
        {"rope_parameters": None, "rope_theta": 1000.0},
    ),
    # Layers 1 and 3 would have experts, but 3 is named as one without.
    "qwen3-moe": (
        transformers.Qwen3MoeConfig,
        dict(
            num_hidden_layers=4,
            num_key_value_heads=2,
            head_dim=12,
            num_experts=9,
            num_experts_per_tok=4,
            moe_intermediate_size=20,
            norm_topk_prob=True,
            decoder_sparse_step=2,
            mlp_only_layers=[3],
            rope_parameters=DEFAULT_ROPE,
        ),
        {"num_local_experts": None, "num_experts": 9},
    ),
    # Shares that do not sum to one, and a window.
    "qwen3-moe-window-biases": (
        transformers.Qwen3MoeConfig,
        dict(
            num_key_value_heads=4,
            num_experts=6,
            num_experts_per_tok=3,
            moe_intermediate_size=24,
            norm_topk_prob=False,
            attention_bias=True,
            use_sliding_window=True,
            sliding_window=8,
            rope_parameters=DEFAULT_ROPE,
        ),
        {"num_experts": None, "num_local_experts": 6},
    ),
}


def randomize(model, generator):
    """Weights under which every part of the model moves the logits by much more than rounding."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            value = 1 + 0.3 * noise
        elif name.endswith("bias"):
            value = 0.5 * noise
        elif "embed_tokens" in name:
            value = noise / (4 if model.config.tie_word_embeddings else 1)
        else:
            gain = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
            value = gain * noise / math.sqrt(parameter.shape[-1])
        parameter.data.copy_(value)


def make_model(name, seed):
    config_class, arguments, changes = MODELS[name]
    folder = OUT / name
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config_class(**{**COMMON, **arguments}))
    randomize(model, generator)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)

    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        config.pop(key, None)
        if value is not None:
            config[key] = value
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = torch.randint(0, COMMON["vocab_size"], (1, TOKENS), generator=generator)
    with torch.no_grad():
        logits = model(ids).logits[0]
        # Of an end of the text nothing is made here.
        greedy = model.generate(ids[:, :PROMPT], max_length=TOKENS, do_sample=False, eos_token_id=None)
    results = {"ids": ids[0].int(), "logits": logits.contiguous(), "greedy": greedy[0].int()}
    save_file(results, folder / "logits.safetensors")
    print(f"{name}: logits of deviation {logits.std():.2f}")


def make_sampling():
    """Scores and probabilities after transformers' filters, in the order in which it applies them."""
    generator = torch.Generator().manual_seed(7)
    cases = [
        dict(temperature=0.7),
        dict(top_k=5),
        dict(top_k=3, temperature=2.0),
        dict(top_p=0.8),
        dict(top_p=0.3, temperature=1.5),
        dict(min_p=0.1),
        dict(min_p=0.5, temperature=0.5),
        dict(repetition_penalty=1.3),
        dict(repetition_penalty=0.8, top_k=10, top_p=0.9),
        dict(repetition_penalty=1.1, temperature=0.8, top_k=20, top_p=0.95, min_p=0.05),
    ]
    out = []
    for case in cases:
        logits = 3 * torch.randn(1, 32, generator=generator)
        history = torch.randint(0, 32, (1, 8), generator=generator)
        scores = logits.clone()
        if "repetition_penalty" in case:
            scores = logits_process.RepetitionPenaltyLogitsProcessor(case["repetition_penalty"])(history, scores)
        if "temperature" in case:
            scores = logits_process.TemperatureLogitsWarper(case["temperature"])(history, scores)
        if "top_k" in case:
            scores = logits_process.TopKLogitsWarper(case["top_k"])(history, scores)
        if "top_p" in case:
            scores = logits_process.TopPLogitsWarper(case["top_p"])(history, scores)
        if "min_p" in case:
            scores = logits_process.MinPLogitsWarper(case["min_p"])(history, scores)
        out.append(
            dict(
                settings=case,
                logits=logits[0].tolist(),
                history=history[0].tolist(),
                probabilities=scores.softmax(-1)[0].tolist(),
            )
        )
    write_json("sampling.json", out)


TEMPLATES = {
    "chatml": """{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{% endif %}""",
    "whitespace": """{%- set ns = namespace(system='', n=0) -%}
{% for message in messages %}
    {% if message.role == 'system' %}
        {%- set ns.system = message.content | trim %}
    {% elif loop.first or loop.previtem.role == 'system' %}
        {% set ns.n = ns.n + 1 %}
{{ bos_token }}[INST] {% if ns.system %}<<SYS>>
{{ ns.system }}
<</SYS>>

{% endif %}{{ message.content.strip() }} [/INST]
    {% elif message.role == 'assistant' %}
 {{ message.content.strip().title() }} {{ eos_token -}}
    {% else %}
{{ bos_token ~ "[INST] " ~ message["content"] | upper ~ " [/INST]" }}
    {% endif %}
{% endfor %}
{{ ns.n }}
""",
    "python": """{%- macro turn(role, text='') -%}
<{{ role }}>{{ text }}</{{ role }}>
{%- endmacro -%}
{%- for message in messages[::-1] if message.role != 'system' -%}
{%- set words = message.content.split() -%}
{{- turn(message.role, words | join('_')) }}
{{ message.content.startswith('What') }} {{ message.content.endswith('?') }} {{ message.content.replace('is', 'was') }}
{{ message.get('name', 'nobody') }} {{ message.items() | list | length }} {{ words[-1].rstrip('?').lower() }}
{{ 'yes' if message is mapping and message.content is string else 'no' }} {{ loop.index0 }}/{{ loop.length }}
{%- if loop.index0 == 1 %}{% break %}{% endif %}
{%- endfor %}
{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | tojson }}
{{ {'a': [1, 2.5, true, none, 'é "<&>\\''], 'b': {}} | tojson }}
{{ {'a': [1, {'c': []}], 'b': 'x'} | tojson(indent=2) }}
{{ tools is none }} {{ thinking is defined }} {{ '%s-%d' | format('n', 3) }} {{ 7 // 2 }} {{ [1,2,3][1:] }}
""",
    "generation": """{% for message in messages %}
{% if message.role == 'assistant' %}
A:{% generation %} {{ message.content }}{% endgeneration %}

{% else %}
{{ message.role[0] | upper }}: {{ message.content }}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}A:{% endif %}""",
    "dated": "{{ strftime_now('%d %b %Y') | length }} {{ strftime_now('%Y') | int > 2000 }}",
}

CHATS = {
    "one": [{"role": "user", "content": "What is this?"}],
    "turns": [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": "What is <b>é</b> & why?"},
        {"role": "assistant", "content": " a letter, it is\nsimple "},
        {"role": "user", "content": "Is  that all?"},
    ],
}


def make_chat():
    """Renderings of templates that use what templates on the hub use."""
    out = []
    for name, template in TEMPLATES.items():
        for chat in CHATS.values():
            for prompt in (False, True):
                rendered, _ = render_jinja_template(
                    conversations=[chat],
                    chat_template=template,
                    add_generation_prompt=prompt,
                    bos_token="<s>",
                    eos_token="</s>",
                )
                out.append(
                    dict(
                        name=name,
                        template=template,
                        messages=chat,
                        add_generation_prompt=prompt,
                        rendered=rendered[0],
                    )
                )
    write_json("chat.json", out)


def make_tinybard(windows=4, window=256):
    """Figures of models/tinybard and of its NF4 copy, in f32, over the first windows."""
    tokenizer = AutoTokenizer.from_pretrained(TINYBARD)
    ids = tokenizer((TINYBARD / "validation.txt").read_text()).input_ids
    batch = torch.tensor(ids[: windows * window]).view(windows, window)

    load = lambda path: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    original, quantized, dequantized = load(TINYBARD), load(f"{TINYBARD}-nf4dq"), load(TINYBARD)
    # Not through bitsandbytes' own layers, which round to bf16.
    for name, module in quantized.named_modules():
        if isinstance(module, Linear4bit):
            state = module.weight.quant_state
            state.dtype = torch.float32
            weight = dequantize_4bit(module.weight.data, state)
            dequantized.get_submodule(name).weight.data.copy_(weight)
    with torch.no_grad():
        reference = original(batch).logits.double().log_softmax(-1)[:, :-1]
        quantized = dequantized(batch).logits.double().log_softmax(-1)[:, :-1]
    nll = lambda p: -p.gather(-1, batch[:, 1:, None]).mean()
    write_json(
        "tinybard.json",
        dict(
            text_tokens=len(ids),
            windows=windows,
            window=window,
            perplexity=nll(reference).exp().item(),
            nf4dq=dict(
                perplexity=nll(quantized).exp().item(),
                kl=(reference.exp() * (reference - quantized)).sum(-1).mean().item(),
                top1_agreement=(reference.argmax(-1) == quantized.argmax(-1)).double().mean().item(),
            ),
        ),
    )


def write_json(name, value):
    (OUT / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    print(name)


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    for seed, name in enumerate(MODELS):
        make_model(name, seed)
    make_sampling()
    make_chat()
    make_tinybard()
