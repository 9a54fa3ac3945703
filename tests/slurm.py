"""A real SLURM for tests: one controller and a few nodes on this machine, in namespaces of their own.

    with Slurm(nodes=2, cpus=4, gpus=2, accounting=True) as cluster:
        done = cluster.run('srun', '-N2', 'hostname')       # as tests.house.run
        cluster.run('sbatch', '-W', 'job.sh')
        os.environ['PATH'] = f'{cluster.tools}:...'         # then `sbatch` and its like reach it from this process too

Partitions `main` and `spot`; a job in main preempts one in spot, which is requeued. With accounting there are slurmdbd and a mariadb of its own behind it. Nothing listens outside: the network namespace has a loopback of its own. Nothing is left: all processes are in a process namespace that ends with its first, and that with who started it.
In a test ask for the fixture `slurm` or `slurm_accounts` (tests/conftest.py), one cluster for the session, which says where SLURM is missing.
"""
import os, re, shutil, socket, subprocess, sys, tempfile, time
from pathlib import Path
from tests import house

programs = 'slurmctld', 'slurmd', 'munged', 'srun', 'sinfo', 'unshare', 'nsenter', 'setpriv', 'ip'
accounting_programs = 'slurmdbd', 'mariadbd'
_path = os.environ.get('PATH', '') + ':/usr/sbin:/sbin'  # before a test puts a cluster's tools there
clients = 'sbatch', 'squeue', 'scontrol', 'scancel', 'sacct', 'sinfo', 'srun'
own = ['--net', '--mount', '--pid']  # namespaces

def probe():
    "Why this machine cannot run it, or None."
    if sys.platform != 'linux' or house.programs_missing(['unshare', 'nsenter']): return 'no unshare and nsenter here'
    r = subprocess.run(['unshare', *own, '--fork', '--mount-proc', 'sh', '-c', 'ip link set lo up && mount -t tmpfs tmpfs /mnt'], capture_output=True, text=True)
    return None if r.returncode == 0 else f'no namespaces: {r.stderr.strip()[:80]}'

_conf = '''ClusterName=ci
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=16817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={d}/run/munge.sock
CredType=cred/munge
StateSaveLocation={d}/state
SlurmdSpoolDir={d}/spool/%n
SlurmctldPidFile={d}/run/slurmctld.pid
SlurmdPidFile={d}/run/slurmd-%n.pid
SlurmctldLogFile={d}/log/slurmctld.log
SlurmdLogFile={d}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
{accounting}
JobCompType=jobcomp/filetxt
JobCompLoc={d}/log/jobcomp.txt
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MessageTimeout=4
MpiDefault=none
KillWait=3
MinJobAge=600
InactiveLimit=0
OverTimeLimit=0
PriorityType=priority/multifactor
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
SlurmdParameters=config_overrides
{gres}
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=60 DefaultTime=10 State=UP PriorityTier=10 OverSubscribe=NO
PartitionName=spot Nodes={names} MaxTime=60 DefaultTime=10 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=2
'''

_slurmdbd = '''AuthType=auth/munge
AuthInfo=socket={d}/run/munge.sock
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=16819
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct
LogFile={d}/log/slurmdbd.log
PidFile={d}/run/slurmdbd.pid
'''

_accounting = '''AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort=16819
AccountingStoragePass={d}/run/munge.sock'''

# Privileges are not asked for: the socket lies in a folder of root's. slurmdbd keeps procedures, so the system's tables are needed. slurmctld has to find slurmdbd.
_start_accounting = '''
db="--no-defaults --user=root --datadir=$D/db --innodb-buffer-pool-size=64M --innodb-log-file-size=16M --innodb-flush-log-at-trx-commit=0 --innodb-lock-wait-timeout=900"
mkdir -p $D/db/mysql
(echo 'use mysql;'; cat /usr/share/mysql/mysql_system_tables.sql) | mariadbd $db --bootstrap --skip-networking >$D/log/bootstrap.log 2>&1
mariadbd $db --socket=$D/run/db.sock --skip-networking --skip-grant-tables --pid-file=$D/run/mariadbd.pid >$D/log/mariadbd.log 2>&1 &
for i in $(seq 600); do [ -S $D/run/db.sock ] && break; sleep .05; done
export MYSQL_UNIX_PORT=$D/run/db.sock
slurmdbd
for i in $(seq 600); do bash -c 'echo > /dev/tcp/127.0.0.1/16819' 2>/dev/null && break; sleep .05; done
'''

_start = '''set -e
mount --bind "$D/hosts" /etc/hosts
ip link set lo up; ip addr add 10.255.255.1/32 dev lo
munged --force --socket=$D/run/munge.sock --key-file=$D/munge.key --pid-file=$D/run/munged.pid --log-file=$D/log/munged.log --seed-file=$D/run/munge.seed
{accounting}
slurmctld; for n in $NODES; do slurmd -N $n; done
for i in $(seq 300); do [ "$(sinfo -h -o %T -p main | sort -u)" = idle ] && break; sleep .1; done
touch $D/up; exec sleep infinity
'''

class Slurm:
    "A cluster of `nodes` with `cpus` and fake `gpus` each, which lives as long as the block."
    def __init__(self, nodes=2, cpus=4, gpus=0, memory=4000, accounting=False): self.nodes, self.cpus, self.gpus, self.memory, self.accounting = nodes, cpus, gpus, memory, accounting

    def __enter__(self):
        self.folder = d = Path(tempfile.mkdtemp(prefix='mlstack-slurm-'))
        for o in ('state', 'spool', 'log', 'run', 'dev'): (d/o).mkdir()
        for o in (d, d/'run'): o.chmod(0o755)
        (d/'munge.key').write_bytes(os.urandom(1024)); (d/'munge.key').chmod(0o600)
        host, names = socket.gethostname().split('.')[0], [f'n{i+1}' for i in range(self.nodes)]
        (d/'hosts').write_text(f'127.0.0.1 localhost {host} {socket.gethostname()} {" ".join(names)}\n')
        gres = f' Gres=gpu:h100:{self.gpus}' if self.gpus else ''
        lines = [f'NodeName={n} NodeHostname={host} NodeAddr=127.0.0.1 Port={17001+i} CPUs={self.cpus} RealMemory={self.memory}{gres} State=UNKNOWN' for i, n in enumerate(names)]
        (d/'slurm.conf').write_text(_conf.format(host=host, d=d, gres='GresTypes=gpu' if self.gpus else '', nodes='\n'.join(lines), names=','.join(names),
            accounting=_accounting.format(d=d) if self.accounting else 'AccountingStorageType=accounting_storage/none'))
        if self.accounting: (d/'slurmdbd.conf').write_text(_slurmdbd.format(d=d)); (d/'slurmdbd.conf').chmod(0o600)
        if self.gpus:
            for n in names:  # SLURM wants character devices: with plain files CUDA_VISIBLE_DEVICES stays empty
                for i in range(self.gpus): os.mknod(d/'dev'/f'{n}gpu{i}', 0o20666, os.makedev(1, 3))
            (d/'gres.conf').write_text('AutoDetect=off\n' + ''.join(f'NodeName={n} Name=gpu Type=h100 File={d}/dev/{n}gpu[0-{self.gpus-1}]\n' for n in names))
        self.env = house.environment(D=d, NODES=' '.join(names), SLURM_CONF=d/'slurm.conf')
        self.env['PATH'] = f'{Path(sys.executable).parent}:{_path}'
        with open(d/'log'/'start.txt', 'w') as log:
            self.process = subprocess.Popen(['setpriv', '--pdeathsig', 'KILL', 'unshare', *own, '--fork', '--kill-child', '--mount-proc', 'sh', '-c', _start.replace('{accounting}', _start_accounting if self.accounting else '')], env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try: self._wait()
        except BaseException: self.__exit__(); raise
        return self

    def _wait(self, seconds=300):
        end = time.monotonic()+seconds
        while not (self.folder/'up').exists():
            if self.process.poll() is not None or time.monotonic() > end: raise RuntimeError('SLURM did not start: ' + '\n'.join(p.read_text(errors='replace')[-600:] for p in sorted((self.folder/'log').glob('*'))))
            time.sleep(.05)
        children = Path(f'/proc/{self.process.pid}/task/{self.process.pid}/children').read_text().split()
        self.first = children[0]
        self.inside = ['nsenter', *own, '-t', children[0], f'--wd={os.getcwd()}']
        self.tools = self.folder/'tools'
        self.tools.mkdir()
        for o in clients:
            (self.tools/o).write_text(f'#!/bin/sh\nexport SLURM_CONF={self.folder}/slurm.conf\n[ -z "$SLURM_JOB_ID" ] || exec {shutil.which(o, path=_path)} "$@"\nexec {" ".join(self.inside[:-1])} "--wd=$PWD" {shutil.which(o, path=_path)} "$@"\n')
            (self.tools/o).chmod(0o755)

    def stop(self, daemon, signal='KILL'):
        "End a daemon: slurmctld, slurmdbd, or slurmd-n1, …, whose jobs go on until somebody ends them. A slurmctld that is killed forgets, and gives numbers again: TERM lets it write them down."
        pid = (self.folder/'run'/f'{daemon}.pid').read_text().strip()
        self.run('sh', '-c', f'kill -{signal} {pid}; while [ -d /proc/{pid} ] && ! grep -q "^State:.Z" /proc/{pid}/status; do sleep .02; done')

    def start(self, daemon):
        "Start it again."
        name, _, node = daemon.partition('-')
        subprocess.run(self.command(name, *(['-N', node] if node else [])), env=self.env | dict(MYSQL_UNIX_PORT=f'{self.folder}/run/db.sock'), check=True, stdin=subprocess.DEVNULL)
        end = time.monotonic() + 300
        while name != 'slurmdbd' and ('idle' not in (said := self.run('sinfo', '-h', '-o', '%T').stdout) or re.search('unk|down|\\*', said)):  # it has to hear of its nodes
            if time.monotonic() > end: raise RuntimeError(f'{daemon} did not come back: {said}')
            time.sleep(.1)

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        end = time.monotonic() + 300
        while getattr(self, 'first', None) and os.path.exists(f'/proc/{self.first}') and time.monotonic() < end: time.sleep(.02)  # the kernel ends all in there, who might still write
        shutil.rmtree(self.folder, ignore_errors=True)

    def command(self, *command, cwd=None):
        "The command line that runs `command` inside, for a process of your own; give it `self.env`."
        return [*self.inside[:-1], f'--wd={cwd or os.getcwd()}', *map(str, command)]

    def run(self, *command, timeout=300, cwd=None, env=None, **kw):
        "Run a command of SLURM, or any other, inside; as `house.run`."
        return house.run(*self.command(*command, cwd=cwd), timeout=timeout, env=self.env | {k: str(v) for k, v in (env or {}).items()}, **kw)
