"""Every number that decides what the demo model becomes."""

SEED = 7

# The published architecture at toy size. All sizes are multiples of 64, as MLX's affine groups need.
CONFIG = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "attention_bias": True,
    "attention_dropout": 0.0,
    "num_hidden_layers": 4,
    "hidden_size": 192,
    "intermediate_size": 192,
    "head_dim": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 4,
    "experts_per_token": 4,
    "vocab_size": 1536,
    "hidden_act": "silu",
    "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "swiglu_limit": 7.0,
    "rms_norm_eps": 1e-05,
    "rope_theta": 150000,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
    "initial_context_length": 4096,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}

STEPS = 8000
COPYING_STEPS = 130  # at first, nothing but repeating random tokens
COPYING_RATE = 3.0  # times the learning rates below, in those steps
BATCH_TOKENS = {"cpu": 4_096, "cuda": 32_768}
LENGTHS = (128, 160, 192, 256, 320, 448, 640, 960, 1_440, 2_048)  # a batch holds samples of about one length
WORKERS = 12  # processes that generate conversations for a GPU
WARMUP_STEPS = 40
DECAY_FROM = 0.1  # share of the run after which the learning rate falls, linearly, to 2 %
QUANTIZE_FROM = 0.3  # share of the run after which weights are trained as they will be stored
CONTINUED_RATE = {"cpu": 0.4, "cuda": 0.6}  # times the learning rates below, from a trained checkpoint on
MATRIX_RATE = 0.007  # Muon, for matrices inside the layers
OTHER_RATE = 0.001  # AdamW, for embeddings, head, norms, biases and sinks
PROMPT_WEIGHT = 0.1  # of a token that the assistant only reads, where one that it emits has 1
BALANCE = 0.01  # weight of the router's load-balancing loss
EXAMINED = 40  # held-out samples of each task, while it trains
