"""Bad configurations and inputs: what is typed, on how many ranks, and what the user must be told."""

from typing import NamedTuple


class Refusal(NamedTuple):
    """`says` are parts of the message, `toml` the text of a file that `--config` names."""

    arguments: str
    says: tuple[str, ...]
    ranks: int = 1
    toml: str | None = None
    exit_code: int = 2


ARGUMENTS = [
    Refusal("trian", ("unknown command 'trian'", "train, generate, convert", "nearest is train")),
    Refusal("chart", ("error: unknown command 'chart'; command line; there are train, generate, convert",)),
    Refusal("--model.layer 3", ("unknown option --model.layer;", "--model.layers")),
    Refusal("--lr 1e-3", ("unknown option --lr;", "--optim.lr")),
    Refusal("--zero=1", ("unknown option --zero;", "--parallel.zero")),
    Refusal(
        "--model.lay 3", ("unknown option --model.lay;", "nearest known is --model.layers")
    ),  # no abbreviation is guessed
    Refusal("--run.lens true", ("unknown option --run.lens; command line; run has dir, init_from",)),
    Refusal("-x", ("unknown option -x; command line; the sections are model, parallel",)),
    Refusal("--dry-run now", ("unexpected word 'now'", "a command comes first")),
    Refusal("--train.steps 3 generate", ("--train.steps takes 1 value, not 2",)),
    Refusal("--model.heads", ("--model.heads takes 1 value, not 0", "--model.heads N")),
    Refusal("--optim.betas 0.9 0.95 0.99", ("--optim.betas takes 2 values, not 3", "X Y")),
    Refusal("--model.layers two", ('model.layers is "two", not a whole number; --model.layers',)),
    Refusal("--train.steps 1e3", ("train.steps is 1000.0, not a whole number",)),
    Refusal("--model.tied yes", ('model.tied is "yes", not true or false',)),
    Refusal("--optim.betas 0.9", ("optim.betas is 0.9, not two numbers",)),
    Refusal("--optim.lr fast", ('optim.lr is "fast", not a number',)),
    Refusal("--model.arch lama", ('"lama", not one of llama, gpt2', "nearest is llama")),
    Refusal("--parallel.zero 4", ("4, not one of 0, 1, 2, 3", "nearest is 3")),
    Refusal("--parallel.zero -1", ("-1, not one of 0, 1, 2, 3", "nearest is 0")),
    Refusal("--run.drill flip-bit", ('"flip-bit", not one of none, skipped-', "nearest is flipped-bit")),
    Refusal("--precision fp3", ('"fp3", not one of', "nearest is fp32")),
    Refusal("--precision fp4", ('"fp4", not one of fp64, fp32, fp16, bf16', "nearest is fp")),
    Refusal("--optim.name lions", ('"lions", not one of sgd, momentum,', "nearest is lion")),
    Refusal("--optim.name newton", ('"newton", not one of sgd, momentum,', "choose one of these")),
    Refusal("--collectives nvlink", ("not one of auto, mpi, nccl, threads; --collectives; choose one",)),
    Refusal("--config", ("--config takes 1 file, not 0",)),
    Refusal("--config a.toml --config b.toml", ("error: --config takes 1 file, not 2", "once")),
    Refusal("--config a.toml b.toml", ("error: --config takes 1 file, not 2",)),
    Refusal(f"--model.layers {5000 * '9'}", ("model.layers is", "not a whole number")),
    Refusal("--config nowhere.toml", ("cannot read nowhere.toml: No such file",)),
    Refusal("--dry-run=yes", ("ignored explicit argument 'yes'",)),
    Refusal("generate", ("required: DIR, --prompt",)),
    Refusal("generate x --prompt hi --tokens many", ("invalid int value: 'many'",)),
    Refusal("generate x --prompt hi --temperature -1", ("--temperature is -1.0",)),
    Refusal("generate x --prompt hi --tokens -1", ("error: --tokens is -1;", "give 0 or more")),
    Refusal("generate x --prompt hi --seed -2", ("error: --seed is -2;", "give 0 or more")),
    Refusal("generate x --prompt hi", ("generate runs in one process, but 4 were started",), ranks=4),
    Refusal("plan", ("error: plan runs in one process, but 4 were started; ", "without mpirun"), ranks=4),
    Refusal("plan --world 0", ("error: --world is 0, not a number of ranks; --world; give a whole number",)),
    Refusal("plan --world many", ("error: --world is many, not a number of ranks",)),
    Refusal("plan --world 1 2", ("error: --world takes 1 value, not 2; --world; write --world N",)),
    Refusal("plan --hardware --preset gpt2-124m", ("error: --hardware takes 1 value, not 0; --hardware;",)),
    Refusal("plan --worlds 2", ("unknown option --worlds;", "the nearest known is --world")),
    Refusal("plan --dry-run", ("unknown option --dry-run",)),
    Refusal("--world 2", ("unknown option --world",)),
    Refusal("plan --preset gpt2-125m", ("no preset is called 'gpt2-125m'; --preset", "nearest is gpt2-124m")),
    Refusal("plan --hardware h10", ("no machine is called 'h10'; --hardware;", "the nearest is h100")),
    Refusal("plan --hardware-file m.toml", ("a file of machines is given, but none is named",)),
    Refusal("plan --hardware h100 --hardware-file m.toml", ("cannot read m.toml: No such file",)),
    Refusal("plan --hardware a100-80gb --precision fp8", ("no peak of a100-80gb is known in fp8",)),
    Refusal("plan --search --train.global_batch 8", ("a search compares times, but no machine is named",)),
    Refusal("plan --search --hardware h100", ("a search compares steps of one size, but none is given",)),
    Refusal(
        "plan --search --explain --hardware h100 --train.global_batch 8 --world 2",
        ("error: a search lists layouts and explains none; --explain; leave it out",),
    ),
    Refusal("plan --textbook --world 4", ("the textbook's table is of no run, but more is given",)),
    Refusal(
        "plan --world 6 --parallel.dp 2 --parallel.tp 2", ("= 4 ranks, but --world is 6; --world; give",)
    ),
    Refusal("plan --world 6 --parallel.tp 4", ("tp 4 x pp 1 = 4 does not divide 6 ranks",)),
    Refusal("plan --model.heads 3", ("width 128 does not divide by 3 heads",)),
    Refusal("study --all", ("error: study has options, but no TOPIC;", "lists the topics")),
    Refusal("study format", ("invalid choice: 'format' (choose from 'optimizers', 'formats',",)),
    Refusal("study formats --ranks 4", ("error: --ranks is given, but formats has", "choose a lecture")),
    Refusal("study formats --all", ("error: --all is given, but formats has", "choose a lecture")),
    Refusal("study zero --steps 3", ("error: --steps is given, but zero has", "choose precision")),
    Refusal("study zero --ranks 0", ("error: --ranks is 0, and zero cannot be", "give one of 2, 3, 4, 5,")),
    Refusal("study zero --ranks 9", ("error: --ranks is 9, and zero cannot", "one of 2, 3, 4, 5, 6, 7, 8")),
    Refusal("study halving-doubling --ranks 6", ("halving-doubling cannot be", "give one of 2, 4, 8")),
    Refusal("study zero --ranks four", ("invalid int value: 'four'",)),
    Refusal("study halving-doubling", ("cannot be shown on 3 ranks", "start one of 2, 4, 8"), ranks=3),
    Refusal("study zero --ranks 2", ("2 asks for threads, but 2 processes were started",), ranks=2),
    Refusal("study formats --out x", ("--out is given, but formats has no such option", "or choose optim")),
    Refusal(
        "study optimizers --steps 3", ("error: --steps is given, but optimizers has", "choose precision")
    ),
    Refusal("study optimizers --out=", ("error: --out is empty;", "leave it out")),
    Refusal("study precision --steps 0", ("error: --steps is 0;", "give 1 or more")),
    Refusal("study precision --steps many", ("invalid int value: 'many'",)),
    Refusal("study formats", ("study formats runs in one process, but 4 were started",), ranks=4),
    Refusal("convert upside-down a b", ("invalid choice: 'upside-down'", "from-hf")),
    Refusal("report", ("the following arguments are required: RUN; command line;", "report --help")),
    Refusal("report x", ("report runs in one process, but 4 were started",), ranks=4),
    Refusal("convert from-hf a ./a", ("SRC and DST are the same",)),
]
TOML = [
    Refusal("", ("unknown key steps; run.toml; the nearest known is train.steps",), toml="steps = 3"),
    Refusal("", ("unknown key train.step;", "train.steps"), toml="[train]\nstep = 3"),
    Refusal("", ("unknown key run.lens; run.toml; run has dir, init_from",), toml="[run]\nlens = true"),
    Refusal(
        "",
        ("parallel.zero is true, not one of 0, 1, 2, 3; run.toml; choose",),
        toml="[parallel]\nzero = true",
    ),
    Refusal("", ("unknown key modle.layers;", "model.layers"), toml="[modle]\nlayers = 3"),
    Refusal("", ("model is 3; run.toml; write it as a table, [model]",), toml="model = 3"),
    Refusal("", ("not TOML", "line 2", "run.toml"), toml="[model]\nlayers 3"),
    Refusal("", ('model.layers is "3", not a whole number; run.toml',), toml='[model]\nlayers = "3"'),
    Refusal("", ("optim.betas is [0.9], not two numbers",), toml="[optim]\nbetas = [0.9]"),
    Refusal("", ("data.path is 4, not text",), toml="[data]\npath = 4"),
]
NUMBERS = [
    Refusal("--model.layers 0", ("model.layers is 0, not a whole number from 1 to 10,000", "give 1")),
    Refusal("--model.layers 99999999", ("model.layers is 99999999, not a whole number from 1 to 10,000",)),
    Refusal(f"--model.width 1{20 * '0'}", ("model.width is 1000",)),
    Refusal("--parallel.dp 99999999 --collectives threads", ("parallel.dp is 99999999",)),
    Refusal("--train.steps -3", ("train.steps is -3",)),
    Refusal("--train.micro_batch 0", ("train.micro_batch is 0",)),
    Refusal("--train.seed -1", ("train.seed is -1",)),
    Refusal("--parallel.tp 0", ("parallel.tp is 0",)),
    Refusal("--optim.lr nan", ("optim.lr is nan",)),
    Refusal("--optim.lr -1e-3", ("optim.lr is -0.001",)),
    Refusal("--optim.lr=-inf", ("optim.lr is -inf",)),
    Refusal("--optim.betas 0.9 1", ("optim.betas is (0.9, 1.0), not within 0 <= x < 1",)),
    Refusal("--optim.eps 0", ("optim.eps is 0.0, not a finite number above 0",)),
    Refusal("--optim.beta3 1", ("optim.beta3 is 1.0, not within 0 <= x < 1",)),
    Refusal("--optim.curvature_every 0", ("optim.curvature_every is 0",)),
    Refusal("--loss_scale.backoff 1", ("loss_scale.backoff is 1.0, not within 0 < x < 1",)),
    Refusal("--loss_scale.hysteresis 0", ("loss_scale.hysteresis is 0, not a whole number from 1",)),
    Refusal("--optim.clip -1", ("optim.clip is -1.0",)),
    Refusal("--data.holdout 1", ("data.holdout is 1.0", "below 1")),
    Refusal("--run.temperature -0.5", ("run.temperature is -0.5",)),
    Refusal("--model.rope_theta inf", ("model.rope_theta is inf",)),
]
MODEL = [
    Refusal("--model.heads 3", ("width 128 does not divide by 3 heads", "model.heads = 2 or 4")),
    Refusal("--model.width 20", ("width 20 / 4 heads = 5 is odd", "model.width = 16 or 24")),
    Refusal(
        "--model.kv_heads 3",
        ("4 heads do not divide by 3 kv_heads; model.heads, model.kv_heads;", "= 2 or 4"),
    ),
    Refusal("--model.arch gpt2 --model.kv_heads 2", ("gpt2 has no grouped heads", "kv_heads is 2")),
    Refusal("--model.arch gpt2 --model.tied false", ("gpt2's head is its embedding matrix",)),
    Refusal("--model.arch gpt2 --model.rope_theta 1e6", ("gpt2 has no rotary", "leave rope_theta out")),
    Refusal("--model.vocab 255", ("bytes tokenizer has 256 ids, but the vocabulary 255",)),
]
LAYOUT = [
    Refusal("--parallel.dp 2", ("dp 2 x tp 1 x pp 1 = 2 ranks, but 1 rank was started", "mpirun -n 2")),
    Refusal("--parallel.dp 2", ("dp 2 x tp 1 x pp 1 = 2 ranks, but 4 ranks were started",), ranks=4),
    Refusal(
        "--parallel.tp 2",
        ("error: tp 2 x pp 1 = 2 does not divide 1 rank;", "start 2 ranks", ", or parallel.tp = 1"),
    ),
    Refusal(
        "--parallel.tp 2",
        ("error: tp 2 x pp 1 = 2 does not divide 3 ranks;", "start 2 or 4 ranks", ", or parallel.tp = 1"),
        ranks=3,
    ),
    Refusal(
        "--parallel.tp 4 --parallel.pp 2",
        (
            "error: tp 4 x pp 2 = 8 does not divide 4 ranks;",
            "start 8 ranks (mpirun -n), or parallel.tp = 2, or parallel.pp = 1",
        ),
        ranks=4,
    ),
    Refusal("--parallel.tp 3", ("4 heads do not divide by tp 3", "parallel.tp = 2 or 4"), ranks=3),
    Refusal(
        "--model.heads 3 --model.kv_heads 2 --model.width 96 --parallel.tp 5",
        ("2 problems", "3 heads do not divide by 2 kv_heads", "3 heads do not divide by tp 5"),
        ranks=5,
    ),
    Refusal(
        "--model.heads 12 --model.kv_heads 6 --model.width 96 --parallel.tp 4",
        ("6 kv_heads and tp 4: neither divides the other", "parallel.tp = 3 or 6"),
        ranks=4,
    ),
    Refusal("--parallel.pp 4", ("layers 2 is less than pp 4", "parallel.pp = 2 or less"), ranks=4),
    Refusal(
        "--parallel.zero 1 --parallel.shard 3 --parallel.dp 4",
        ("dp 4 does not divide by shard 3", "parallel.shard = 2 or 4"),
        ranks=4,
    ),
    Refusal(
        "--parallel.zero 1 --parallel.shard 3",
        ("error: shard 3 does not divide 4 ranks; parallel.shard; parallel.shard = 2 or 4",),
        ranks=4,
    ),
    Refusal(
        "--parallel.sequence true --model.seq_len 5 --train.micro_batch 1 --parallel.tp 4",
        ("5 tokens of a micro-batch", "tp 4 does not divide"),
        ranks=4,
    ),
    Refusal(
        "--parallel.dp 4 --train.global_batch 24",
        ("global_batch 24 is no multiple of dp 4 x micro_batch 4", "train.global_batch = 16 or 32"),
        ranks=4,
    ),
    Refusal("--train.global_batch 6", ("error: global_batch 6 is no multiple of micro_batch 4;", "= 4 or 8")),
    Refusal(
        "--train.global_batch 6",
        ("error: global_batch 6 is no multiple of micro_batch 4;", "= 4 or 8"),
        ranks=4,
    ),
    Refusal("--train.global_batch 6", ("global_batch 6 is no multiple of micro_batch 4", "= 12"), ranks=3),
    Refusal(
        "--train.global_batch 16 --train.micro_batch 3",
        ("error: global_batch 16 is no multiple of micro_batch 3;", "train.global_batch = 15 or 18"),
    ),
    Refusal(
        "--train.global_batch 4 --parallel.zero 1 --parallel.shard 2",
        ("error: global_batch 4 is no multiple of shard 2 x micro_batch 4;", "train.global_batch = 8"),
        ranks=4,
    ),
    Refusal("--train.global_batch 8", ("no layout of 6 ranks is legal", "start 4 or 8 ranks"), ranks=6),
    Refusal(
        "--model.layers 1 --model.heads 1 --train.global_batch 4", ("start 1 rank (mpirun -n)",), ranks=2
    ),
    Refusal("--collectives threads", ("threads are the ranks of one process, but 4 processes",), ranks=4),
    Refusal("--run.exact true", ("no layout of 3 ranks is legal", "start 2 or 4 ranks"), ranks=3),
    Refusal(
        "--run.exact true --parallel.dp 3",
        ("error: run.exact adds up in a binary tree, but dp 3 is no power of two;", "parallel.dp = 2 or 4"),
        ranks=3,
    ),
]
TRAINING = [
    Refusal(
        "--run.exact true --train.global_batch 20",
        (
            "error: run.exact adds up in a binary tree, but global_batch 20 / micro_batch 4 = 5 is no power",
            "train.global_batch = 16 or 32",
        ),
    ),
    Refusal(
        "--run.exact true --train.micro_batch 3",
        ("global_batch 18 / micro_batch 3 = 6 is no power", "train.global_batch = 12 or 24"),
        ranks=2,
    ),
    Refusal("--run.exact true --optim.name lamb", ("lamb adds up over pieces", "leave run.exact out")),
    Refusal("--parallel.shard 2", ("error: shard is 2, but zero 0 shards nothing",), ranks=4),
    Refusal("--parallel.shard 3 --parallel.dp 4", ("error: shard is 3, but zero 0 shards nothing",), ranks=4),
    Refusal("--train.steps 10 --optim.warmup 11", ("warmup 11 is longer than 10 steps", "optim.warmup = 10")),
    Refusal(
        "--optim.name sgd --optim.betas 0.8 0.9",
        ("betas is given, but the optimizer is sgd, which has none;", "leave betas out, or", "adamw, radam"),
    ),
    Refusal("--optim.name sgd --optim.eps 1e-6", ("eps is given, but the optimizer is sgd", "leave eps out")),
    Refusal("--optim.name adam --optim.weight_decay 0.1", ("optimizer is adam, which has none", "adamw")),
    Refusal("--optim.rho 0.1", ("rho is given, but the optimizer is adamw", "one of sophia-g, sophia-h")),
    Refusal("--optim.classical true", ("optimizer is adamw", "choose one of momentum, nesterov")),
    Refusal("--optim.beta3 0.5", ("beta3 is given, but the optimizer is adamw", "choose one of sage")),
    Refusal("--optim.curvature_every 5", ("curvature_every is given, but the optimizer is adamw",)),
    Refusal("--loss_scale.initial 8", ("a loss scale belongs to precision fp16, but the precision is fp32",)),
    Refusal(
        "--precision fp16 --loss_scale.initial 0.5",
        ("the initial loss scale 0.5 is below its minimum 1", "loss_scale.initial = 1 or more"),
    ),
    Refusal(
        "--precision bf16 --optim.stochastic_rounding true",
        ("stochastic rounding is of weights kept in bf16 alone, but the precision is bf16", "bf16-pure"),
    ),
    Refusal(
        "--precision bf16 --optim.name sophia-h",
        ("sophia-h takes a difference of two gradients, of which bf16 leaves nothing", "choose sophia-g"),
    ),
    Refusal(
        "--backend numpy --attention flash",
        ("attention flash needs backend cupy, but the backend is numpy; attention, backend; leave",),
    ),
    Refusal("--optim.decay 10", ("decay belongs to schedule wsd, but the schedule is linear",)),
    Refusal(
        "--train.steps 50 --optim.warmup 20 --optim.schedule wsd --optim.decay 40",
        ("decay 40 and warmup 20", "optim.decay = 30"),
    ),
    Refusal("--optim.lr 1e-3 --optim.min_lr 1e-2", ("min_lr 0.01 is above lr 0.001",)),
    Refusal("--collectives nccl --backend numpy", ("nccl moves arrays of GPUs, but the backend is numpy",)),
    Refusal("--gemm gemmex --backend numpy", ("gemmex multiplies on GPUs, but the backend is numpy",)),
]
DRILLS = [
    Refusal(
        "--run.drill skipped-all-reduce --parallel.dp 4 --parallel.zero 2",
        (
            "error: drill skipped-all-reduce needs 2 replicas, but dp 4 / shard 4 = 1; run.drill",
            "parallel.dp = 8 or more, or a lower parallel.shard, or run.drill = none",
        ),
        ranks=4,
    ),
    Refusal(
        "--run.drill flipped-bit --parallel.tp 2",
        (
            "error: drill flipped-bit needs 2 replicas, but dp 1 / shard 1 = 1; run.drill",
            "parallel.dp = 2 or more, or run.drill = none",
        ),
        ranks=2,
    ),
    Refusal(
        "--run.drill flipped-bit --parallel.dp 2 --train.steps 2",
        (
            "error: drill flipped-bit strikes in step 3, but train.steps is 2; run.drill",
            "train.steps = 3 or more, or run.drill = none",
        ),
        ranks=2,
    ),
    Refusal(
        "--run.drill partial-sum --parallel.dp 2",
        (
            "error: drill partial-sum needs 2 tensor-parallel ranks, but tp is 1; run.drill",
            "parallel.tp = 2 or more, or run.drill = none",
        ),
        ranks=2,
    ),
    Refusal(
        "--run.drill partial-sum --parallel.tp 2 --parallel.sequence true",
        (
            "error: drill partial-sum leaves out an all-reduce, of which sequence parallelism has none; run",
            "parallel.sequence = false, or run.drill = none",
        ),
        ranks=2,
    ),
    Refusal(
        "--run.drill swapped-shard --parallel.dp 2",
        (
            "error: drill swapped-shard needs 2 shards, but shard is 1; run.drill",
            "parallel.zero 1, 2 or 3 on a parallel.dp of 2 or more, or run.drill = none",
        ),
        ranks=2,
    ),
    Refusal(
        "--run.drill swapped-shard --parallel.dp 3 --parallel.zero 1 --parallel.shard 1",
        ("error: drill swapped-shard needs 2 shards, but shard is 1;", "parallel.shard = 3, or run.drill"),
        ranks=3,
    ),
    Refusal(
        "--run.drill dropped-receive --parallel.dp 2",
        (
            "error: drill dropped-receive needs 2 pipeline stages, but pp is 1; run.drill",
            "parallel.pp = 2 or more, or run.drill = none",
        ),
        ranks=2,
    ),
    Refusal(
        "--run.drill straggler --parallel.pp 2",
        (
            "error: drill straggler needs 2 ranks of one pipeline stage, but dp 1 x tp 1 = 1; run.drill",
            "parallel.dp or parallel.tp = 2 or more, or run.drill = none",
        ),
        ranks=2,
    ),
    Refusal(
        "--run.drill same-data --parallel.tp 2",
        (
            "error: drill same-data needs 2 data-parallel ranks, but dp is 1; run.drill",
            "parallel.dp = 2 or more, or run.drill = none",
        ),
        ranks=2,
    ),
    Refusal(
        "--run.drill sum-for-mean",
        (
            "error: drill sum-for-mean needs 2 data-parallel ranks, but dp is 1; run.drill",
            "parallel.dp = 2 or more, or run.drill = none",
        ),
        ranks=1,
    ),
]
SURROUNDINGS = [
    Refusal("--run.dir full", ("full holds a run already", "choose another run.dir")),
    Refusal("--run.dir file/below", ("is a file, not a directory",)),
    Refusal("--run.dir link/below", ("link is a link to nothing; run.dir",)),
    Refusal("--data.path=", ("data.path is empty",)),
    Refusal("--run.export_hf d --run.dir d", ("would lie in d",)),
    Refusal("--run.export_hf file/x", ("cannot be made (Not a directory); file/x",), exit_code=4),
    Refusal("--run.export_hf /proc/x", ("cannot be made", "/proc/x"), exit_code=4),
    Refusal("--run.export_hf link", ("a file or link of that name",), exit_code=4),
    Refusal("--run.export_hf link/x/y", ("cannot be made (File exists); link/x/y",), exit_code=4),
    Refusal("--run.export_hf full", ("not empty", "full"), exit_code=4),
    Refusal("--run.init_from nowhere", ("nowhere",), exit_code=4),
    Refusal("--dry-run --data.path nowhere.txt", ("data.path is not there; nowhere.txt",), exit_code=3),
    Refusal("--dry-run --data.path short.txt", ("short.txt", "seq_len"), exit_code=3),
]
LONG = 300 * "x"
NAMES = [
    Refusal(f"--run.dir {LONG}", ("error: run.dir is a name that no file can have; run.dir; give the path",)),
    Refusal(f"--run.dir a/{3000 * 'x/'} --run.resume auto", ("run.dir is a name that no file can have",)),
    Refusal(f"--run.resume {LONG}", ("error: run.resume is a name that no file can have",)),
    Refusal(f"--run.init_from {LONG}", ("error: run.init_from is a name that no file can have",)),
    Refusal(f"--run.export_hf {LONG}", ("error: run.export_hf is a name that no file can have",)),
    Refusal(f"--data.path {LONG}", ("error: data.path is a name that no file can have",)),
    Refusal(f"--run.export_hf {250 * 'x'}", ("cannot be made (File name too long)",), exit_code=4),
    Refusal("", ("run.dir is a name that no file",), toml='run = {dir = "a\\u0000", resume = "auto"}'),
    Refusal("", ("run.resume is a name that no file",), toml='run.resume = "a\\u0000"'),
    Refusal("", ("run.export_hf is a name that no file",), toml='run.export_hf = "a\\u0000"'),
    Refusal(f"checkpoint verify {LONG}", ("error: directory is a name that no file can have",)),
    Refusal(f"generate {LONG} --prompt x", ("error: directory is a name that no file can have",)),
    Refusal(f"convert from-hf {LONG} x", ("error: source is a name that no file can have",)),
]
RESUMING = [
    Refusal("--run.resume auto", ("run.resume auto looks for checkpoints in run.dir, which is not given",)),
    Refusal("--run.resume nowhere", ("there is no checkpoint; nowhere; give a directory such",), exit_code=4),
    Refusal("--run.resume file", ("there is no checkpoint; file;",), exit_code=4),
    Refusal("--run.resume link", ("there is no checkpoint; link;",), exit_code=4),
    Refusal("--run.resume full", ("there is no checkpoint; full;",), exit_code=4),
    Refusal("--run.resume weights", ("it has no manifest.json; weights; start", "init_from"), exit_code=4),
    Refusal("--run.resume=", ("error: run.resume is empty;",)),
    Refusal("--run.save_every -1", ("run.save_every is -1",)),
    Refusal("--run.keep -1", ("run.keep is -1",)),
    Refusal("--run.hang_seconds nan", ("run.hang_seconds is nan",)),
    Refusal("--run.compare_every -2", ("run.compare_every is -2",)),
    Refusal("checkpoint", ("required: action, DIR",)),
    Refusal("checkpoint rm x", ("invalid choice: 'rm'", "ls")),
    Refusal("checkpoint ls full", ("checkpoint runs in one process, but 4 were started",), ranks=4),
]
ALL = ARGUMENTS + TOML + NUMBERS + MODEL + LAYOUT + TRAINING + DRILLS + SURROUNDINGS + NAMES + RESUMING
