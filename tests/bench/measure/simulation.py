"simulation.py NAME [--jobs 100000] [--gpus 10000] [--load 1.05]: one policy of mlstack.resources.simulation on one made-up trace: how long jobs wait, what is in use, what the simulation itself takes."
import argparse, json, time
from mlstack.resources.simulation import cluster, figures, policies, simulate, trace

a = argparse.ArgumentParser()
a.add_argument('name', choices=list(policies()))
for k, v in dict(jobs=100_000, gpus=10_000, load=1.05, every=60.).items(): a.add_argument(f'--{k}', type=type(v), default=v)
a = a.parse_args()
policy, make = policies()[a.name]
jobs = [make(o) for o in trace(a.jobs, a.gpus, a.load, users=500)]
start = time.process_time()
sim = simulate(jobs, cluster(a.gpus), policy, every=a.every)
took = time.process_time() - start
of = sorted(sim.seconds)
print(json.dumps(figures(sim, a.gpus) | dict(days=jobs[-1].ask.submitted/86400, decisions=sim.decisions, decision=of[len(of)//2]*1e3, slow=of[int(.99*len(of))]*1e3, seconds=took)))
