"The cases, by name."
from tests.bench.harness import Case, Row

def imports():
    here = lambda module, *packages: Row('project', 'imports.py', [module], list(packages or ['mlstack']))
    peer = lambda env, module, package: Row(env, 'imports.py', [module], [package])
    return Case('imports', 'What an import costs', repeats=9,
        how='In one process after another: the CPU time (user and system) of an interpreter that imports the package, less that of one that imports nothing, and the number of modules it brought along.',
        figures=dict(modules=('modules loaded', ''), cpu_ms=('CPU', 'ms')),
        rows={'mlstack': here('mlstack'), 'mlstack.tracking': here('mlstack.tracking'), 'mlstack.tracking, with init': here('mlstack.tracking:init'), 'wandb': peer('wandb', 'wandb', 'wandb'), 'mlflow-skinny': peer('mlflow', 'mlflow', 'mlflow-skinny'),
            'torch': here('torch', 'torch'), 'mlstack.trainer, with Trainer': here('mlstack.trainer:Trainer', 'mlstack', 'torch'), 'accelerate, with Accelerator': Row('accelerate', 'imports.py', ['accelerate:Accelerator'], ['accelerate', 'torch']),
            'pytorch-lightning, with Trainer': Row('lightning', 'imports.py', ['pytorch_lightning:Trainer'], ['pytorch-lightning', 'torch'])})

def steps():
    row = lambda env, who, *more: Row(env, 'steps.py', [who, *more], [o for o in (dict(project='mlstack', lightning='pytorch-lightning').get(env, env), 'torch') if who != 'raw' or o == 'torch'])
    return Case('steps', 'What a training step costs beside the raw loop', repeats=3,
        how='MLP 64-64-64-10, batch 32, AdamW, batches ready in memory, one thread of torch. Calls: Python and C calls of a step in every thread, counted with sys.setprofile as the difference between a fit of 120 steps and one of 20; '
            'they do not depend on the machine. CPU: process time of a step over that of the raw loop timed in the same process in alternating rounds, median of three rounds. mlstack takes the fused AdamW without being asked, '
            'so the raw loop and the peers are also measured with fused=True. Logging: the loss of every step is recorded, by mlstack in a Run, by pytorch-lightning with self.log, CSVLogger and log_every_n_steps=1.',
        figures=dict(calls=('calls per step', ''), extra=('beyond the raw loop', ''), ratio=('CPU, raw loop = 1', '')),
        rows={'raw loop': row('project', 'raw'), 'raw loop, fused AdamW': row('project', 'raw', 'fused'), 'mlstack': row('project', 'mlstack'), 'accelerate': row('accelerate', 'accelerate'),
            'accelerate, fused AdamW': row('accelerate', 'accelerate', 'fused'), 'pytorch-lightning': row('lightning', 'lightning'), 'pytorch-lightning, fused AdamW': row('lightning', 'lightning', 'fused'),
            'mlstack, logging': row('project', 'mlstack', 'log'), 'pytorch-lightning, logging': row('lightning', 'lightning', 'log')})

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

cases = dict(steps=steps, log=log, workers=workers, imports=imports)
