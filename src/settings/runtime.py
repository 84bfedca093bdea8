"""The section `runtime`: what the machine gives to a stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from src.settings.base import Mebibytes, NonNegativeReal, Positive, Settings, Told

MOST_THREADS = 1024  # as of processes: torch takes any number, and ends without a sentence where the system gives no more


class Runtime(Settings):
    """What the machine gives to a stage."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where tensors live; auto takes CUDA where torch finds it."""
    threads: Annotated[int, Field(ge=1, le=MOST_THREADS)] | None = None
    """Threads of one torch operation. Null leaves torch's choice (the cores) to distillation, and gives one to each expert
    and student, as these fill the cores side by side. Other counts may round differently."""
    workers: Positive | None = None
    """Processes that train experts or students at the same time on CPUs, or tasks that a cluster does at once; null takes as
    many as the cores or the cluster hold. Results do not depend on it, memory does: each needs its own. On a GPU that trains
    other experts than ConvNets with ReLU and average or no pooling it bounds how many train side by side, which shows in their
    rounding."""
    executor: Literal["local", "dask"] = "local"
    """Who does experts, students, variants and trials: processes of this machine, or a dask cluster. Changes no result."""
    address: Told | None = None
    """Of the cluster's scheduler, tcp://HOST:8786; the variable AST_CLUSTER goes before it, and makes the executor dask."""
    depot: Told | None = None
    """Where machines that do not see this folder pass files to each other: a folder, or any address that fsspec knows, such as
    sftp://HOST/FOLDER or s3://BUCKET/FOLDER. Null: a cluster's workers see this folder under the same path."""
    patience_seconds: NonNegativeReal = 600.0
    """Seconds that a cluster may be away, or without a worker, before a command ends and leaves what is finished."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Of all training, that of experts, synthetic images and students. float32 means it on CUDA as well. With tf32,
    convolutions and matrix products on CUDA round what they take to 10 bits of mantissa, those of scores too, for which GPUs
    have faster units; CPUs have none, so that it is float32 on them. In bfloat16, convolutions and matrix products take and
    give numbers of half the bits, and on CPUs so does what stands between them; parameters, images, losses and steps stay
    float32. So do scores and the choice of initial images, which is all that a run with 0 iterations makes. Processors without
    instructions for bfloat16 take several times as long as in float32, and stages say so."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether training builds code. auto: own kernels for ConvNets with ReLU and average or no pooling, which take a second
    once on a CPU and half a minute on a GPU; torch.compile for other networks on a CPU, where the work is long enough to
    pay for it; a GPU's steps are recorded as CUDA graphs. on: the same, and torch.compile however short the work is. off:
    none of them."""
    memory_mib: Mebibytes = 896
    """Memory for what an inner loop keeps of its steps, MiB: the student's parameters of each, which have to be kept, and where
    these leave some, what the second derivatives of the last steps can use again: a fifth of the time less where all steps
    fit, on CPUs alone. Changes no result."""
    deterministic: bool = True
    """Only kernels that give the same bytes again. On CPUs it costs nothing that can be measured; on CUDA false lets cuDNN
    try out and take its fastest kernels, which add in any order."""
    checkpoint_seconds: NonNegativeReal = 60.0
    """Seconds of work between two checkpoints of experts, distill and evaluate; more where writing one takes over 2 % of them.
    0 writes one after every step. Changes no result."""
