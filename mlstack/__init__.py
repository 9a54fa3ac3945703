"""The training and evaluation stack of a machine-learning team, in notebooks

Modules:

- `mlstack.ddp.horovod`: A Horovod script runs on torch.distributed: change its import line.
- `mlstack.ddp.memory`: Activations that are not kept: computed again in the backward pass, or put away on the CPU or the disk, for models that do not fit.
- `mlstack.ddp.meshes`: `Trainer(parallel=Mesh(dp=2, tp=2))`: processes in rows and columns, each dimension with its own way of sharing the work, and the arithmetic that has to come out even.
- `mlstack.ddp.plans`: Who holds which part of a transformer's matrices: the plan of tensor parallelism, found by names and shapes, shown as a table, refused with the arithmetic where it does not divide. `Mesh(tp=2)` calls this.
- `mlstack.ddp.sequences`: One sequence cut over several devices: context parallelism with ring attention, for sequences whose activations do not fit on one. `Trainer(parallel=Sequences())`.
- `mlstack.ddp.sharding`: What `Trainer(parallel="fsdp")` stands for: each rank keeps a part of every weight, gradient and optimizer state, and gathers a block when it is its turn.
- `mlstack.ddp.stages`: One model cut into stages, each on its own process: pipeline parallelism for models that do not fit on one device. `Trainer(parallel=Pipeline(stages=4))`.
- `mlstack.hardware.devices`: Which device, how many threads, which precision: the choices an expert makes from the card in the machine, each with its reason. The trainer asks for them; you can too.
- `mlstack.resources.slurm`: A job on a SLURM cluster: the batch script that is written for it, where it stands, and what happens when it is preempted. Called by `submit(…, on='slurm')`.
- `mlstack.sweeps.slurm_agents`: A sweep on a SLURM cluster: an array of agents that ask one coordinator, and let go of a trial when SLURM wants the place back. Called by `Sweep.run(…, on='slurm')`.
- `mlstack.tracking.columns`: What a run leaves when it is over: its lanes as one file of compressed columns with checksums, made by whoever reads it first.
- `mlstack.tracking.forking`: A run that begins where another stood at some step, and a run that goes back to a step of its own: `init(fork_from=)` and `init(resume_from=)`.
- `mlstack.tracking.index`: What is known of ten thousand runs, in one file, so that a question about them need not open ten thousand folders. It can be deleted at any time.
- `mlstack.tracking.page`: The runs and their curves in a browser: `track.ui()` in Python, `mlstack ui` in a shell.
- `mlstack.tracking.recorder`: `init`, `log`, `config`, `summary`, `finish`: the record of one execution, written to a folder while it happens.
- `mlstack.tracking.registry`: Which version of a model is in use, who said so, and how to go back: versions with aliases, on top of artifacts.
- `mlstack.tracking.sinks`: A run shown elsewhere while it is made: TensorBoard, MLflow, W&B, or any object with `.log`. Called by `init(sinks=)` and `track.sync`.
- `mlstack.tracking.tensorboard`: TensorBoard's event files, read without TensorBoard: `track.load("logdir/")`. Its frames and messages, which the sink writes too.
- `mlstack.tracking.tensorboard_sync`: Our runs in TensorBoard, while they are made or later: the sink `"tensorboard:logdir"`."""

__version__ = "0.0.1"
