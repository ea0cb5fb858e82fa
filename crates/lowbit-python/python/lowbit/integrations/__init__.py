"""Where lowbit meets bitsandbytes, transformers and peft.

| module | what it does |
|---|---|
| `bitsandbytes` | our kernels under bitsandbytes' operations: a backend that it finds by itself |
| `peft` | LoRA on our layers, registered when peft is imported |
| `transformers` | `quant_method: lowbit`, for checkpoints in formats that bitsandbytes lacks |
| `adapter` | everything that touches a private name of those libraries, or of torch |
"""
