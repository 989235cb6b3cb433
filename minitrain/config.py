"""What a run is: frozen records, one for each table of a TOML file and each section of the command line.

A comment after a field is its help text (`fields.py` reads it). `None` means "derived": `resolve.py` puts a
value in its place, so that the `config.toml` of a run directory is complete. Nothing is checked here: that is
`validate.py`.
"""

from dataclasses import dataclass, field
from typing import Literal

OptimizerName = Literal[
    "sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "radam", "adafactor", "adam8bit",
    "sage", "sophia-g", "sophia-h", "lion", "lamb", "muon",
]  # fmt: skip
DrillName = Literal[
    "none", "skipped-all-reduce", "partial-sum", "swapped-shard", "dropped-receive", "flipped-bit",
    "straggler", "same-data", "sum-for-mean",
]  # fmt: skip


@dataclass(frozen=True)
class ModelConfig:
    """The transformer."""

    arch: Literal["llama", "gpt2"] = "llama"  # llama: RMSNorm, RoPE, SwiGLU; gpt2: LayerNorm, GELU, biases
    layers: int = 2  # transformer blocks
    width: int = 128  # model width D
    heads: int = 4  # query heads; width / heads is the head width
    kv_heads: int | None = None  # key/value heads (default: as many as heads)
    ffn: int | None = None  # inner width of the MLP (default: 4 width for gpt2, 8/3 width for llama)
    vocab: int = 256  # vocabulary size
    seq_len: int = 64  # positions T of a training sequence
    tied: bool | None = None  # the head uses the embedding matrix (default: gpt2 true, llama false)
    rope_theta: float = 10000.0  # base of the rotary angles (llama)
    norm_eps: float = 1e-5  # epsilon inside RMSNorm and LayerNorm


@dataclass(frozen=True)
class ParallelConfig:
    """How the ranks are split: dp x pp x tp = world size. If none of these is given, a layout is chosen."""

    dp: int | None = None  # data-parallel replicas (default: what tp and pp leave of the world)
    tp: int | None = None  # tensor-parallel ranks (default: 1)
    pp: int | None = None  # pipeline stages (default: 1)
    zero: Literal[0, 1, 2, 3] = 0  # ZeRO: shard optimizer state (1), gradients too (2), parameters too (3)
    shard: int | None = None  # part of dp that ZeRO shards over (default: all of it if zero > 0, else 1)
    schedule: Literal["gpipe", "1f1b"] = "1f1b"  # pipeline schedule
    sequence: bool = False  # sequence parallelism: all-gather / reduce-scatter in place of tp's all-reduces
    recompute: Literal["none", "selective", "full"] = "none"  # compute scores, or whole blocks, twice


@dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    steps: int = 1500  # optimizer steps
    global_batch: int | None = None  # sequences in a step (default: 16, rounded up to dp x micro_batch)
    micro_batch: int = 4  # sequences of one model replica in one micro-step
    seed: int = 0  # of initial weights, data order and sampling
    eval_every: int = 500  # steps between validations (0: only at the end)
    eval_sequences: int = 1024  # held-out sequences of one validation (0: all of them)


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its learning rate."""

    name: OptimizerName = "adamw"  # optimizer
    lr: float | None = None  # peak learning rate (default: the optimizer's, 0.005 for adamw)
    betas: tuple[float, float] | None = None  # decay rates of two moments (default: the optimizer's)
    eps: float | None = None  # what keeps a denominator above zero (default: the optimizer's)
    classical: bool = False  # momentum, nesterov: m = b1 m + g, not the average m = b1 m + (1 - b1) g
    beta3: float = 0.75  # sage: decay rate of the average sensitivity
    rho: float | None = None  # sophia: weight of the curvature (default: 0.05 for -g, 0.01 for -h)
    curvature_every: int = 10  # sophia: steps between estimates of the curvature
    weight_decay: float | None = None  # decoupled, in units of lr (default: the optimizer's, 0.1 for adamw)
    decay_vectors: bool = False  # weight decay on gains and biases too, not on matrices and embeddings alone
    lr_vectors: float = 1.0  # learning rate of gains and biases, as a multiple of lr
    lr_embeddings: float = 1.0  # that of embedding and positions
    lr_head: float = 1.0  # that of the output matrix, where it is not tied
    clip: float = 1.0  # global gradient norm to clip to (0: off)
    schedule: Literal["constant", "cosine", "linear", "wsd"] = "linear"  # learning rate after warm-up
    warmup: int | None = None  # steps of linear warm-up (default: 50, or a tenth of steps if that is less)
    decay: int | None = None  # steps of the final linear decay of wsd (default: a fifth of steps)
    min_lr: float = 0.0  # learning rate at the last step (absolute)
    stochastic_rounding: bool = False  # bf16-pure: round up or down by chance, so that small updates count


@dataclass(frozen=True)
class LossScaleConfig:
    """The factor that keeps fp16 gradients from vanishing. Other precisions need none."""

    initial: float = 65536.0  # at the first step
    dynamic: bool = True  # false: the factor stays, and an overflow ends the run
    growth_interval: int = 1000  # steps without overflow after which it doubles
    backoff: float = 0.5  # what it is multiplied by after an overflow
    hysteresis: int = 1  # overflows in a row, or spread out, until it is lowered
    minimum: float = 1.0  # an overflow at this factor ends the run


@dataclass(frozen=True)
class DataConfig:
    """The text."""

    path: str | None = None  # a UTF-8 text file or an llm.c .bin token file (default: the built-in corpus)
    corpus: Literal["kjv"] = "kjv"  # built-in corpus: the King James Bible
    tokenizer: Literal["bytes"] = "bytes"  # text to ids
    shuffle: bool = True  # false: sequences in file order
    holdout: float = 0.05  # the tail of the tokens that is kept for validation (0: none)


@dataclass(frozen=True)
class RunConfig:
    """The run and its directory."""

    dir: str | None = None  # run directory (default: runs/NAME, numbered)
    init_from: str | None = None  # Hugging Face directory of weights to start from
    export_hf: bool | str = True  # Hugging Face directory of the final weights: true = run.dir/hf, or a path
    progress: Literal["auto", "bar", "plain", "none"] = "auto"  # live bar, a line a step, or neither
    sample_tokens: int = 256  # length of the text generated at the end (0: none)
    temperature: float = 0.7  # of that text (0: the most likely token)
    save_every: int = 0  # steps between checkpoints (0: one at the end, and one when the job is told to stop)
    keep: int = 2  # of the newest checkpoints that stay (0: none is written)
    background: bool = False  # checkpoints are written by a thread, from a copy, while training goes on
    resume: str = "no"  # auto: from the newest checkpoint of run.dir, if it has one; or a checkpoint's path
    accept_new_data: bool = False  # resume although the data are others than the checkpoint's
    trace: bool = False  # trace.json: what each rank computes and calls, and when, for a viewer
    trace_steps: int = 100  # steps at the beginning of the run that are in it (0: all)
    exact: bool = False  # sums in a fixed order: the same bits for any dp, pp, zero (micro_batch, tp fixed)
    check: bool = False  # before each collective ranks compare what they are about to do
    compare_every: int = 100  # steps between comparisons of what several ranks hold alike (0: never)
    hang_seconds: float = 600.0  # after which a collective that is not complete ends the job (0: never)
    drill: DrillName = "none"  # a bug to be found, planted in this run (docs/drills.md)


@dataclass(frozen=True)
class Config:
    """A whole run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss_scale: LossScaleConfig = field(default_factory=LossScaleConfig)
    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=RunConfig)
    precision: Literal["fp64", "fp32", "fp16", "bf16", "bf16-pure", "fp8"] = "fp32"  # types of the tensors
    backend: Literal["auto", "numpy", "cupy"] = "auto"  # CPUs or GPUs (auto: GPUs if every rank can use one)
    collectives: Literal["auto", "mpi", "nccl", "threads"] = "auto"  # auto: MPI, or NCCL between GPUs
    gemm: Literal["auto", "cublaslt", "gemmex"] = "auto"  # products of matrices on GPUs
    attention: Literal["auto", "materialised", "flash", "cudnn"] = "auto"  # auto: flash on GPUs, if it can be
